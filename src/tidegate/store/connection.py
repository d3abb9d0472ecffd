"""The gRPC channel to etcd and its services.

etcd3aio builds channels for `host:port` only; endpoints here may be unix sockets too, names are resolved by gRPC, and a
watch may bring revisions larger than gRPC's default limit of 4 MB.
"""

from dataclasses import dataclass

import grpc
import grpc.aio
from etcd3aio._protobuf import WatchStub
from etcd3aio.kv import KVService
from etcd3aio.lease import LeaseService

from tidegate.runtime.settings import CommonSettings

OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A peer that vanished without a word is noticed after 10 + 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # gRPC's name for the time that one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A channel of its own for each client: the shared pool would share failures, too.
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass
class Connection:
    channel: grpc.aio.Channel
    kv: KVService
    lease: LeaseService
    watch: WatchStub

    async def close(self) -> None:
        await self.channel.close()


def target(endpoints: tuple[str, ...]) -> str:
    """gRPC's name of the endpoints: one unix socket, a list of literal addresses, or one name to resolve.

    Raises ValueError for a mixture that gRPC has no form for.
    """
    if len(endpoints) == 1:
        (endpoint,) = endpoints
        return endpoint.replace("unix://", "unix:", 1) if endpoint.startswith("unix://") else f"dns:///{endpoint}"
    if any(endpoint.startswith("unix://") for endpoint in endpoints):
        raise ValueError("--etcd: a unix socket stands alone, not among other endpoints")
    literal = all(endpoint[0].isdigit() or endpoint[0] == "[" for endpoint in endpoints)
    if not literal:
        raise ValueError("--etcd: several endpoints are given by address; a name may stand for all of them alone")
    scheme = "ipv6" if endpoints[0].startswith("[") else "ipv4"
    return f"{scheme}:{','.join(endpoints)}"


def connect(settings: CommonSettings) -> Connection:
    """Opens the channel; gRPC connects when the first call is made. Raises OSError for unreadable certificates."""
    name = target(settings.etcd)
    if settings.etcd_ca is None:
        channel = grpc.aio.insecure_channel(name, options=OPTIONS)
    else:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=settings.etcd_ca.read_bytes(),
            private_key=settings.etcd_key.read_bytes() if settings.etcd_key else None,
            certificate_chain=settings.etcd_cert.read_bytes() if settings.etcd_cert else None,
        )
        channel = grpc.aio.secure_channel(name, credentials, options=OPTIONS)
    # One attempt a call: the store decides what may be repeated, and when.
    kv, lease = KVService(channel, max_attempts=1), LeaseService(channel, max_attempts=1)
    return Connection(channel, kv, lease, WatchStub(channel))
