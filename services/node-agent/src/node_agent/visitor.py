"""tidegate-node-visitor: enters pods' network namespaces for an agent that may not, see `node_agent.visits`.

It listens on a unix socket for who runs it alone, reads nothing else, and has neither etcd nor maps.
"""

import os
import socket
import struct
from pathlib import Path

import click

from node_agent.visits import PATIENCE, OwnVisits, Visits, answer, receive, send
from tidegate.runtime.logging import configure, get_logger
from tidegate.runtime.settings import CONTEXT_SETTINGS

_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid

log = get_logger()


@click.command(context_settings=CONTEXT_SETTINGS)
@click.option(
    "--visitor",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Unix socket to listen on: the agent's --visitor.",
)
@click.option(
    "--cgroup",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/sys/fs/cgroup"),
    help="cgroup v2 directory of the pods.",
)
def main(visitor: Path, cgroup: Path) -> None:
    """Ends sockets of pods whose backend is gone, for an agent that has no right to enter their network namespaces."""
    configure(service="node-visitor")
    with listen(visitor) as server:
        log.info("waiting for the agent", socket=str(visitor))
        serve(server, OwnVisits(cgroup))


def listen(path: Path) -> socket.socket:
    """For this user alone, from the moment at which it is there. What an earlier one has left is taken away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        server.bind(str(path))
    finally:
        os.umask(before)
    server.listen()
    return server


def serve(server: socket.socket, visits: Visits) -> None:
    """One after the other. Never returns."""
    while True:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(PATIENCE)
            try:
                if _user(connection) != os.getuid():
                    log.warning("refused who is another user", user=_user(connection))
                    continue
                send(connection, answer(visits, receive(connection)))
            except OSError as error:
                log.warning("not answered", reason=str(error))


def _user(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


if __name__ == "__main__":
    main()
