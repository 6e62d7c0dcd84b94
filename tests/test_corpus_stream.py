"""The whole corpus among good events, through a worker on the real broker: nothing ends it, and good events come out as
if they had been alone.
"""

import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from random import Random

import msgspec
import pytest
from confluent_kafka import KafkaError, Message
from corpus_helpers import REJECTED, Kind, expected_profiles, read_corpus
from stream_helpers import read_slates, read_topic, send_items
from verdict_helpers import QUERIES, assert_kept

from models.serving import NoModels
from recsys.catalogue import Item
from recsys.events import Cart, Click, Purchase, Search, View, decode_event, encode_event
from streams import clients, topics
from streams.cli.main import main
from streams.materialiser import Materialiser, slate_key
from streams.ranker import RankerTask
from streams.records import BACKFILL, Headers, Output, Record
from streams.rejects import reason_class
from streams.settings import Settings
from streams.worker import Worker

Wait = Callable[..., None]
TIMES = 30  # 85 MiB, of which none may stay
LARGE = 300_000  # bytes of a kind that is sent twice, not thirty times
GOOD = 10_000
MIB = 1024 * 1024


class Stream:
    """What was sent, kind by kind, and where it lies."""

    def __init__(self, settings: Settings) -> None:
        # A stranger's client: it sends larger records than ours.
        own = msgspec.structs.replace(
            settings, kafka={"message.max.bytes": 64 * MIB, "queue.buffering.max.kbytes": 2**20}
        )
        self._producer, self._topic = clients.producer(own), settings.prefix
        self.places: dict[tuple[int, int], Kind] = {}

    def send(self, kinds: Sequence[Kind]) -> None:
        for kind in kinds:
            while True:
                try:
                    self._producer.produce(
                        self._topic + kind.topic,
                        kind.value,
                        kind.key,
                        headers=list(kind.headers),
                        on_delivery=partial(self._delivered, kind),
                    )
                except BufferError:
                    self._producer.poll(0.1)
                else:
                    break
        assert self._producer.flush(30) == 0

    def _delivered(self, kind: Kind, error: KafkaError | None, message: Message) -> None:
        assert error is None, f"{kind.name}: {error}"
        if kind.topic == "events":
            self.places[message.partition() or 0, message.offset() or 0] = kind


class Ranker:
    """A ranker in a thread, which notes how much memory each batch leaves in use."""

    def __init__(self, settings: Settings) -> None:
        self.task = RankerTask(settings, NoModels())
        self.task.shelf.catch_up()
        self.task.warm_up()  # else the watchdog would take a compiler at work for a record that hangs
        self.worker, self._stop = Worker(settings, "ranker", self.task, "0"), threading.Event()
        self.error: BaseException | None = None
        self.rss: list[int] = [memory()]
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self.worker.run(self._stop, self._after_batch)
        except BaseException as error:
            self.error = error

    def _after_batch(self) -> None:
        self.rss.append(memory())

    def reach(self, count: int, wait_for: Wait) -> None:
        def there() -> bool:
            assert self.error is None, self.error
            return self.worker.processed >= count

        wait_for(there, 60)
        assert self.worker.processed == count

    def end(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert self.error is None


def memory() -> int:
    """Bytes of this process in memory, 0 where nobody says."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.exists() else 0


def good_events(now_ms: int) -> list[Kind]:
    """A quiet shop of 500 users, as kinds that are used."""
    rng, kinds = Random(7), (View, Click, Cart, Purchase)
    made = [
        kinds[rng.randrange(4)](
            user=f"good-{n % 500}", item=f"i{rng.randrange(12)}", ts_ms=now_ms - 86_400_000 + n * 1000, id=f"e{n}"
        )
        for n in range(GOOD)
    ]
    return [
        Kind(f"good/{n}", "used", "", "events", e.user.encode(), encode_event(e), (BACKFILL,))
        for n, e in enumerate(made)
    ]


def test_the_whole_corpus_among_good_events_changes_nothing_for_them(
    settings: Settings,
    wait_for: Wait,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    now_ms = time.time_ns() // 1_000_000
    corpus = read_corpus(now_ms)
    kinds = [kind for kind in corpus if kind.topic == "events"]
    needed = {name for kind in kinds for name in kind.after}
    first = [kind for kind in kinds if kind.name in needed]
    giants = [kind for kind in kinds if kind.size > MIB]
    often = [kind for kind in kinds if kind.size <= MIB for _ in range(2 if kind.size > LARGE else TIMES)]
    good = good_events(now_ms)
    mixed = [*good, *often]
    Random(7).shuffle(mixed)
    # Live events of the strangest users: they get lists, of items with the strangest titles.
    odd = [kind for kind in kinds if kind.name.startswith("values/user-") and kind.verdict == "used"]
    live = [
        Kind(
            f"live/{n}",
            "used",
            "",
            "events",
            kind.key,
            encode_event(Click(user=(kind.key or b"").decode(), item="i1", ts_ms=now_ms, id="l")),
        )
        for n, kind in enumerate(odd)
    ]

    titles = [event.query for kind in QUERIES if isinstance(event := decode_event(kind.value or b""), Search)]
    stream = Stream(settings)
    stream.send([kind for kind in corpus if kind.topic == "items"])
    send_items(settings, [Item(item=f"i{n}", title=f"Thing {n}") for n in range(12)])
    send_items(
        settings, [Item(item=f"t{n}", title=title, category=title, brand=title) for n, title in enumerate(titles)]
    )
    stream.send([*first, *mixed])
    load_what_lists_need(settings, live[0], wait_for)
    ranker = Ranker(settings)
    try:
        ranker.reach(len(first) + len(mixed), wait_for)
        growth = max(ranker.rss) - ranker.rss[0]
        stream.send([*giants, *live])
        ranker.reach(len(stream.places), wait_for)
    finally:
        ranker.end()
    assert growth < 128 * MIB  # measured: 92 to 98 MiB, most of it the client's queues

    sent = list(stream.places.values())
    profiles = {(r.key or b"").decode(): r.value for r in read_topic(settings, "profiles")}
    assert profiles == expected_profiles(sent)
    assert sum(kind.name.startswith("good/") for kind in sent) == GOOD
    used = {kind.name for kind in sent if kind.verdict == "used"}
    assert ranker.task.counts["events"] == len(used)
    assert_put_aside(settings, stream.places)

    assert sum(ranker.task.shelf.bad_items.values()) == sum(k.verdict in REJECTED for k in corpus if k.topic == "items")
    slates = {slate.user: slate for slate in read_slates(settings)}
    assert slates.keys() >= {(kind.key or b"").decode() for kind in live}
    shown = {item.title for slate in slates.values() for item in slate.items}
    assert shown & set(titles), "a title is data, shown as it came"
    assert all(line.isprintable() for line in caplog.messages)
    redis_has_its_own_keys_only(settings, slates.keys(), wait_for)

    for command in (["list"], ["list", "--class", "schema"]):
        monkeypatch.setattr(
            sys,
            "argv",
            ["slatecast", "rejects", *command, "--bootstrap", settings.bootstrap, "--prefix", settings.prefix],
        )
        with pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code
        out, err = capsys.readouterr()
        assert out
        assert (out + err).replace("\n", "").isprintable()


def load_what_lists_need(settings: Settings, click: Kind, wait_for: Wait) -> None:
    """Make a list on topics of its own: the first of a process takes 145 MiB, which is no leak."""
    other = msgspec.structs.replace(settings, prefix=f"first-{settings.prefix}")
    topics.apply(clients.check_broker(other), other)
    send_items(other, [Item(item=name, title=name) for name in ("i1", "i2")])
    Stream(other).send([click])
    ranker = Ranker(other)
    try:
        ranker.reach(1, wait_for)
    finally:
        ranker.end()
    assert read_slates(other)


def assert_put_aside(settings: Settings, places: dict[tuple[int, int], Kind]) -> None:
    """One reject for each bad record and for no other, with its class, key and value."""
    expected = {place: kind for place, kind in places.items() if kind.verdict in REJECTED}
    topic = settings.prefix + "events"
    found = [
        (Record(topic, *_source(r.headers), 0, *_original(expected, r)), r) for r in read_topic(settings, "rejects")
    ]
    assert Counter((record.partition, record.offset) for record, _ in found) == Counter(dict.fromkeys(expected, 1))
    for record, reject in found:
        kind = expected[record.partition, record.offset]
        assert reason_class(reject.headers) == kind.verdict, kind.name
        assert_kept(Output(reject.topic, reject.key, reject.value, reject.headers), record)


def _source(headers: Headers) -> tuple[int, int]:
    said = dict(headers)
    return int(said["__connect.errors.partition"]), int(said["__connect.errors.offset"])


def _original(expected: dict[tuple[int, int], Kind], reject: Record) -> tuple[bytes | None, bytes | None, Headers]:
    kind = expected[_source(reject.headers)]
    return kind.key, kind.value, kind.headers


def redis_has_its_own_keys_only(settings: Settings, users: Iterable[str], wait_for: Wait) -> None:
    """Whatever users are called, each has one key, and there are no others."""
    expected = {slate_key(settings, user).encode() for user in users}
    materialiser, stop = Materialiser(settings, "0"), threading.Event()
    thread = threading.Thread(target=materialiser.run, args=(stop,), daemon=True)
    thread.start()
    redis = clients.redis_client(settings)
    prefix = settings.prefix.encode()
    wait_for(lambda: {key for key in redis.scan_iter(count=1000) if key.startswith(prefix + b"slate:")} >= expected)
    stop.set()
    thread.join(20)
    own = {key for key in redis.scan_iter(count=1000) if key.startswith(prefix)}
    assert {key for key in own if not key.startswith(prefix + b"applied:")} == expected
    redis.close()
