"""State of a worker: the values of each input partition, and what the batch in progress would change.

Writes go to an overlay and reach the values only after their transaction has committed; an abort drops the overlay.
`restore` makes the values of a partition from its store on disk and its changelog, by the watermark rule. Nothing here
produces.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import cast

from confluent_kafka import Consumer, IsolationLevel, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from recsys.errors import Unavailable
from streams import clients
from streams.records import Record, is_end, read_record
from streams.store import Store, StoreBroken, open_store

log = logging.getLogger(__name__)

# An open transaction of a killed predecessor is aborted within its time-out (15 s); twice that is a broker in trouble.
RESTORE_STALL_S = 40.0
# The client does not call these retriable, though they pass by themselves.
NO_LEADER_YET = (
    "NOT_LEADER_FOR_PARTITION",
    "LEADER_NOT_AVAILABLE",
    "UNKNOWN_TOPIC_OR_PART",
    "FENCED_LEADER_EPOCH",  # we know the leader from before the broker's restart
    "UNKNOWN_LEADER_EPOCH",
    "_NOENT",  # "no leaders found"
    "_UNKNOWN_PARTITION",  # the topic has grown, and what we know of it is older
)
ELECTION_S = 10.0  # a topic that was just created, or lost its broker, has no leader for a moment
READ_TOGETHER = 500  # messages that fit the processor's cache: a tenth faster than 2,000
BEAT_EVERY = 2000  # records, well below a second
QUIET_S = 5.0  # of waiting for a broker or a transaction, then each round is a sign of life: far below LIVE_S
WRITE_TOGETHER = 2000  # restored values go to the disk in batches of this size


class Held:
    """The values of one partition: in memory with the store behind it, or in the store alone."""

    def __init__(self, store: Store | None, *, in_memory: bool) -> None:
        self.store = store
        self.values: dict[str, bytes] | None = None
        if in_memory:
            try:
                self.values = dict(store.items()) if store else {}
            except StoreBroken:
                assert store is not None  # noqa: S101 - nothing else raises it
                store.destroy()  # else the next start would meet it again
                raise

    def get(self, key: str) -> bytes | None:
        """One committed value."""
        if self.values is not None:
            return self.values.get(key)
        assert self.store is not None  # noqa: S101 - `open_partition` gives one or the other
        return self.store.get(key)

    def write(self, changes: Sequence[tuple[str, bytes | None]], next_offset: int) -> None:
        """Committed values, and the changelog offset behind them."""
        if self.values is not None:
            for key, value in changes:
                if value is None:
                    self.values.pop(key, None)
                else:
                    self.values[key] = value
        if self.store is not None:
            try:
                self.store.write(changes, next_offset)
            except StoreBroken as error:
                if self.values is None:
                    raise Unavailable(f"state cannot be kept: {error}; make room, or set state = 'memory'") from error
                # A later write must not hide the gap: this store stays as it is until the next restore.
                log.warning("state: no longer kept on disk until the next start: %s", error)
                self.store.close()
                self.store = None

    def items(self) -> Iterable[tuple[str, bytes]]:
        """All committed values."""
        if self.values is not None:
            return self.values.items()
        assert self.store is not None  # noqa: S101 - as above
        return self.store.items()

    def close(self) -> None:
        """Let go of the disk."""
        if self.store is not None:
            self.store.close()


class State:
    """Keyed bytes per partition, with an overlay of the batch in progress."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}
        self._overlay: dict[tuple[int, str], bytes] = {}

    def get(self, partition: int, key: str) -> bytes | None:
        """The value as the batch in progress sees it."""
        changed = self._overlay.get((partition, key))
        return changed if changed is not None else self._held[partition].get(key)

    def put(self, partition: int, key: str, value: bytes) -> None:
        """Change a value, for now in the overlay only."""
        self._overlay[partition, key] = value

    def changes(self) -> Iterator[tuple[int, str, bytes]]:
        """(partition, key, value) of the overlay: what the changelog must hear of."""
        return ((partition, key, value) for (partition, key), value in self._overlay.items())

    def merge(self, next_offsets: Mapping[int, int]) -> None:
        """The transaction has committed: what the batch wrote is now the state, and the changelog ends there."""
        by_partition: dict[int, list[tuple[str, bytes | None]]] = {}
        for (partition, key), value in self._overlay.items():
            by_partition.setdefault(partition, []).append((key, value))
        for partition, changes in by_partition.items():
            self._held[partition].write(changes, next_offsets[partition])
        self._overlay.clear()

    def drop(self) -> None:
        """The transaction was aborted: forget what the batch wrote."""
        self._overlay.clear()

    def adopt(self, partition: int, held: Held) -> None:
        """A partition came to this worker, with what its changelog says."""
        self._held[partition] = held

    def release(self, partition: int) -> None:
        """A partition left."""
        held = self._held.pop(partition, None)
        if held is not None:
            held.close()

    def partition(self, partition: int) -> dict[str, bytes]:
        """A copy of the committed values of one partition, for looking at."""
        return dict(self._held[partition].items())


def end_offsets(admin: AdminClient, topic: str, partitions: list[int]) -> dict[int, int]:
    """Where each partition ends for everybody, open transactions included.

    read_uncommitted on purpose: a predecessor's commit marker may reach the offsets topic before it reaches this one,
    and a read_committed answer would then end before its last transaction.
    """
    return _offsets(admin, topic, partitions, OffsetSpec.latest())


def begin_offsets(admin: AdminClient, topic: str, partitions: list[int]) -> dict[int, int]:
    """The oldest offset that each partition still has."""
    return _offsets(admin, topic, partitions, OffsetSpec.earliest())


def _offsets(admin: AdminClient, topic: str, partitions: list[int], which: OffsetSpec) -> dict[int, int]:
    wanted = {TopicPartition(topic, p): which for p in partitions}
    deadline_s = time.monotonic() + ELECTION_S
    while True:
        futures = admin.list_offsets(wanted, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=10)
        try:
            return {tp.partition: future.result().offset for tp, future in futures.items()}
        except KafkaException as error:
            if error.args[0].name() not in NO_LEADER_YET or time.monotonic() > deadline_s:
                raise clients.broken(error.args[0]) from None
        time.sleep(0.05)
        with contextlib.suppress(KafkaException):  # else it asks again with the leader that it knew
            admin.list_topics(topic, timeout=1)


def read_to(
    consumer: Consumer,
    topic: str,
    ends: Mapping[int, int],
    take: Callable[[Record], None],
    begins: Mapping[int, int] = MappingProxyType({}),
    beat: Callable[[], None] = lambda: None,
) -> int:
    """Read partitions from their beginning, or `begins`, committed records only, past `ends`; how many there were."""
    count = 0
    for message in messages_to(consumer, topic, ends, begins, beat):
        take(read_record(message))
        count += 1
        if count % BEAT_EVERY == 0:
            beat()  # a long read is progress
    return count


def messages_to(
    consumer: Consumer,
    topic: str,
    ends: Mapping[int, int],
    begins: Mapping[int, int] = MappingProxyType({}),
    beat: Callable[[], None] = lambda: None,
) -> Iterator[Message]:
    """The same as the client's messages: a Record of each is a tenth of what a restore takes. `beat`: while none comes.

    The consumer must report partition ends (enable.partition.eof): behind the last record may stand a transaction's
    marker, and only the end-of-partition event tells that the position has passed it. Raises Unavailable on a stall.
    """
    partitions = [TopicPartition(topic, p) for p in ends]
    for partition in partitions:  # 0 may be past its retention
        oldest = consumer.get_watermark_offsets(partition, timeout=30)[0]
        partition.offset = max(begins.get(partition.partition, 0), oldest)
    consumer.assign(partitions)
    open_ends = {tp.partition: ends[tp.partition] for tp in partitions if ends[tp.partition] > tp.offset}
    moved_s = time.monotonic()
    while open_ends:
        # Only the first is waited for: asking for more at once takes the whole .2 s wherever there are fewer.
        for message in (*consumer.consume(1, 0.2), *consumer.consume(READ_TOGETHER, 0)):
            moved_s = time.monotonic()
            error = message.error()
            if error is not None and not is_end(error):
                raise clients.broken(error)
            number, position = cast(int, message.partition()), cast(int, message.offset())
            if error is None:
                yield message
                position += 1
            if position >= open_ends.get(number, position + 1):
                open_ends.pop(number)
        waited_s = time.monotonic() - moved_s
        if waited_s > QUIET_S:
            beat()
        if waited_s > RESTORE_STALL_S:
            raise Unavailable(
                f"{topic}: nothing came for {RESTORE_STALL_S:.0f} s before the end was reached at {open_ends}; "
                "a transaction may be open, look at the broker's log"
            )


def restore(
    admin: AdminClient,
    consumer: Consumer,
    topic: str,
    partitions: list[int],
    folder: Path | None = None,
    *,
    in_memory: bool = True,
    beat: Callable[[], None] = lambda: None,
) -> tuple[dict[int, Held], int]:
    """The committed values of some changelog partitions, and how many records were read for them.

    What lies in `folder` is used as far as it is good; only the changelog's tail behind it is read. Raises Unavailable
    where the state is to lie on disk only (in_memory=False) and the disk cannot be used.
    """
    ends, begins = end_offsets(admin, topic, partitions), begin_offsets(admin, topic, partitions)
    log_id = topic_id(admin, topic)
    held = {}
    for p in partitions:
        where = folder / str(p) if folder else None
        try:
            held[p] = Held(open_store(where, log_id, p, begins[p], ends[p]) if where else None, in_memory=in_memory)
        except StoreBroken as error:
            if not in_memory:
                raise Unavailable(
                    f"state cannot be kept in {where}: {error}; make room, or set state = 'memory'"
                ) from None
            log.warning("state: not kept on disk, the next start reads the whole changelog: %s", error)
            held[p] = Held(None, in_memory=True)
    known = {p: store.next_offset for p, h in held.items() if (store := h.store) is not None}
    waiting: dict[int, list[tuple[str, bytes | None]]] = {p: [] for p in partitions}
    count = 0
    for message in messages_to(consumer, topic, ends, known, beat):
        partition = cast(int, message.partition())
        changes = waiting[partition]
        changes.append(((message.key() or b"").decode(), message.value()))
        if len(changes) >= WRITE_TOGETHER:
            held[partition].write(changes, cast(int, message.offset()) + 1)
            changes.clear()
            beat()  # a long restore is progress
        count += 1
    for p in partitions:
        held[p].write(waiting[p], ends[p])
    return held, count


def topic_id(admin: AdminClient, topic: str, timeout_s: float = 10.0) -> str:
    """The broker's own id of a topic: one that was deleted and made again has another."""
    future = admin.describe_topics(TopicCollection([topic]), request_timeout=timeout_s)[topic]
    try:
        return str(future.result().topic_id)
    except KafkaException as error:
        raise clients.broken(error.args[0]) from None
