"""What a watch of etcd says, without the network: responses in, whole revisions out, and proof of continuity."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etcd3aio._protobuf import WatchCreateRequest, WatchRequest
from etcd3aio.kv import prefix_range_end

from tidegate.store.connection import TOKEN_IS_VOID
from tidegate.store.protocol import Delete, Operation, Put, StoreError, UnavailableError

# By etcd itself and through its grpc-proxy: to a user whose token is void, or who has no right to it.
REFUSED = ("permission denied", *TOKEN_IS_VOID)
DELETE_EVENT = 1  # mvccpb.Event.DELETE
TRACES = 16


class LostError(StoreError):
    """The watch cannot go on from its position: everything has to be read again. `cause` is one constant word."""

    # Causes that mean that the store may have lost something that was seen in it.
    REGRESSED = frozenset({"cluster", "older", "history"})

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


class Trace(NamedTuple):
    """How a key was when it was seen. The hash of the value tells histories apart that wrote the same keys in step."""

    mod_revision: int
    create_revision: int
    version: int
    value: int


def trace(kv: Any) -> Trace:
    return Trace(kv.mod_revision, kv.create_revision, kv.version, hash(kv.value))


class History:
    """The point up to which a reader has seen everything, and traces by which that history can be told from another.

    An etcd that was wiped, or restored from an older copy, may answer at the same address with the same cluster id,
    and may have passed our revision by the time we are back. What gives it away is that keys, read at our position,
    are not as we saw them.
    """

    def __init__(self, cluster: int, position: int, traces: dict[str, Trace]) -> None:
        self.cluster = cluster
        self.position = position
        self._traces = traces

    @property
    def traces(self) -> dict[str, Trace]:
        """Key → how it must be at `position`; the latest ones, at most TRACES."""
        return self._traces

    def advance(self, step: "Step") -> None:
        """To be called when `step` has been given out."""
        self.position = step.revision
        for operation in step.operations:
            self._traces.pop(operation.key, None)
        if step.last_put is not None:
            self._traces[decode_key(step.last_put.key)] = trace(step.last_put)
            if len(self._traces) > TRACES:
                del self._traces[next(iter(self._traces))]

    def require_traces(self) -> None:
        """Raises LostError where nothing was seen that could show whether this is the same etcd: not worth a risk."""
        if not self._traces:
            raise LostError("unknown", "nothing seen that could show whether this is the same etcd")

    def check(self, found: dict[str, Trace | None], revision: int, cluster: int) -> None:
        """Compares with what etcd has at `position`, and its present revision. Raises LostError."""
        if cluster and cluster != self.cluster:
            raise LostError("cluster", "another etcd cluster answers")
        if revision < self.position:
            raise LostError("older", f"etcd is at revision {revision}, and was at {self.position} before")
        for key, seen in self._traces.items():
            if found.get(key) != seen:
                raise LostError("history", f"etcd has another history: at revision {self.position}, {key} differs")


class Step(NamedTuple):
    """One whole revision."""

    revision: int
    operations: Sequence[Operation]
    last_put: Any  # the last mvccpb.KeyValue that was put, or None


class Assembler:
    """Joins the responses of one watch stream to whole revisions.

    etcd never splits a revision over responses, except over the fragments of one: all but its last carry `fragment`.
    One response may hold many revisions.
    """

    def __init__(self, position: int) -> None:
        self._revision = position
        self._operations: list[Operation] = []
        self._last_put: Any = None

    @property
    def pending(self) -> bool:
        """Whether a revision has begun whose end has not come yet."""
        return bool(self._operations)

    def feed(self, response: Any) -> Iterator[Step]:
        """The revisions that `response` completes. Raises LostError for events that do not follow the position."""
        for event in response.events:
            kv = event.kv
            revision = kv.mod_revision
            if revision != self._revision or not self._operations:
                if self._operations:
                    yield self._take()
                if revision <= self._revision:
                    raise LostError("order", f"etcd sent revision {revision} after {self._revision}")
                self._revision = revision
            key = kv.key.decode("utf-8", "surrogateescape")
            if event.type == DELETE_EVENT:
                self._operations.append(Delete(key))
            else:
                self._operations.append(Put(key, kv.value))
                self._last_put = kv
        if self._operations and not response.fragment:
            yield self._take()

    def advance(self, revision: int) -> None:
        """etcd says that nothing up to `revision` is outstanding (a progress notification)."""
        self._revision = max(self._revision, revision)

    def _take(self) -> Step:
        step = Step(self._revision, self._operations, self._last_put)
        self._operations, self._last_put = [], None
        return step


def check_alive(response: Any, history: History) -> None:
    """Raises LostError where the response ends the watch, or comes from another cluster; UnavailableError where it is
    refused: that says nothing of what was seen."""
    # A grpc-proxy leaves the cluster id out.
    if response.header.cluster_id and response.header.cluster_id != history.cluster:
        raise LostError("cluster", "another etcd cluster answers")
    if response.compact_revision:
        raise LostError("compacted", f"etcd has compacted its history up to revision {response.compact_revision}")
    if response.canceled and any(words in response.cancel_reason for words in REFUSED):
        raise UnavailableError(f"etcd refuses the watch: {response.cancel_reason}")
    if response.canceled:
        raise LostError("canceled", f"etcd ended the watch: {response.cancel_reason or 'no reason given'}")


def watch_request(prefix: str, position: int) -> WatchRequest:
    """A watch of everything after `position`."""
    return WatchRequest(
        create_request=WatchCreateRequest(
            key=encode_key(prefix),
            range_end=prefix_range_end(encode_key(prefix)),
            start_revision=position + 1,
            # So that the position of an idle watch does not fall behind compaction.
            progress_notify=True,
            # Without it a revision larger than a message is sent whole.
            fragment=True,
        )
    )


def decode_key(key: bytes) -> str:
    """Keys that are no UTF-8 are somebody else's; they must not end a watch."""
    return key.decode("utf-8", "surrogateescape")


def encode_key(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")
