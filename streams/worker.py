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

On abort: drop the overlay, seek back to where the batch began. A retriable error: the same call again. A fatal or
unknown one: leave by exception; the process ends and a supervisor starts another, which fences this one.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from recsys.errors import SlatecastError
from streams import clients
from streams.records import Output, Record, read_record
from streams.settings import Settings
from streams.state import State, begin_offsets, restore

log = logging.getLogger(__name__)

LINGER_S = 0.005  # a batch waits this long for company: a transaction costs about 5 ms whatever is in it
IDLE_S = 0.1
CALL_LIMIT_S = clients.TRANSACTION_TIMEOUT_S + 10  # send_offsets ignores its time-out (librdkafka 5456): a watchdog


class Task(Protocol):
    """What a role does with records. It writes state through `state.put` and returns what to produce."""

    topic: str  # input, without the prefix
    changelog: str  # the topic its state is written to, partition by partition
    batch_limit: int  # records it wants at most in the next batch

    def refresh(self) -> None:
        """Called between batches: read what others publish. Must not block."""
        ...

    def process(self, records: Sequence[Record], state: State) -> list[Output]:
        """Steps 2 to 4 for one batch. Deterministic in records, state and what `refresh` has read."""
        ...

    def committed(self) -> None:
        """The batch just processed is durable."""
        ...


class Stopped(SlatecastError):
    """The worker cannot go on and must be started anew."""

    exit_code = 70


class Worker:
    """One consumer, one transactional producer, one task. Not thread-safe: `run` owns it."""

    def __init__(self, settings: Settings, role: str, task: Task, instance: str) -> None:
        self.task, self.role, self.state = task, role, State()
        self.settings = settings
        self.input = settings.prefix + task.topic
        self.changelog = settings.prefix + task.changelog
        self.processed = 0  # records whose transaction has committed
        self.restored = 0
        self._next: dict[int, int] = {}  # own bookkeeping of offsets: control records leave gaps
        self._last_change: dict[int, int] = {}
        self._failed: KafkaError | None = None
        self._deadline_s = float("inf")
        self._group = f"{settings.prefix}{role}"
        self._consumer = clients.consumer(settings, self._group, instance_id=f"{role}-{instance}")
        self._producer = clients.producer(settings, transactional_id=f"{settings.prefix}{role}.{instance}")
        self._admin = clients.admin(settings)

    def run(self, stop: threading.Event, after_batch: Callable[[], None] = lambda: None) -> None:
        """Work until `stop` is set; the batch in hand is committed first."""
        threading.Thread(target=self._watch, name=f"{self.role}-watchdog", daemon=True).start()
        try:
            self._call(self._producer.init_transactions, 30)  # fences and aborts the predecessor, before any offset
            self._consumer.subscribe(
                [self.input], on_assign=self._assigned, on_revoke=self._released, on_lost=self._released
            )
            while not stop.is_set():
                self.step()
                after_batch()
        except KafkaException as error:
            raise Stopped(f"{self.role}: {error.args[0].str()}; start it again") from error
        finally:
            self._deadline_s = float("inf")
            self._consumer.close()

    def step(self) -> None:
        """One batch, from poll to merge; nothing if nothing came."""
        records = self._poll()
        self.task.refresh()
        if not records:
            return
        try:
            self._commit(records, self.task.process(records, self.state))
        except KafkaException as exception:
            self._give_up(exception.args[0], records)
            return
        self.state.merge()
        self.processed += len(records)
        self._next.update(_ends(records))
        self.task.committed()

    def _poll(self) -> list[Record]:
        first = self._consumer.poll(IDLE_S)
        if first is None:
            return []
        records = []
        for message in (first, *self._consumer.consume(self.task.batch_limit - 1, LINGER_S)):
            error = message.error()
            if error is not None:
                gone = error.code() == KafkaError._AUTO_OFFSET_RESET  # noqa: SLF001 - the client's public constant
                why = "; the topic no longer has what was to be read next, or is another one" if gone else ""
                raise Stopped(f"{self.role}: {error.str()}{why}")
            record = read_record(message)
            # After a rebalance inside poll the client may still hand out records of a partition that has left.
            if record.offset >= self._next.get(record.partition, record.offset + 1):
                records.append(record)
        return records

    def _commit(self, records: Sequence[Record], outputs: Sequence[Output]) -> None:
        self._failed = None
        self._producer.begin_transaction()
        for output in outputs:
            self._produce(output)
        for partition, key, value in self.state.changes():
            self._produce(Output(self.changelog, key.encode(), value, (), partition))
        offsets = [TopicPartition(self.input, partition, offset) for partition, offset in _ends(records).items()]
        self._call(
            lambda: self._producer.send_offsets_to_transaction(offsets, self._consumer.consumer_group_metadata(), 30)
        )
        self._call(self._producer.commit_transaction, -1)
        if self._failed is not None:
            raise Stopped(f"{self.role}: a record was not delivered ({self._failed.str()}) though its batch committed")

    def _produce(self, output: Output) -> None:
        while True:
            try:
                self._producer.produce(
                    output.topic,
                    output.value,
                    output.key,
                    output.partition,
                    on_delivery=self._delivered,
                    headers=list(output.headers),
                )
            except BufferError:  # the local queue is full: let it drain
                self._producer.poll(0.1)
            else:
                return

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and self._failed is None:  # later ones only say that the transaction is lost
            self._failed = error

    def _call(self, call: Callable[..., Any], *arguments: object) -> None:
        """One call of the transactional API, again as long as the client says that it may be repeated."""
        self._deadline_s = time.monotonic() + CALL_LIMIT_S
        while True:
            try:
                call(*arguments)
            except KafkaException as exception:
                if not exception.args[0].retriable():
                    raise
                log.info("%s: %s, again", self.role, exception.args[0].str())
            else:
                self._deadline_s = float("inf")
                return

    def _give_up(self, error: KafkaError, records: Sequence[Record]) -> None:
        """A failed transaction: abort, forget, and go back to where the batch began; or end the process."""
        if error.fatal() or not error.txn_requires_abort():
            raise Stopped(f"{self.role}: {error.str()}; start it again") from None
        self._call(self._producer.abort_transaction, 30)
        if self._failed is not None and self._failed.code() > 0:  # by the broker, which would say the same again
            raise Stopped(f"{self.role}: the broker refused a record ({self._failed.str()}); mend its topic's settings")
        log.warning("%s: transaction aborted (%s), %d records again", self.role, error.str(), len(records))
        self.state.drop()
        for partition in _ends(records).keys() & self._next.keys():
            self._consumer.seek(TopicPartition(self.input, partition, self._next[partition]))

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            self._take_over(consumer, partitions)
        except KafkaException as error:  # through the client's callback it would become what no `except` catches
            raise Stopped(f"{self.role}: no partitions, {error.args[0].str()}; start it again") from error

    def _take_over(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Committed offsets first, then the changelog to its end, then consume."""
        committed = consumer.committed(partitions, timeout=30)
        numbers = [tp.partition for tp in partitions]
        reader = clients.reader(self.settings)
        started_s = time.monotonic()
        values, count = restore(self._admin, reader, self.changelog, numbers)
        reader.close()
        self.restored += count
        oldest = begin_offsets(self._admin, self.input, numbers)
        for tp in committed:
            self.state.adopt(tp.partition, values[tp.partition])
            if tp.error is not None:
                raise KafkaException(tp.error)
            if tp.offset < 0:  # the group's first start: from the beginning, never silently from the end
                tp.offset = oldest[tp.partition]
            self._next[tp.partition] = tp.offset
        consumer.assign(committed)
        log.info(
            "%s: partitions %s, %d changelog records in %.2f s", self.role, numbers, count, time.monotonic() - started_s
        )

    def _released(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """No batch is open inside poll, so there is nothing to commit or abort: only to forget."""
        for tp in partitions:
            self._next.pop(tp.partition, None)
            self.state.release(tp.partition)

    def _watch(self) -> None:
        while True:
            time.sleep(1)
            if time.monotonic() > self._deadline_s:
                log.critical(
                    "%s: a broker call has blocked for over %.0f s, ending the process", self.role, CALL_LIMIT_S
                )
                os._exit(70)


def _ends(records: Sequence[Record]) -> dict[int, int]:
    """Per partition, the offset after the last record. Records of a partition come in order."""
    return {record.partition: record.offset + 1 for record in records}
