"""The transactional producer of one worker: a batch's outputs and offsets, all or nothing.

What the client's errors mean, in this order: retriable → the same call again; abortable → abort, the caller goes back;
fatal or unknown → Stopped, the process ends and its successor, of the same transactional id, fences and aborts what was
left open. A commit that timed out is repeated, never aborted: it may have happened. Called by the worker.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from recsys.errors import SlatecastError
from streams import clients, telemetry
from streams.failpoints import reach
from streams.records import Output
from streams.settings import Settings
from streams.watchdog import Watchdog

log = logging.getLogger(__name__)

CALL_LIMIT_S = clients.TRANSACTION_TIMEOUT_S + 10  # send_offsets ignores its time-out (librdkafka 5456)


class Stopped(SlatecastError):
    """The worker cannot go on and must be started anew."""

    exit_code = 70


class Aborted(Exception):
    """The transaction is undone; its batch is to be processed again."""


class Transactions:
    """begin → produce → send offsets → flush → commit. Not thread-safe."""

    def __init__(self, settings: Settings, role: str, instance: str, watchdog: Watchdog) -> None:
        self._role, self._watchdog = role, watchdog
        for result in ("commit", "abort", "fatal"):
            telemetry.TRANSACTIONS.labels(role, result)  # an alarm needs the 0 before the first
        self._producer = clients.producer(settings, transactional_id=f"{settings.prefix}{role}.{instance}")
        self._failed: KafkaError | None = None
        self._change_ends: dict[int, int] = {}

    def fence(self) -> None:
        """Take the transactional id over: a predecessor can commit nothing more, its open transaction is aborted."""
        try:
            self._call("init_transactions", self._producer.init_transactions, 30)
        except KafkaException as exception:
            raise self._stopped(exception.args[0]) from exception

    def commit(
        self,
        outputs: Sequence[Output],
        changes: Iterable[Output],
        offsets: list[TopicPartition],
        consumer: Consumer,
    ) -> Mapping[int, int]:
        """Make a batch durable; where each changelog partition goes on after its `changes`.

        Raises Aborted when nothing of it is, Stopped when nobody can say.
        """
        started_s = time.perf_counter()
        self._failed, self._change_ends = None, {}
        try:
            self._producer.begin_transaction()
            for output in outputs:
                self._produce(output, self._delivered)
            for change in changes:
                self._produce(change, self._change_delivered)
            reach("after_produce")
            # Before the flush, while the records are on their way; and so that the broker knows of the transaction if
            # they fail: it refuses to abort what it never heard of. The group as it is now: a stale one is refused.
            self._call("send_offsets", lambda: self._send_offsets(offsets, consumer))
            reach("after_send_offsets")
            self._call("flush", self._flush)
            reach("after_flush")
            if self._failed is not None:  # never commit what is not all there, whatever the client thinks
                raise KafkaException(self._failed)
            reach("before_commit")
            self._call("commit", self._producer.commit_transaction, -1)
        except (KafkaException, SystemError) as exception:
            self._give_up(_kafka_error(exception))
            telemetry.TRANSACTIONS.labels(self._role, "abort").inc()
            raise Aborted(str(exception)) from None
        telemetry.TRANSACTIONS.labels(self._role, "commit").inc()
        telemetry.TRANSACTION_SECONDS.labels(self._role).observe(time.perf_counter() - started_s)
        reach("after_commit")
        return self._change_ends

    def _produce(self, output: Output, delivered: Callable[[KafkaError | None, Message], None]) -> None:
        while True:
            try:
                self._producer.produce(
                    output.topic,
                    output.value,
                    output.key,
                    output.partition,
                    on_delivery=delivered,
                    headers=list(output.headers),
                )
            except BufferError:  # the local queue is full: let it drain
                self._producer.poll(0.1)
            else:
                return

    def _flush(self) -> None:
        while self._producer.flush(1):
            pass  # the watchdog bounds it: what is not delivered in the transaction's time is not delivered

    def _send_offsets(self, offsets: list[TopicPartition], consumer: Consumer) -> None:
        self._producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), 30)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            return
        # The first says why, later ones only that the transaction is lost; but what the client then purges may be
        # reported before the record that the broker refused (2 times in 500).
        if self._failed is None or self._failed.code() < 0 < error.code():
            self._failed = error

    def _change_delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._delivered(error, message)
        else:
            self._change_ends[message.partition() or 0] = (message.offset() or 0) + 1

    def _call(self, what: str, call: Callable[..., Any], *arguments: object) -> None:
        """One call of the transactional API, again as long as the client says that it may be repeated."""
        with self._watchdog.limit(what, CALL_LIMIT_S, asks_broker=True):
            while True:
                try:
                    call(*arguments)
                except KafkaException as exception:
                    if not exception.args[0].retriable():
                        raise
                    log.info("%s: %s, %s again", self._role, exception.args[0].str(), what)
                else:
                    return

    def _give_up(self, error: KafkaError) -> None:
        """Undo a failed transaction, or end."""
        if error.fatal() or not (error.txn_requires_abort() or self._failed):
            raise self._stopped(error) from None
        try:
            self._call("abort", self._producer.abort_transaction, 30)
        except KafkaException as exception:
            raise self._stopped(exception.args[0]) from None
        # Only now: the call that failed may have known before it was reported (23 in 500); aborting reports all.
        refused = self._failed
        if refused is not None and refused.code() > 0:  # the broker's own word: it would say the same again
            why = f"the broker refused a record ({refused.str()}); mend its topic's settings"
            raise Stopped(f"{self._role}: {why}")

    def _stopped(self, error: KafkaError) -> Stopped:
        telemetry.TRANSACTIONS.labels(self._role, "fatal").inc()
        return Stopped(f"{self._role}: {clients.explain(error, 'start it again')}")


def _kafka_error(exception: KafkaException | SystemError) -> KafkaError:
    """What the client said. When a fatal error and a delivery report come out of one call, the binding raises a
    SystemError ("returned a result with an exception set") that was caused by the real one.
    """
    cause = exception if isinstance(exception, KafkaException) else exception.__cause__
    if not isinstance(cause, KafkaException):
        raise exception
    error: KafkaError = cause.args[0]
    return error
