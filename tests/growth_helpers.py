"""Two generations of topics for the tests of growth: one that has worked, the next, and the roles of either."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
import pytest
from confluent_kafka import TopicPartition
from stream_helpers import read_topic

from models.serving import NoModels
from recsys import diversify
from recsys.catalogue import Item, encode_item
from recsys.events import Click, Event, Purchase, encode_event, event_hash
from recsys.profiles import EMPTY, Profile, apply, encode_profile
from recsys.signals import Increment, Signal
from streams import clients, growth
from streams.growth import Stand, look, next_generation
from streams.ranker import RankerTask
from streams.records import Record
from streams.settings import Settings
from streams.signals import SignalsTask, encode_increment
from streams.state import end_offsets
from streams.worker import Task, Worker

Wait = Callable[..., None]
Start = Callable[[Settings], RankerTask]
NOW_MS = time.time_ns() // 1_000_000
ITEMS = [Item(item=f"i{n}", title=f"Thing {n}", price=1.0 + n) for n in range(12)]
INCREMENTS = [encode_increment(Increment(n, buyers=1)) for n in range(12)]
USERS = [f"u{n}" for n in range(40)]


@pytest.fixture
def new(settings: Settings) -> Settings:
    """The next generation: a number of partitions that is no multiple."""
    return next_generation(settings, settings.prefix + "g2.", 7)


class Running:
    """A worker in a thread."""

    def __init__(self, settings: Settings, role: str, task: Task) -> None:
        # The shortest that a broker grants: a stopped static member is a member for so long.
        own = msgspec.structs.replace(
            settings, kafka={"session.timeout.ms": 6000, "topic.metadata.refresh.interval.ms": 200}
        )
        self.worker, self._stop = Worker(own, role, task, "0"), threading.Event()
        self._thread = threading.Thread(target=self.worker.run, args=(self._stop,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def start() -> Iterator[Start]:
    """Run the ranker and the aggregator of a generation; `start.end()` ends all, and so does the test."""
    running: list[Running] = []

    def begin(settings: Settings) -> RankerTask:
        task = RankerTask(settings, NoModels())
        diversify.warm_up()  # else the watchdog would take a compiler at work for a record that hangs
        task.shelf.catch_up()
        running.extend((Running(settings, "signals", SignalsTask(settings)), Running(settings, "ranker", task)))
        return task

    def end() -> None:
        while running:
            running.pop().end()

    begin.end = end  # type: ignore[attr-defined]
    yield begin
    end()


def clicks(users: Sequence[str], tag: str, kind: type[Click | Purchase] = Click) -> list[Event]:
    return [
        kind(user=user, item=f"i{(n + len(tag)) % 12}", ts_ms=NOW_MS + n, id=f"{tag}{user}")
        for n, user in enumerate(users)
    ]


def profiles_of(*events: Event) -> dict[bytes, bytes]:
    """What the events make of their users, by the code that serves."""
    profiles: dict[str, Profile] = {}
    for event in events:
        before = profiles.get(event.user, EMPTY)
        profiles[event.user] = apply(before, event, event_hash(event, encode_event(event)))
    return {user.encode(): encode_profile(profile) for user, profile in profiles.items()}


def last(settings: Settings, topic: str) -> dict[bytes | None, Record]:
    """The last record of every key."""
    return {record.key: record for record in sorted(read_topic(settings, topic), key=lambda record: record.offset)}


def values(settings: Settings, topic: str) -> dict[bytes | None, bytes | None]:
    return {key: record.value for key, record in last(settings, topic).items()}


def places(settings: Settings, topic: str) -> dict[bytes | None, int]:
    """Where each key lies; it must lie in one partition only."""
    found = {(record.key, record.partition) for record in read_topic(settings, topic)}
    assert len(dict(found)) == len(found)
    return dict(found)


def ends(settings: Settings) -> dict[str, dict[int, int]]:
    """All topics of a prefix, and where they end."""
    admin = clients.admin(settings)
    names = sorted(name for name in admin.list_topics(timeout=10).topics if name.startswith(settings.prefix))
    return {name: end_offsets(admin, name, clients.partitions_of(admin, name)) for name in names}


def commit(settings: Settings, role: str, topic: str) -> None:
    """The role has read its input to the end."""
    consumer, name = clients.consumer(settings, settings.prefix + role), settings.prefix + topic
    positions = [TopicPartition(name, p, end) for p, end in ends(settings)[name].items() if end]
    consumer.commit(offsets=positions, asynchronous=False)
    consumer.close()


def lived_in(settings: Settings) -> None:
    """A generation that has worked, and stopped: state, and inputs of which the second half is unread."""
    producer = clients.producer(settings)

    def put(topic: str, records: Iterable[tuple[bytes, bytes]], **headers: bytes) -> None:
        for key, value in records:
            producer.produce(settings.prefix + topic, value, key, headers=list(headers.items()))

    put("items", [(i.item.encode(), encode_item(i)) for i in ITEMS])
    put("profiles", profiles_of(*clicks(USERS, "older")).items())
    put("profiles", profiles_of(*clicks(USERS, "read")).items())
    put("signals", [(i.item.encode(), msgspec.msgpack.encode(Signal(n))) for n, i in enumerate(ITEMS)])
    put("slates", [(user.encode(), b"slate of " + user.encode()) for user in USERS], schema=b"s1", key=b"k1")
    put("events", [(e.user.encode(), encode_event(e)) for e in clicks(USERS, "read")])
    put("pairs", [(b"i1", encode_increment(Increment(1)))])
    assert producer.flush(10) == 0
    commit(settings, "ranker", "events")
    commit(settings, "signals", "pairs")
    put("events", [(e.user.encode(), encode_event(e)) for e in clicks(USERS, "unread")], trace=b"7")
    put("pairs", [(i.item.encode(), increment) for i, increment in zip(ITEMS, INCREMENTS, strict=True)])
    assert producer.flush(10) == 0


def grow(old: Settings, new: Settings) -> Stand:
    """Both steps at once; what the second did."""
    if look(old, new).create:
        growth.run(old, new)
    return growth.run(old, new)
