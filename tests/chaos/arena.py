"""Where faults are thrown at real workers on a real broker, and what was lost is counted. Used by every row of chaos.

An `Arena` is one tenant (its own prefix and home) on running services: it starts roles as processes, with fail-points
armed, stops and kills them, starts them again, and judges what is on the topics against what the pure functions say.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from random import Random

import msgspec
from chaos.child import Order
from confluent_kafka import IsolationLevel, KafkaError, Message, TopicPartition
from confluent_kafka.admin import OffsetSpec

from recsys.catalogue import Item, encode_item, item_ref
from recsys.events import Click, Event, Purchase, View, encode_event, event_hash
from recsys.profiles import EMPTY, Profile, apply, encode_profile
from recsys.signals import Increment, Signal, Tally, absorb
from recsys.slates import decode_slate
from streams import clients, topics
from streams.embedded import Embedded
from streams.lag import committed_offsets, records_behind
from streams.records import Record
from streams.settings import Settings
from streams.state import end_offsets, read_to

ROOT = Path(__file__).parents[2]
ITEMS = [Item(item=f"i{n}", title=f"thing {n}", category=f"c{n % 5}") for n in range(30)]
INPUTS = {"ranker": "events", "signals": "pairs", "loose": "events"}  # "loose": a ranker without transactions

OUTPUTS = ("slates", "profiles", "pairs")  # of a ranker
Place = tuple[str, int, int]  # topic, partition, offset


class Row(msgspec.Struct, frozen=True):
    """One fault: how often it really happened, and what came of it."""

    name: str
    happened: int
    lost: int
    duplicated: int
    profiles_differ: int
    passed: bool
    said: dict[str, float | int | str] = {}

    def shown(self) -> str:
        """One line for people."""
        said = "".join(f", {what.replace('_', ' ')} {figure}" for what, figure in self.said.items())
        counts = f"lost {self.lost}, duplicated {self.duplicated}, profiles {self.profiles_differ}"
        return f"{'passed' if self.passed else 'FAILED'}  {self.name:<28} {self.happened:>4} ×  {counts}{said}"


class Judged(msgspec.Struct, frozen=True):
    """What the topics say, against what they should."""

    lost: int  # users whose newest event has no list
    duplicated: int  # lists that were published more than once
    profiles_differ: int  # users whose profile is not bit-equal to the one without faults


class Arena:
    """One tenant under attack."""

    def __init__(self, services: Embedded, folder: Path, name: str, **settings: object) -> None:
        self.services, self.folder = services, folder / name
        self.folder.mkdir(parents=True)
        self.settings = Settings(
            bootstrap=services.bootstrap,
            redis=services.redis_url,
            prefix=f"{name}.",
            home=str(self.folder),
            **settings,  # type: ignore[arg-type]
        )
        self.admin = clients.check_broker(self.settings)
        topics.apply(self.admin, self.settings)
        self.produce("items", [(item.item.encode(), encode_item(item)) for item in ITEMS])
        self.processes: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        self.fired_log = self.folder / "fired"
        self.child = Path(__file__).parent / "child.py"  # what a process runs; a row may have its own
        self.env: dict[str, str] = {}  # for every process

    # --- processes ---

    def start(self, role: str, instance: str = "0", failpoints: str = "", **env: str) -> subprocess.Popen[bytes]:
        """Be a role in a process of its own; its log is `{role}-{instance}.log`."""
        armed = {"SLATECAST_FAILPOINTS": failpoints, "SLATECAST_FAILPOINTS_LOG": str(self.fired_log)}
        with self.log(role, instance).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", str(self.child)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **armed, **self.env, **env, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
            )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(Order(self.settings, role, instance)) + b"\n")
        process.stdin.close()
        self.processes[role, instance] = process
        return process

    def log(self, role: str, instance: str = "0") -> Path:
        """What a role has said."""
        return self.folder / f"{role}-{instance}.log"

    def kill(self, role: str, instance: str = "0", number: int = signal.SIGKILL) -> None:
        """End a process, and wait for its end."""
        process = self.processes.pop((role, instance))
        process.send_signal(number)
        process.wait(30)

    def revive(self, arm: Callable[[], str] = lambda: "") -> list[int]:
        """Start again at once what has ended, armed anew; with which codes it ended."""
        codes = []
        for (role, instance), process in list(self.processes.items()):
            if process.poll() is not None:
                codes.append(process.returncode)
                self.start(role, instance, arm())
        return codes

    def fired(self) -> Counter[str]:
        """Which fail-points really acted, by name."""
        lines = self.fired_log.read_text().splitlines() if self.fired_log.exists() else []
        return Counter(line.split()[0] for line in lines)

    def stop(self) -> None:
        """End what runs, in order if it listens."""
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    # --- records ---

    def produce(self, topic: str, pairs: Sequence[tuple[bytes | None, bytes | None]]) -> None:
        """Raw records, acknowledged."""
        producer = clients.producer(self.settings)
        for key, value in pairs:
            while True:
                try:
                    producer.produce(self.settings.prefix + topic, value, key)
                    break
                except BufferError:
                    producer.poll(0.1)
        assert producer.flush(60) == 0

    def send(self, events: Sequence[Event]) -> None:
        """Events, keyed by user."""
        self.produce("events", [(event.user.encode(), encode_event(event)) for event in events])

    def read(self, topic: str) -> list[Record]:
        """Committed records of a topic."""
        found: list[Record] = []
        reader, name = clients.reader(self.settings), self.settings.prefix + topic
        read_to(reader, name, end_offsets(self.admin, name, clients.partitions_of(self.admin, name)), found.append)
        reader.close()
        return found

    def behind(self, role: str = "ranker") -> int:
        """Records that a role has not committed."""
        group = "ranker" if role == "loose" else role
        return records_behind(self.admin, self.settings, group, INPUTS[role])

    def processed(self, role: str = "ranker") -> int:
        """Events that a role has committed. `events` is written without transactions, so its offsets have no gaps."""
        numbers = clients.partitions_of(self.admin, self.settings.prefix + "events")
        return sum(committed_offsets(self.settings, role, "events", numbers).values())

    def places(self) -> set[Place]:
        """Where the committed records of a ranker lie."""
        return {(topic, record.partition, record.offset) for topic in OUTPUTS for record in self.read(topic)}

    def open_records(self) -> set[Place]:
        """What stands behind the last stable offset: records of open transactions."""
        found = set[Place]()
        for topic in OUTPUTS:
            name = self.settings.prefix + topic
            latest = {TopicPartition(name, p): OffsetSpec.latest() for p in clients.partitions_of(self.admin, name)}
            stable = self.admin.list_offsets(latest, isolation_level=IsolationLevel.READ_COMMITTED)
            ends = self.admin.list_offsets(latest, isolation_level=IsolationLevel.READ_UNCOMMITTED)
            for tp, end in ends.items():
                found |= {(topic, tp.partition, n) for n in range(stable[tp].result().offset, end.result().offset)}
        return found

    def judge(self, events: Sequence[Event]) -> Judged:
        """Everything sent against everything committed. `events` in the order in which they were sent."""
        expected, newest = dict[str, Profile](), dict[str, Event]()
        for event in events:
            profile = expected.get(event.user, EMPTY)
            after = apply(profile, event, event_hash(event, encode_event(event)))
            if after is not profile:
                expected[event.user], newest[event.user] = after, event
        found = {(r.key or b"").decode(): r.value for r in sorted(self.read("profiles"), key=lambda r: r.offset)}
        differ = sum(found.get(user) != encode_profile(profile) for user, profile in expected.items())
        slates = [decode_slate(record.value or b"") for record in self.read("slates")]
        ids = Counter(slate.id for slate in slates)
        served = {(slate.user, slate.cause.ts_ms) for slate in slates}
        lost = sum((user, event.ts_ms) not in served for user, event in newest.items())
        return Judged(lost, sum(count - 1 for count in ids.values()), differ + len(found.keys() - expected.keys()))

    def pairs_differ(self, events: Sequence[Event]) -> int:
        """Items whose increments do not add up to what the events are worth, each counted once.

        Profiles are sets, in which what was applied twice does not show; sums show it. Batches do not matter to them.
        """
        tally, profiles = Tally(), dict[str, Profile]()
        for event in events:
            before = profiles.get(event.user, EMPTY)
            after = apply(before, event, event_hash(event, encode_event(event)))
            if after is not before:
                tally.add(event, before)
                profiles[event.user] = after
        ids = {item_ref(item.item): item.item for item in ITEMS}
        expected = _figures((ids[key] if isinstance(key, int) else key, inc) for key, inc in tally.increments())
        decode = msgspec.msgpack.Decoder(Increment).decode
        found = _figures(((r.key or b"").decode(), decode(r.value or b"")) for r in self.read("pairs"))
        nothing: dict[str, float] = {}
        return sum(
            not _alike(found.get(item, nothing), expected.get(item, nothing)) for item in found.keys() | expected.keys()
        )

    def row(self, name: str, happened: int, events: Sequence[Event], *, passed: bool, **said: float | int | str) -> Row:
        """The row of a fault that may cost nothing. passed: that it happened, and what else is asked of it."""
        judged, wrong = self.judge(events), self.pairs_differ(events)
        clean = not (judged.lost or judged.duplicated or judged.profiles_differ or wrong)
        figures = {"increments_differ": wrong, **said}
        return Row(name, happened, judged.lost, judged.duplicated, judged.profiles_differ, passed and clean, figures)


class Flow:
    """Sends events at a steady rate from a thread of its own, whatever happens to the broker meanwhile."""

    def __init__(self, ring: Arena, events: Sequence[Event], per_s: float) -> None:
        self._producer = clients.producer(ring.settings)
        self._topic = ring.settings.prefix + "events"
        self._events, self._per_s = events, per_s
        self._stop = threading.Event()
        self._refused: list[str] = []
        self.sent = 0
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Flow":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def stop(self) -> Sequence[Event]:
        """Send no more; what was sent, all of it acknowledged."""
        self.__exit__()
        assert self._producer.flush(60) == 0
        assert not self._refused, self._refused[0]
        return self._events[: self.sent]

    def _send(self) -> None:
        started_s = time.monotonic()
        while self.sent < len(self._events) and not self._stop.wait(0.01):
            due = int((time.monotonic() - started_s) * self._per_s)
            for event in self._events[self.sent : due]:
                data = encode_event(event)
                self._producer.produce(self._topic, data, event.user.encode(), on_delivery=self._delivered)
                self.sent += 1
            self._producer.poll(0)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._refused.append(error.str())


def attempt(name: str, run: Callable[[], Row]) -> Row:
    """A row that always comes: one that raises is a failed one which says why."""
    try:
        return run()
    except Exception as error:  # whatever it is, the next row is to be tried
        traceback.print_exc()
        return Row(name, 0, 0, 0, 0, passed=False, said={"error": f"{type(error).__name__}: {error}"})


def _figures(increments: Iterable[tuple[str, Increment]]) -> dict[str, dict[str, float]]:
    """Per item, what the aggregator would make of them."""
    signals: dict[str, Signal] = {}
    for item, inc in increments:
        signals[item] = absorb(signals.get(item, Signal()), inc)
    return {
        item: {name: getattr(signal, name) for name in Signal.__struct_fields__ if name not in ("neighbours", "priced")}
        | {f"price of {at_s}": price for at_s, price in filter(None, [signal.priced])}
        | {str(ref): weight for ref, weight in signal.neighbours}
        for item, signal in signals.items()
    }


def _alike(one: dict[str, float], two: dict[str, float]) -> bool:
    """But for the rounding of floats: other batches add in another order."""
    return one.keys() == two.keys() and all(math.isclose(one[name], two[name], rel_tol=1e-9) for name in one)


def make_events(count: int, users: int, seed: int) -> list[Event]:
    """Events of the last minutes in the order of their time, each worth a list, all different."""
    rng, start_ms = Random(seed), time.time_ns() // 1_000_000 - count - 60_000
    kinds = (Click, Click, View, Purchase)
    return [
        rng.choice(kinds)(
            user=f"u{rng.randrange(users)}",
            item=f"i{rng.randrange(len(ITEMS))}",
            ts_ms=start_ms + n,
            id=f"{seed}-{n}",
            price=1.0 + n % 7,
        )
        for n in range(count)
    ]


def wait_for(condition: Callable[[], bool], limit_s: float, what: str) -> float:
    """Wait for a condition; how long it took in seconds."""
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() - started_s < limit_s, f"not within {limit_s} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - started_s


def rss_mib(pid: int, *, peak: bool = False) -> float:
    """Memory of a process, now or at its peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) / 1024


@contextlib.contextmanager
def arena(services: Embedded, folder: Path, name: str, **settings: object) -> Iterator[Arena]:
    """An arena for the length of a block."""
    ring = Arena(services, folder, name, **settings)
    try:
        yield ring
    finally:
        ring.stop()
