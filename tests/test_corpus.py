"""What strangers send gets the verdict of the corpus: used, known, or put aside once with its bytes. Nothing ends a role.

Each kind alone through the ranker's own code, then all of them at once through a worker on the real broker.
"""

import hashlib
import logging
import os
import subprocess
import sys
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random

import msgspec
import pytest
from confluent_kafka import KafkaError, Message
from corpus_helpers import FOLDER, REJECTED, Kind, read_corpus
from stream_helpers import read_slates, read_topic, send_events, send_items

from models.serving import NoModels
from recsys.catalogue import Item
from recsys.events import Cart, Click, Purchase, Search, View, decode_event, encode_event, event_hash
from recsys.profiles import EMPTY, PROFILE_MAX_BYTES, Profile, apply, decode_profile, encode_profile
from streams import clients, topics
from streams.cli.main import main
from streams.materialiser import Materialiser, slate_key
from streams.ranker import RankerTask
from streams.records import BACKFILL, Headers, Output, Record
from streams.rejects import WHOLE_BYTES, reason_class
from streams.settings import Settings
from streams.state import Held, State
from streams.worker import Worker

Wait = Callable[..., None]
NOW_MS = 1_764_000_000_000
CORPUS = read_corpus(NOW_MS)
BY_NAME = {kind.name: kind for kind in CORPUS}
EVENTS = [kind for kind in CORPUS if kind.topic == "events"]
QUERIES = [kind for kind in EVENTS if kind.group == "text" and kind.verdict == "used"]
ITEMS = [kind for kind in CORPUS if kind.topic == "items"]
TIMES = 30  # 85 MiB, of which none may stay
LARGE = 300_000  # bytes of a kind that is sent twice, not thirty times
GOOD = 10_000
MIB = 1024 * 1024


def names(kinds: Sequence[Kind]) -> list[str]:
    return [kind.name for kind in kinds]


# --- the table ---------------------------------------------------------------------------------------------------------


def test_every_file_has_a_verdict_and_every_verdict_a_file() -> None:
    files = {f"{path.parent.name}/{path.stem}" for path in FOLDER.glob("*/*")}
    assert files <= BY_NAME.keys()
    assert len(BY_NAME) == len(CORPUS) >= 300
    assert {kind.group for kind in CORPUS} == {path.name for path in FOLDER.iterdir() if path.is_dir()} | {"headers"}
    assert {kind.verdict for kind in CORPUS} == {*REJECTED, "used", "duplicate", "ignored"}


def test_what_must_come_before_a_kind_stands_before_it() -> None:
    seen = set[str]()
    for kind in CORPUS:
        assert seen.issuperset(kind.after), kind.name
        assert {BY_NAME[name].key for name in kind.after} <= {kind.key}
        seen.add(kind.name)


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 300_000


# --- each kind alone, no broker ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task() -> Iterator[RankerTask]:
    """A ranker that makes profiles and rejects only."""
    nobody = Settings(bootstrap="127.0.0.1:1", prefix="c.", kafka={"log_level": 0})
    made = RankerTask(nobody, NoModels(), slates=False, pairs=False)
    yield made
    made.shelf._items.close()
    made.shelf._signals.close()


def fresh() -> State:
    state = State()
    state.adopt(0, Held(None, in_memory=True))
    return state


def records_of(kinds: Sequence[Kind]) -> list[Record]:
    return [
        Record("c.events", 0, 100 + at, NOW_MS, kind.key, kind.value, kind.headers) for at, kind in enumerate(kinds)
    ]


def profile_of(state: State, kind: Kind) -> Profile:
    stored = state.get(0, (kind.key or b"").decode(errors="replace"))
    return decode_profile(stored) if stored is not None else EMPTY


@pytest.mark.parametrize("kind", EVENTS, ids=names(EVENTS))
def test_a_kind_gets_its_verdict(kind: Kind, task: RankerTask) -> None:
    state = fresh()
    task.process(records_of([BY_NAME[name] for name in kind.after]), state)
    before = profile_of(state, kind)
    [record] = records_of([kind])
    task.refresh()
    outputs = task.process([record], state)
    after = profile_of(state, kind)
    assert (after != before) == (kind.verdict == "used")
    if kind.verdict in REJECTED:
        [output] = outputs
        assert output.topic == "c.rejects"
        assert reason_class(output.headers) == kind.verdict
        assert_kept(output, record)
    else:
        assert outputs == []
        assert task._pending["duplicates"] == (kind.verdict == "duplicate")


@pytest.mark.parametrize("kind", EVENTS, ids=names(EVENTS))
def test_a_kind_that_comes_again_changes_nothing(kind: Kind, task: RankerTask) -> None:
    state = fresh()
    first = task.process(records_of([*(BY_NAME[name] for name in kind.after), kind]), state)
    settled = profile_of(state, kind)
    again = task.process(records_of([kind, kind]), state)
    assert profile_of(state, kind) == settled
    assert len(again) == 2 * (kind.verdict in REJECTED) >= len(first) - len(kind.after)


def assert_kept(output: Output, record: Record) -> None:
    """The reject has the bytes of the record; of what is larger than any topic takes, the beginning and the digest."""
    ours = dict(output.headers)
    message = ours["__connect.errors.exception.message"].decode()
    assert message.isprintable(), "no line of a log is forged by it"
    assert len(message) < 400
    assert ours["__connect.errors.offset"] == str(record.offset).encode()
    if "slatecast.error.cut" not in ours:
        assert (output.key, output.value) == (record.key, record.value)
        kept = [header for header in record.headers if not header[0].startswith("__connect.errors.")]
        assert [*output.headers][: len(kept)] == kept
        return
    assert output.value == (record.value or b"")[:1024]
    digest = hashlib.sha256(record.value or b"").hexdigest()
    assert ours["slatecast.error.cut"].decode() == f"{len(record.value or b'')} bytes, sha256 {digest}"
    assert sum(len(value) for _, value in output.headers) < 4096


def test_only_what_no_topic_must_take_is_cut(task: RankerTask) -> None:
    """By the size before compression: a record beyond it is larger than the limit of its topic."""
    for size, cut in ((WHOLE_BYTES, False), (WHOLE_BYTES + 1, True)):
        [record] = records_of([Kind("x", "oversize", "", "events", b"k", bytes(size - 1))])
        [output] = task.process([record], fresh())
        assert ("slatecast.error.cut" in dict(output.headers)) == cut
        assert len(output.value or b"") == (1024 if cut else size - 1)
        assert output.key == b"k"


def test_a_batch_of_all_kinds_has_a_reject_for_each_bad_record_and_no_other(task: RankerTask) -> None:
    kinds = EVENTS[:]
    state, records = fresh(), records_of(kinds)
    task.refresh()
    outputs = task.process(records, state)
    bad = [record.offset for record, kind in zip(records, kinds, strict=True) if kind.verdict in REJECTED]
    assert [int(dict(output.headers)["__connect.errors.offset"]) for output in outputs] == bad
    verdicts = Counter(kind.verdict for kind in kinds)
    assert task._pending == {
        "events": verdicts["used"],
        "duplicates": verdicts["duplicate"],
        "rejected": len(bad),
    }
    profiles = [decode_profile(value) for _, _, value in state.changes()]
    assert all(len(encode_profile(profile)) <= PROFILE_MAX_BYTES for profile in profiles)


def test_ten_thousand_events_of_one_user_in_a_second_are_one_bounded_profile(task: RankerTask) -> None:
    burst = [Click(user="u", item=f"i{n % 700}", ts_ms=NOW_MS - 1000 + n % 1000, id=f"e{n}") for n in range(10_000)]
    records = [Record("c.events", 0, at, NOW_MS, b"u", encode_event(event), ()) for at, event in enumerate(burst)]
    state = fresh()
    task.refresh()
    assert task.process(records, state) == []
    profile = decode_profile(state.get(0, "u") or b"")
    assert len(encode_profile(profile)) <= PROFILE_MAX_BYTES
    assert task._pending["events"] + task._pending["duplicates"] == 10_000


@pytest.mark.parametrize("kind", ITEMS, ids=names(ITEMS))
def test_an_item_gets_its_verdict(kind: Kind, task: RankerTask, caplog: pytest.LogCaptureFixture) -> None:
    shelf, before = task.shelf, len(task.shelf.catalogue)
    shelf.bad_items.clear()
    shelf._take_item(Record("c.items", 0, 7, NOW_MS, kind.key, kind.value, kind.headers))
    assert shelf.bad_items == ({kind.verdict: 1} if kind.verdict in REJECTED else {})
    assert len(shelf.catalogue) - before == (kind.verdict == "used")
    assert all(line.isprintable() and len(line) < 500 for line in caplog.messages)


@pytest.mark.parametrize("kind", QUERIES, ids=names(QUERIES))
def test_of_a_query_only_what_one_sees_is_used(kind: Kind) -> None:
    queries = apply(EMPTY, decode_event(kind.value or b""), b"123456").queries
    kept = "".join(text for _, text in queries)
    assert not {unicodedata.category(character) for character in kept} & {"Cc", "Cf", "Zl", "Zp", "Cs"}
    assert bool(kept) == (kind.name != "text/invisible")


# --- all at once, on the broker ----------------------------------------------------------------------------------------


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


def expected_profiles(kinds: Iterable[Kind]) -> dict[str, bytes]:
    """What is used, computed directly."""
    profiles: dict[str, Profile] = {}
    for kind in kinds:
        if kind.verdict == "used":
            event = decode_event(kind.value or b"")
            before = profiles.get(event.user, EMPTY)
            profiles[event.user] = apply(before, event, event_hash(event, kind.value or b""))
    return {user: encode_profile(profile) for user, profile in profiles.items()}


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


ROGUE = """
import asyncio, sys
from aiokafka import AIOKafkaProducer

class Name(str):
    def encode(self, *_):
        return b"\\xff\\xfe"

async def main():
    async with AIOKafkaProducer(bootstrap_servers=sys.argv[1]) as producer:
        for _ in range(3):
            await producer.send_and_wait(sys.argv[2], b"rogue", b"u1", headers=[("a", b"1"), (Name("x"), b"2")])

asyncio.run(main())
"""


READER = """
import sys
from stream_helpers import read_topic
from streams.settings import Settings

print([r.value for r in read_topic(Settings(bootstrap=sys.argv[1], prefix=sys.argv[2]), "events")].count(b"rogue"))
"""


def test_a_header_whose_name_is_no_text_ends_no_reader(settings: Settings) -> None:
    """Kafka takes any bytes for a name; our client would not send them, so another one does. Reads in a process."""
    send_events(settings, [Click(user=f"u{n}", item="i1", ts_ms=NOW_MS) for n in range(2000)])
    where = (settings.bootstrap, settings.prefix)
    rogue = [sys.executable, "-c", ROGUE, settings.bootstrap, settings.prefix + "events"]
    subprocess.run(rogue, env={**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"}, check=True, timeout=60)
    paths = os.pathsep.join(map(str, (FOLDER.parents[1], FOLDER.parent)))
    reader = [sys.executable, "-c", READER, *where]
    done = subprocess.run(reader, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr[-500:]
