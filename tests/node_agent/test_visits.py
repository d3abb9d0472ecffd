"""What an agent and its visitor say to each other."""

import errno
import os
import socket
import stat
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgpack
import pytest

from node_agent.namespaces import open_namespaces, open_own
from node_agent.visitor import listen, serve
from node_agent.visits import SentVisits, Wanted, receive, send

ADDRESS = bytes(10) + b"\xff\xff" + bytes((10, 0, 0, 1))
SOCKETS = [Wanted(6, 1 << 63, ADDRESS, 443), Wanted(17, 7, bytes(range(16)), 53)]


class Visits:
    """Ends those to port 53, and keeps what it was asked for."""

    def __init__(self, refusing: OSError | None = None) -> None:
        self.refusing = refusing
        self.asked: list[object] = []

    def end(self, sockets: Collection[Wanted]) -> tuple[frozenset[int], int]:
        self.asked.append(list(sockets))
        if self.refusing:
            raise self.refusing
        return frozenset(each.cookie for each in sockets if each.port == 53), 3

    def cookie_of(self, address: bytes) -> int:
        self.asked.append(address)
        return (1 << 64) - 1


@contextmanager
def answering(visits: Visits, path: Path) -> Iterator[SentVisits]:
    server = listen(path)

    def body() -> None:
        try:
            serve(server, visits)
        except OSError:
            return  # it was shut down

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield SentVisits(path)
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()


def test_questions_and_answers(tmp_path: Path) -> None:
    visits = Visits()
    with answering(visits, tmp_path / "socket") as sent:
        assert sent.end(SOCKETS) == (frozenset({7}), 3)
        assert sent.cookie_of(ADDRESS) == (1 << 64) - 1
        assert sent.end([]) == (frozenset(), 3)
        many = [Wanted(6, cookie, ADDRESS, 53) for cookie in range(50_000)]
        assert sent.end(many) == (frozenset(range(50_000)), 3)
    assert visits.asked == [SOCKETS, ADDRESS, [], many]


def test_what_the_kernel_refuses_comes_back(tmp_path: Path) -> None:
    refusing = PermissionError(errno.EPERM, "enter a network namespace: Operation not permitted")
    with (
        answering(Visits(refusing), tmp_path / "socket") as sent,
        pytest.raises(PermissionError, match="enter a network namespace: Operation not permitted"),
    ):
        sent.end(SOCKETS)


@pytest.mark.root
def test_processes_that_may_not_be_looked_at_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As AppArmor refuses it, where the others may be looked at."""
    real = os.open

    def guarded(path: Path | str, flags: int) -> int:
        if str(path) == f"/proc/{os.getppid()}/ns/net":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags)

    own = open_own()
    refused: list[int] = []
    try:
        monkeypatch.setattr("node_agent.namespaces.os.open", guarded)
        # As if it lived in another one.
        monkeypatch.setattr("node_agent.namespaces.os.fstat", lambda _: os.stat_result((0,) * 10))
        found = list(open_namespaces(own, [os.getppid(), os.getpid()], refused.append))
    finally:
        os.close(own)
    assert refused == [os.getppid()]
    assert len(found) == 2


def test_nobody_is_there(tmp_path: Path) -> None:
    (tmp_path / "left").touch()
    for name, reason in (("none", "No such file"), ("left", "Connection refused")):
        with pytest.raises(OSError, match=f"no answer from tidegate-node-visitor at {tmp_path}/{name} .*{reason}"):
            SentVisits(tmp_path / name).cookie_of(ADDRESS)


BAD = [
    b"",
    b"\xc1",
    msgpack.packb("end"),
    msgpack.packb(["end"]),
    msgpack.packb(["end", [[6, 1, "10.0.0.1", 80]]]),
    msgpack.packb(["end", [[6, 1, ADDRESS]]]),
    msgpack.packb(["end", [[6, 1, ADDRESS[4:], 80]]]),
    msgpack.packb(["end", [[256, 1, ADDRESS, 80]]]),
    msgpack.packb(["end", [[6, -1, ADDRESS, 80]]]),
    msgpack.packb(["end", [[6, 1, ADDRESS, 65536]]]),
    msgpack.packb(["end", [[6, float("inf"), ADDRESS, 80]]]),
    msgpack.packb(["end", 5]),
    msgpack.packb(["cookie_of", None]),
    msgpack.packb(["run", "sh"]),
    msgpack.packb(["end", []]) + b"more",
]


def test_what_is_no_question_is_refused_and_the_next_is_answered(tmp_path: Path) -> None:
    path, visits = tmp_path / "socket", Visits()
    with answering(visits, path) as sent:
        for message in BAD:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                send(connection, message)
                code, text = msgpack.unpackb(receive(connection))
                assert code == errno.EINVAL, message
                assert text.startswith("not understood"), message
        assert visits.asked == []
        assert sent.end(SOCKETS) == (frozenset({7}), 3)


@pytest.mark.root
def test_it_is_for_its_own_user_alone(tmp_path: Path) -> None:
    """By the mode of the socket, and by who connects."""
    path, visits = tmp_path / "socket", Visits()
    for each in (tmp_path, *tmp_path.parents[:2]):
        each.chmod(each.stat().st_mode | 0o111)
    with answering(visits, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert as_nobody(path) == errno.EACCES
        path.chmod(0o666)
        assert as_nobody(path) == 0  # and nothing is said
    assert visits.asked == []


def as_nobody(path: Path) -> int:
    """Asks as another user. 0: connected, and got no answer; 1: got one; else the errno of connecting."""
    pid = os.fork()
    if not pid:
        code = 255
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            code = ask(path)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ask(path: Path) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError as error:
            return error.errno or 254
        with suppress(OSError):  # the other side may have hung up at any moment
            send(connection, msgpack.packb(["cookie_of", ADDRESS]))
            return int(bool(connection.recv(1)))
        return 0
