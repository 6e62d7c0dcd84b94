"""A task that only counts stands in for the ranker: every count is state, and every count is said."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import msgspec
import pytest
from confluent_kafka import Producer, TopicPartition
from stream_helpers import read_topic, send

from streams import clients
from streams.lag import records_behind
from streams.records import Output, Record
from streams.settings import Settings
from streams.state import State
from streams.worker import Stopped, Worker

Wait = Callable[..., None]
ROLE = "counter"


class Count:
    """Counts the records of every key; says each count on `slates`."""

    topic, changelog, batch_limit, live_limit = "events", "profiles", 500, 500

    def __init__(self, settings: Settings) -> None:
        self.says = settings.prefix + "slates"
        self.batches: list[list[tuple[int, int]]] = []  # (partition, offset) of every batch, failed ones included
        self.begun = threading.Event()
        self.commits = 0
        self.before_commit: Callable[[], None] = lambda: None
        self.value: Callable[[int], bytes] = lambda n: b"%d" % n

    def refresh(self) -> None:
        """Nothing to read."""

    def process(self, records: Sequence[Record], state: State) -> list[Output]:
        """One more for each record."""
        self.begun.set()
        self.batches.append([(record.partition, record.offset) for record in records])
        outputs = []
        for record in records:
            key = (record.key or b"").decode()
            n = int(state.get(record.partition, key) or 0) + 1
            state.put(record.partition, key, b"%d" % n)
            outputs.append(Output(self.says, record.key, self.value(n)))
        self.before_commit()
        return outputs

    def committed(self) -> None:
        """The batch is durable."""
        self.commits += 1


class Running(Worker):
    """A worker in a thread, which says when it begins to restore, and with what it ended."""

    def __init__(self, settings: Settings, task: Count, instance: str) -> None:
        super().__init__(settings, ROLE, task, instance)
        self.stop, self.restoring, self.error = threading.Event(), threading.Event(), None
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            self.run(self.stop)
        except Stopped as error:
            self.error = error

    def _assigned(self, consumer: object, partitions: list[TopicPartition]) -> None:
        self.restoring.set()
        super()._assigned(consumer, partitions)  # type: ignore[arg-type]

    @property
    def partitions(self) -> set[int]:
        return set(self._next)

    def end(self) -> None:
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


Start = Callable[..., Running]


@pytest.fixture
def start(settings: Settings) -> Iterator[Start]:
    """Start a worker; all end with the test."""
    workers: list[Running] = []

    def begin(task: Count | None = None, instance: str = "0", own: Settings = settings) -> Running:
        workers.append(Running(own, task or Count(settings), instance))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.end()


def click(settings: Settings, *users: str) -> None:
    send(settings, "events", [(user.encode(), b"x") for user in users])


def quick(settings: Settings) -> Settings:
    """Heartbeats by which a member hears sooner than in 3 s that its group has changed."""
    return msgspec.structs.replace(settings, kafka={"heartbeat.interval.ms": 200})


def counts(settings: Settings) -> dict[str, int]:
    """What the changelog says, committed records only."""
    records = sorted(read_topic(settings, "profiles"), key=lambda record: record.offset)
    return {(record.key or b"").decode(): int(record.value or b"0") for record in records}


def said(settings: Settings) -> Counter[tuple[bytes | None, bytes | None]]:
    return Counter((record.key, record.value) for record in read_topic(settings, "slates"))


def behind(settings: Settings) -> int:
    return records_behind(clients.admin(settings), settings, ROLE, "events")


def open_transaction(settings: Settings, name: str) -> Producer:
    producer = clients.producer(settings, f"{settings.prefix}{name}")
    producer.init_transactions(30)
    producer.begin_transaction()
    return producer


def partition_of(settings: Settings, user: str) -> int:
    return next(r.partition for r in read_topic(settings, "events") if r.key == user.encode())
