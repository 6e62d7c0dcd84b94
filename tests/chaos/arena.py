"""Where faults are thrown at real workers on a real broker, and what was lost is counted. Used by every row of chaos.

An `Arena` is one tenant (its own prefix and home) on running services: it starts roles as processes, with fail-points
armed, stops and kills them, starts them again, and judges what is on the topics against what the pure functions say.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import msgspec
from chaos.child import Order

from recsys.catalogue import Item, encode_item
from recsys.events import Click, Event, Purchase, View, encode_event, event_hash
from recsys.profiles import EMPTY, Profile, apply, encode_profile
from recsys.slates import decode_slate
from streams import clients, topics
from streams.embedded import Embedded
from streams.lag import records_behind
from streams.records import Record
from streams.settings import Settings
from streams.state import end_offsets, read_to

ROOT = Path(__file__).parents[2]
ITEMS = [Item(item=f"i{n}", title=f"thing {n}", category=f"c{n % 5}") for n in range(30)]
INPUTS = {"ranker": "events", "signals": "pairs", "loose": "events"}  # "loose": a ranker without transactions


class Row(msgspec.Struct, frozen=True):
    """One fault: how often it really happened, and what came of it."""

    name: str
    happened: int
    lost: int
    duplicated: int
    profiles_differ: int
    passed: bool
    said: dict[str, float | int | str] = {}


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

    # --- processes ---

    def start(self, role: str, instance: str = "0", failpoints: str = "", **env: str) -> subprocess.Popen[bytes]:
        """Be a role in a process of its own; its log is `{role}-{instance}.log`."""
        armed = {"SLATECAST_FAILPOINTS": failpoints, "SLATECAST_FAILPOINTS_LOG": str(self.fired_log)}
        with self.log(role, instance).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).parent / "child.py")],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **armed, **env, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
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


def make_events(count: int, users: int, seed: int) -> list[Event]:
    """Events of the last minutes in the order of their time, each worth a list, all different."""
    rng, start_ms = Random(seed), time.time_ns() // 1_000_000 - count - 60_000
    kinds = (Click, Click, View, Purchase)
    return [
        rng.choice(kinds)(
            user=f"u{rng.randrange(users)}", item=f"i{rng.randrange(len(ITEMS))}", ts_ms=start_ms + n, id=f"{seed}-{n}"
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


@contextlib.contextmanager
def arena(services: Embedded, folder: Path, name: str, **settings: object) -> Iterator[Arena]:
    """An arena for the length of a block."""
    ring = Arena(services, folder, name, **settings)
    try:
        yield ring
    finally:
        ring.stop()
