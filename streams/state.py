"""State of a worker: a dictionary per input partition, the changelog behind it, and what a batch would change.

Writes go to an overlay and reach the base only after their transaction has committed; an abort drops the overlay.
`restore` fills the base of a partition from its changelog by the watermark rule. Nothing here produces.
"""

import time
from collections.abc import Callable, Iterator

from confluent_kafka import Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from recsys.errors import Unavailable
from streams import clients
from streams.records import Record, is_end, read_record

# An open transaction of a killed predecessor is aborted within its time-out (15 s); twice that is a broker in trouble.
RESTORE_STALL_S = 40.0
# The client does not call these retriable, though they pass by themselves.
NO_LEADER_YET = ("NOT_LEADER_FOR_PARTITION", "LEADER_NOT_AVAILABLE", "UNKNOWN_TOPIC_OR_PART")
ELECTION_S = 10.0  # a topic that was just created, or lost its broker, has no leader for a moment


class State:
    """Keyed bytes per partition, with an overlay of the batch in progress."""

    def __init__(self) -> None:
        self._base: dict[int, dict[str, bytes]] = {}
        self._overlay: dict[tuple[int, str], bytes] = {}

    def get(self, partition: int, key: str) -> bytes | None:
        """The value as the batch in progress sees it."""
        changed = self._overlay.get((partition, key))
        return changed if changed is not None else self._base[partition].get(key)

    def put(self, partition: int, key: str, value: bytes) -> None:
        """Change a value, for now in the overlay only."""
        self._overlay[partition, key] = value

    def changes(self) -> Iterator[tuple[int, str, bytes]]:
        """(partition, key, value) of the overlay: what the changelog must hear of."""
        return ((partition, key, value) for (partition, key), value in self._overlay.items())

    def merge(self) -> None:
        """The transaction has committed: what the batch wrote is now the state."""
        for (partition, key), value in self._overlay.items():
            self._base[partition][key] = value
        self._overlay.clear()

    def drop(self) -> None:
        """The transaction was aborted: forget what the batch wrote."""
        self._overlay.clear()

    def adopt(self, partition: int, values: dict[str, bytes]) -> None:
        """A partition came to this worker, with what its changelog says."""
        self._base[partition] = values

    def release(self, partition: int) -> None:
        """A partition left."""
        self._base.pop(partition, None)

    def partition(self, partition: int) -> dict[str, bytes]:
        """The committed values of one partition, for reading."""
        return self._base[partition]


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


def read_to(consumer: Consumer, topic: str, ends: dict[int, int], take: Callable[[Record], None]) -> int:
    """Read partitions from their beginning, committed records only, until past `ends`; how many records there were.

    The consumer must report partition ends (enable.partition.eof): behind the last record may stand a transaction's
    marker, and only the end-of-partition event tells that the position has passed it. Raises Unavailable on a stall.
    """
    partitions = [TopicPartition(topic, p) for p in ends]
    for partition in partitions:  # 0 may be past its retention
        partition.offset = consumer.get_watermark_offsets(partition, timeout=30)[0]
    consumer.assign(partitions)
    open_ends = {p: end for p, end in ends.items() if end > 0}
    count, moved_s = 0, time.monotonic()
    while open_ends:
        for message in consumer.consume(2000, 0.2):
            moved_s = time.monotonic()
            error = message.error()
            if error is not None and not is_end(error):
                raise clients.broken(error)
            record = read_record(message)
            position = record.offset
            if error is None:
                take(record)
                count += 1
                position += 1
            if position >= open_ends.get(record.partition, position + 1):
                open_ends.pop(record.partition)
        if time.monotonic() - moved_s > RESTORE_STALL_S:
            raise Unavailable(
                f"{topic}: nothing came for {RESTORE_STALL_S:.0f} s before the end was reached at {open_ends}; "
                "a transaction may be open, look at the broker's log"
            )
    return count


def restore(
    admin: AdminClient, consumer: Consumer, topic: str, partitions: list[int]
) -> tuple[dict[int, dict[str, bytes]], int]:
    """The newest value of every key of some changelog partitions, and how many records were read."""
    values: dict[int, dict[str, bytes]] = {p: {} for p in partitions}

    def take(record: Record) -> None:
        key = (record.key or b"").decode()
        if record.value is None:
            values[record.partition].pop(key, None)
        else:
            values[record.partition][key] = record.value

    return values, read_to(consumer, topic, end_offsets(admin, topic, partitions), take)
