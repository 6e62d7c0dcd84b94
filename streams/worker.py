"""The transactional loop under every role that must lose nothing and count nothing twice.

The order, and each step's reason:

1. poll up to N records or T ms
2. the task decodes them; bad ones become rejects
3. the task applies them to the state's overlay
4. the task computes its outputs: scoring happens before the transaction begins, so that transactions stay short
5. begin; produce outputs, changelog and rejects
6. send offsets (last + 1, own bookkeeping) with the group metadata of this moment: a stale generation is refused
7. commit
8. merge the overlay into the state

On abort: drop the overlay, seek back to where the batch began. What cannot be undone ends the process, and a
supervisor starts another, which fences this one (transactions.py).

Memory is bounded without pausing a partition: nothing is polled while a batch is in hand, the client's own queues have
limits (clients.py), and a batch is only as large as the broker takes in good time.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from recsys.errors import REASON_CLASSES, BadEvent
from streams import clients, telemetry
from streams.attempts import LAST_ATTEMPT, Attempts
from streams.failpoints import reach
from streams.input_topic import InputTopic
from streams.lag import LagMeter
from streams.records import BACKFILL, Output, Record, read_record
from streams.rejects import put_aside, reason_class
from streams.settings import Settings
from streams.state import State, begin_offsets, restore
from streams.telemetry import Health
from streams.transactions import Aborted, Stopped, Transactions
from streams.watchdog import Watchdog

log = logging.getLogger(__name__)

LINGER_S = 0.005  # a batch waits this long for company: a transaction costs about 5 ms whatever is in it
IDLE_S = 0.1
# A batch takes .1 s, a record some ms. After this long it hangs: a pill is found within three times that.
PROCESS_LIMIT_S = 5.0
STUCK_S = 10.0  # with the interpreter's lock held; also ends a worker whose machine slept: it may have been replaced
# 2,000 records at 50 kB/s would outlast the transaction's time-out, for ever. So batches begin small, and grow while
# the broker is quick.
FIRST_BATCH, SLOW_S, QUICK_S = 64, 1.0, 0.25


class Task(Protocol):
    """What a role does with records. It writes state through `state.put` and returns what to produce."""

    topic: str  # input, without the prefix
    changelog: str  # the topic its state is written to, partition by partition
    batch_limit: int  # records it wants at most in the next batch
    live_limit: int  # of these, at most so many that are no backfill: each may cost more than its reading

    def refresh(self) -> None:
        """Called between batches: read what others publish. Must not block."""
        ...

    def process(self, records: Sequence[Record], state: State) -> list[Output]:
        """Steps 2 to 4 for one batch. Deterministic in records, state and what `refresh` has read."""
        ...

    def committed(self) -> None:
        """The batch just processed is durable."""
        ...


class Worker:
    """One consumer, one transactional producer, one task. Not thread-safe: `run` owns it."""

    def __init__(self, settings: Settings, role: str, task: Task, instance: str, health: Health | None = None) -> None:
        self.task, self.role, self.state = task, role, State()
        self.settings = settings
        self.input = settings.prefix + task.topic
        self.changelog = settings.prefix + task.changelog
        self._rejects = settings.prefix + "rejects"
        self.processed = 0  # records whose transaction has committed
        self.restored = 0
        self._next: dict[int, int] = {}  # own bookkeeping of offsets: control records leave gaps
        self._room = FIRST_BATCH
        self._folder = Path(settings.home) / "state" / f"{settings.prefix}{role}-{instance}"
        self._health = health or Health(role)
        for kind in ("assigned", "revoked", "lost"):
            telemetry.REBALANCES.labels(role, kind)  # an alarm needs the 0 before the first
        for name in REASON_CLASSES:
            telemetry.REJECTS.labels(role, name)
        self._group = f"{settings.prefix}{role}"
        self._admin = clients.admin(settings)
        self._topic = InputTopic(self._admin, self.input, role, self._group)
        self._watchdog = Watchdog(role, self._topic.brokers)
        self._attempts = Attempts(self._folder / "attempt.json")
        self._consumer = clients.consumer(settings, self._group, instance_id=f"{role}-{instance}")
        self._lag = LagMeter(role, self._consumer, self.input)
        self._transactions = Transactions(settings, role, instance, self._watchdog)

    def run(self, stop: threading.Event, after_batch: Callable[[], None] = lambda: None) -> None:
        """Work until `stop` is set; the batch in hand is committed first."""
        with self._watchdog.watching(STUCK_S):
            try:
                self._transactions.fence()  # before any offset is read
                self._consumer.subscribe(
                    [self.input], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
                )
                self._health.waiting_for = "partitions"
                while not stop.is_set():
                    self.step()
                    self._health.beat()
                    after_batch()
            except KafkaException as error:
                raise Stopped(f"{self.role}: {clients.explain(error.args[0], 'start it again')}") from error
            finally:
                self._health.waiting_for = "its end"
                self._consumer.close()
                self._release(list(self._next))
                self._attempts.close()

    def step(self) -> None:
        """One batch, from poll to merge; nothing if nothing came."""
        self._topic.check()
        records = self._poll()
        self.task.refresh()
        if records:
            self._batch(records)
        self._lag.show(self._next, records)

    def _batch(self, records: Sequence[Record]) -> None:
        reach("after_poll")
        outputs = self._process(records)
        reach("after_apply")
        started_s = time.monotonic()
        try:
            ends = self._transactions.commit(outputs, self._changes(), self._offsets(records), self._consumer)
        except Aborted as error:
            log.warning("%s: transaction aborted (%s), %d records again", self.role, error, len(records))
            self._go_back(records)
            return
        self._make_room(len(records), time.monotonic() - started_s)
        self.state.merge(ends)
        reach("after_merge")
        self.processed += len(records)
        self._next.update(_ends(records))
        self._attempts.passed(records)
        self.task.committed()
        self._count(records, outputs)

    def _poll(self) -> list[Record]:
        first = self._consumer.poll(IDLE_S)
        if first is None:
            return []
        records, looked_at = [self._read(first)], 0
        limit, until_s = min(self.task.batch_limit, self._room), time.monotonic() + LINGER_S
        # In steps, as what comes next is not known: the first that is not all history being loaded is the last.
        while (more := min(limit, looked_at + self.task.live_limit) - len(records)) > 0:
            messages = self._consumer.consume(more, max(0.0, until_s - time.monotonic()))
            records += map(self._read, messages)
            if len(messages) < more or any(BACKFILL not in record.headers for record in records[looked_at:]):
                break
            looked_at = len(records)
        # After a rebalance in here there may be records of a partition that has left, and twice those of one that is back.
        ours = (record for record in records if record.offset >= self._next.get(record.partition, record.offset + 1))
        return list({(record.partition, record.offset): record for record in ours}.values())

    def _read(self, message: Message) -> Record:
        error = message.error()
        if error is not None:
            raise Stopped(f"{self.role}: {clients.explain(error, 'start it again')}")
        return read_record(message)

    def _process(self, records: Sequence[Record]) -> list[Output]:
        """Steps 2 to 4: the batch at once or, where a predecessor ended over it, record by record."""
        if not self._attempts.suspects(records):
            return self._try(records)
        log.warning("%s: the last process ended over some of %d records, now one at a time", self.role, len(records))
        outputs = []
        for record in records:
            if self._attempts.is_hopeless(record):
                outputs.append(self._put_aside(record))
            else:
                outputs += self._try([record])
        return outputs

    def _try(self, records: Sequence[Record]) -> list[Output]:
        with (
            self._attempts.trying(records),
            self._watchdog.limit(f"processing {len(records)} records", PROCESS_LIMIT_S),
        ):
            return self.task.process(records, self.state)

    def _put_aside(self, record: Record) -> Output:
        where = f"{record.topic}:{record.partition}:{record.offset}"
        log.error("%s: %s has ended its process %d times, it goes to rejects", self.role, where, LAST_ATTEMPT)
        error = BadEvent("poison_crash", f"it ended its process {LAST_ATTEMPT} times; the log says where it stood")
        return put_aside(record, error, self.role, self._rejects)

    def _changes(self) -> Iterator[Output]:
        return (Output(self.changelog, key.encode(), value, (), p) for p, key, value in self.state.changes())

    def _offsets(self, records: Sequence[Record]) -> list[TopicPartition]:
        ends = _ends(records).items()
        return [TopicPartition(self.input, partition, offset, self._topic.id) for partition, offset in ends]

    def _go_back(self, records: Sequence[Record]) -> None:
        self.state.drop()
        self._room = max(1, self._room // 2)
        for partition in _ends(records).keys() & self._next.keys():
            self._consumer.seek(TopicPartition(self.input, partition, self._next[partition]))

    def _make_room(self, count: int, took_s: float) -> None:
        """As many records in the next batch as the broker takes in good time."""
        if took_s > SLOW_S:
            self._room = max(1, min(self._room, count) // 2)
        elif took_s < QUICK_S and self._room < self.task.batch_limit:
            self._room *= 2
        telemetry.BATCH_RECORDS.labels(self.role).set(self._room)

    def _count(self, records: Sequence[Record], outputs: Sequence[Output]) -> None:
        telemetry.RECORDS.labels(self.role).inc(len(records))
        for output in outputs:
            if output.topic == self._rejects:
                telemetry.REJECTS.labels(self.role, reason_class(output.headers)).inc()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        telemetry.REBALANCES.labels(self.role, "assigned").inc()
        self._health.waiting_for = "its state"
        try:
            self._take_over(consumer, partitions)
        except KafkaException as error:  # through the client's callback it would become what no `except` catches
            raise Stopped(f"{self.role}: no partitions, {clients.explain(error.args[0], 'start it again')}") from error
        self._health.waiting_for = ""  # without partitions it stands by

    def _take_over(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Committed offsets first, then the changelog to its end, then consume."""
        committed = consumer.committed(partitions, timeout=30)
        self._topic.take(committed)
        numbers = [tp.partition for tp in partitions]
        reader = clients.reader(self.settings)
        started_s = time.monotonic()
        in_memory = self.settings.state == "memory"
        held, count = restore(
            self._admin, reader, self.changelog, numbers, self._folder, in_memory=in_memory, beat=self._health.beat
        )
        reader.close()
        self.restored += count
        oldest = begin_offsets(self._admin, self.input, numbers)
        for tp in committed:
            self.state.adopt(tp.partition, held[tp.partition])
            if tp.error is not None:
                raise KafkaException(tp.error)
            if tp.offset < 0:  # the group's first start: from the beginning, never silently from the end
                tp.offset = oldest[tp.partition]
                if tp.offset > 0 and any(True for _ in held[tp.partition].items()):  # nor its first: it was forgotten
                    raise Stopped(
                        f"{self.role}: partition {tp.partition} has state, but group {self._group} has no offset there, and "
                        f"{self.input} begins at {tp.offset}: what came before may not have been read. A broker forgets a "
                        "stopped group's offsets (offsets.retention.minutes); docs/operations.md says how to go on"
                    )
            self._next[tp.partition] = tp.offset
        consumer.assign(committed)
        took_s = time.monotonic() - started_s
        telemetry.RESTORE_SECONDS.labels(self.role).set(took_s)
        telemetry.RESTORE_RECORDS.labels(self.role).inc(count)
        log.info("%s: partitions %s, %d changelog records in %.2f s", self.role, numbers, count, took_s)

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """No batch is open inside poll, so there is nothing to commit: only to forget."""
        telemetry.REBALANCES.labels(self.role, "revoked").inc()
        self._release([tp.partition for tp in partitions])

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Others have them already. Nothing of ours is open, so there is nothing to abort either."""
        telemetry.REBALANCES.labels(self.role, "lost").inc()
        self._health.waiting_for = "partitions"  # until it is back in its group
        log.warning(
            "%s: lost partitions %s: it was silent for too long", self.role, [tp.partition for tp in partitions]
        )
        self._release([tp.partition for tp in partitions])

    def _release(self, partitions: list[int]) -> None:
        for partition in partitions:
            self._next.pop(partition, None)
            self.state.release(partition)
        self._lag.forget(partitions)


def _ends(records: Sequence[Record]) -> dict[int, int]:
    """Per partition, the offset after the last record. Records of a partition come in order."""
    return {record.partition: record.offset + 1 for record in records}
