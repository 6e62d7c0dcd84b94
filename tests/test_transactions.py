"""On the real broker: commits whose outcome is not known, and records that it refuses."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from stream_helpers import read_topic

from streams import clients
from streams.lag import committed_offsets
from streams.records import Output
from streams.settings import Settings
from streams.transactions import Stopped, Transactions
from streams.watchdog import Watchdog


class Wrapped:
    """A real producer, but for what a subclass says."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Doubtful(Wrapped):
    """Its first commit may or may not have happened, as far as its caller is told."""

    def __init__(self, real: Any, first: Callable[[Any], None]) -> None:
        super().__init__(real)
        self._first, self.called = first, list[str]()

    def commit_transaction(self, *arguments: float) -> None:
        self.called.append("commit")
        if len(self.called) == 1:
            self._first(self._real)
        else:
            self._real.commit_transaction(*arguments)

    def abort_transaction(self, *arguments: float) -> None:
        self.called.append("abort")
        self._real.abort_transaction(*arguments)


class ReportsLate(Wrapped):
    """Of a refused record its caller learns by the next call, before the record's report."""

    def send_offsets_to_transaction(self, *arguments: Any) -> None:
        while True:
            self._real.send_offsets_to_transaction(*arguments)


class ReportsPurgedFirst(Wrapped):
    """Before a record that was refused it reports one that it purged."""

    def produce(self, *arguments: Any, on_delivery: Callable[..., None], **named: Any) -> None:
        def purged_first(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                on_delivery(KafkaError(KafkaError._PURGE_QUEUE), message)
            on_delivery(error, message)

        self._real.produce(*arguments, on_delivery=purged_first, **named)


@pytest.fixture
def member(settings: Settings) -> Iterator[Consumer]:
    consumer = clients.consumer(settings, f"{settings.prefix}ranker")
    yield consumer
    consumer.close()


def fenced_in(settings: Settings, first: Callable[[Any], None]) -> tuple[Transactions, Doubtful]:
    return with_producer(settings, lambda real: Doubtful(real, first))


def with_producer(settings: Settings, wrapped: Callable[[Any], Any]) -> tuple[Transactions, Any]:
    transactions = Transactions(settings, "ranker", "0", Watchdog("ranker"))
    transactions._producer = producer = wrapped(transactions._producer)
    transactions.fence()
    return transactions, producer


def commit(settings: Settings, transactions: Transactions, member: Consumer, text: bytes) -> None:
    at = TopicPartition(settings.prefix + "events", 0, 1)
    transactions.commit([Output(settings.prefix + "slates", b"u1", text)], [], [at], member)


def time_out(real: Any) -> None:
    """Nearly always: on a busy machine the broker may have answered before the client looks."""
    real.commit_transaction(0.0001)


def happen_unseen(real: Any) -> None:
    real.commit_transaction(-1)
    raise KafkaException(KafkaError(KafkaError._FAIL, "no answer"))


def test_a_commit_that_timed_out_is_repeated_and_never_undone(settings: Settings, member: Consumer) -> None:
    transactions, producer = fenced_in(settings, time_out)
    texts = []
    while producer.called != ["commit", "commit"]:
        assert len(texts) < 50, "no commit has timed out"
        assert producer.called in ([], ["commit"])
        producer.called.clear()
        texts.append(b"once, %d" % len(texts))
        commit(settings, transactions, member, texts[-1])
    assert [record.value for record in read_topic(settings, "slates")] == texts
    assert committed_offsets(settings, "ranker", "events", [0]) == {0: 1}


def test_a_commit_of_which_nobody_can_say_ends_the_process_and_the_broker_tells_its_successor(
    settings: Settings, member: Consumer
) -> None:
    transactions, producer = fenced_in(settings, happen_unseen)
    with pytest.raises(Stopped, match="no answer; start it again"):
        commit(settings, transactions, member, b"once")
    assert producer.called == ["commit"]
    fenced_in(settings, time_out)
    assert committed_offsets(settings, "ranker", "events", [0]) == {0: 1}, "it did happen: nothing is read again"
    assert [record.value for record in read_topic(settings, "slates")] == [b"once"]


@pytest.mark.parametrize("order", [ReportsLate, ReportsPurgedFirst])
def test_a_record_that_the_broker_refuses_ends_the_process_in_whatever_order_the_client_tells(
    settings: Settings, member: Consumer, order: type[Wrapped]
) -> None:
    transactions, _ = with_producer(settings, order)
    with pytest.raises(Stopped, match="the broker refused a record .*Message size too large.*topic's settings"):
        commit(settings, transactions, member, Random(7).randbytes(1_100_000))
    assert committed_offsets(settings, "ranker", "events", [0]) == {0: 0}, "not committed"
