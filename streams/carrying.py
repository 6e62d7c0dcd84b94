"""Records of one generation of topics carried into another: which are missing there, and written in transactions.

What is newest of a key is decided by a header on every copy, which names the record it is of: what was written to the
new topic itself is newer than any copy, and of two copies that of the later record. Called by growth.py.
"""

import time
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple

import msgspec
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from recsys.errors import Misuse, Unavailable
from streams import clients
from streams.records import Headers, Record
from streams.settings import Settings

REPLAY_OF = "replay-of"  # topic:partition:offset
CHUNK_BYTES, CHUNK_RECORDS = 4 * 1024 * 1024, 2000  # of one transaction: far below its 15 s
DAY_MS = 86_400_000  # the longest that a client may be away from its group
JOIN_S = 30.0  # .3 s where the group is empty; a rebalance with another member takes as long as that one's batch

Ends = dict[int, int]  # partition -> next offset


class Written(NamedTuple):
    """When a value was written; the larger is the newer. here: in the new topic itself, else in the old one."""

    here: bool
    offset: int


class Values:
    """A topic in both generations: which records ought to stand last in the new one, and do not.

    Fed with the records of the new topic, then of the old one, each partition in order. It keeps keys and offsets.
    only: the one key that is carried; None, all are.
    """

    def __init__(self, old: str, new: str, known: Ends, only: bytes | None = None) -> None:
        self.old, self.new, self._only = old, new, only
        self.read: dict[str, Ends] = {old: known, new: {}}
        self.missing: dict[bytes, tuple[str, int, int]] = {}  # key -> topic, partition, offset
        self._newest: dict[bytes, Written] = {}  # of the new topic

    def note_new(self, record: Record) -> None:
        """A record that stands in the new topic."""
        key, written = record.key or b"", self._when(record)
        newest = self._newest.get(key, written)
        if written >= newest:
            self._newest[key] = written
            self.missing.pop(key, None)
        else:  # the copy of something older came after it
            self.missing[key] = self.new, record.partition, newest.offset

    def note_old(self, record: Record) -> None:
        """A record that stands in the old topic."""
        key = record.key or b""
        if self._only not in (None, key):
            return
        newest = self._newest.get(key)
        if newest is None and record.value is None:  # what was never there needs no tombstone
            self.missing.pop(key, None)
        elif newest is None or newest < (False, record.offset):
            self.missing[key] = self.old, record.partition, record.offset

    def is_missing(self, record: Record) -> bool:
        """Whether it is exactly this record."""
        return self.missing.get(record.key or b"") == (record.topic, record.partition, record.offset)

    def range_of(self, name: str) -> tuple[Ends, Ends]:
        """Per partition of a topic, the first of what is missing and the offset behind the last."""
        begins: Ends = {}
        ends: Ends = {}
        for topic, partition, offset in self.missing.values():
            if topic == name:
                begins[partition] = min(offset, begins.get(partition, offset))
                ends[partition] = max(offset + 1, ends.get(partition, 0))
        return begins, ends

    def _when(self, record: Record) -> Written:
        origin = dict(record.headers).get(REPLAY_OF, b"").decode(errors="replace")
        topic, _, where = origin.partition(":")
        offset = where.rpartition(":")[2]
        if topic in (self.old, self.new) and offset.isdigit():
            return Written(topic == self.new, int(offset))
        return Written(True, record.offset)


class Carrier:
    """Writes records to one new topic, a transaction for a few MiB of them.

    The topic's number of partitions and the client's partitioner put them where a producer's would go. They keep their
    time, so they are not kept longer. With `member` (see Hold) the offsets behind them are committed in the same
    transaction.
    """

    def __init__(self, producer: Producer, topic: str, extra: Headers = (), member: object = None) -> None:
        self._producer, self._topic, self._extra, self._member = producer, topic, extra, member
        self._waiting: list[Record] = []
        self._bytes = self.count = 0
        self._failed: list[KafkaError] = []

    def add(self, record: Record) -> None:
        """One more; durable with the next `commit`, at the latest."""
        self._waiting.append(record)
        self.count += 1
        self._bytes += len(record.value or b"")
        if self._bytes >= CHUNK_BYTES or len(self._waiting) >= CHUNK_RECORDS:
            self.commit()

    def commit(self) -> None:
        """All that waits, or nothing. Raises KafkaException, and Unavailable where the broker refuses a record."""
        if not self._waiting:
            return
        self._producer.begin_transaction()
        for record in self._waiting:
            self._produce(record)
        self._producer.flush(clients.TRANSACTION_TIMEOUT_S)
        if self._failed:
            raise Unavailable(f"a record was not written ({self._failed[0].str()}); look at {self._topic}'s settings")
        if self._member is not None:
            ends = {(r.topic, r.partition): r.offset + 1 for r in self._waiting}
            offsets = [TopicPartition(*where, end) for where, end in ends.items()]
            self._producer.send_offsets_to_transaction(offsets, self._member, 30)
        self._producer.commit_transaction(-1)
        self._waiting.clear()
        self._bytes = 0

    def _produce(self, record: Record) -> None:
        ours = dict([(REPLAY_OF, f"{record.topic}:{record.partition}:{record.offset}".encode()), *self._extra])
        kept = (header for header in record.headers if header[0] not in ours)
        headers: list[tuple[str, str | bytes | None]] = [*kept, *ours.items()]
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    record.value,
                    record.key,
                    on_delivery=self._delivered,
                    timestamp=record.arrived_ms,
                    headers=headers,
                )
            except BufferError:  # the local queue is full: let it drain
                self._producer.poll(0.1)
            else:
                return

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed.append(error)


class Hold:
    """Membership of a role's group with all partitions of its input: while it lasts, the role itself cannot begin.

    A role that is started meanwhile waits inside its join. Entered, it gives the member to commit offsets as.
    """

    def __init__(self, settings: Settings, role: str, topic: str, partitions: Iterable[int]) -> None:
        patient = msgspec.structs.replace(settings, kafka={**settings.kafka, "max.poll.interval.ms": DAY_MS})
        self._consumer = clients.consumer(patient, settings.prefix + role)
        self._name, self._topic, self._all = f"{role} of {settings.prefix}", settings.prefix + topic, set(partitions)
        self._mine: set[int] | None = None

    def __enter__(self) -> object:
        try:
            return self._join()
        except BaseException:
            self._consumer.close()
            raise

    def _join(self) -> object:
        self._consumer.subscribe([self._topic], on_assign=self._assigned)
        deadline_s = time.monotonic() + JOIN_S
        while self._mine is None and time.monotonic() < deadline_s:
            message = self._consumer.poll(0.05)
            if message is not None and (error := message.error()) is not None:
                raise clients.broken(error)
        if self._mine != self._all:
            raise Misuse(f"{self._name} runs: stop it, then run this again")
        # As of now: a client that was expelled says that it is nobody, and from nobody a broker takes offsets unchecked.
        return self._consumer.consumer_group_metadata()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._consumer.close()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._mine = {tp.partition for tp in partitions}
        consumer.assign([])  # nothing is read by this client
