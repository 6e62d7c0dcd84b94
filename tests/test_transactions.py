"""A commit whose outcome is not known, on the real broker: repeated, never undone; or the successor finds it out."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from stream_helpers import read_topic

from streams import clients
from streams.lag import committed_offsets
from streams.records import Output
from streams.settings import Settings
from streams.transactions import Stopped, Transactions
from streams.watchdog import Watchdog


class Doubtful:
    """A producer whose first commit may or may not have happened, as far as its caller is told."""

    def __init__(self, real: Any, first: Callable[[Any], None]) -> None:
        self._real, self._first, self.called = real, first, list[str]()

    def commit_transaction(self, *arguments: float) -> None:
        self.called.append("commit")
        if len(self.called) == 1:
            self._first(self._real)
        else:
            self._real.commit_transaction(*arguments)

    def abort_transaction(self, *arguments: float) -> None:
        self.called.append("abort")
        self._real.abort_transaction(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.fixture
def member(settings: Settings) -> Iterator[Consumer]:
    consumer = clients.consumer(settings, f"{settings.prefix}ranker")
    yield consumer
    consumer.close()


def fenced_in(settings: Settings, first: Callable[[Any], None]) -> tuple[Transactions, Doubtful]:
    transactions = Transactions(settings, "ranker", "0", Watchdog("ranker"))
    transactions._producer = doubtful = Doubtful(transactions._producer, first)
    transactions.fence()
    return transactions, doubtful


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
