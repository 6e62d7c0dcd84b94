"""`slatecast bench restore`: how soon a worker has its state again, and what state on disk costs.

A changelog of a million real profiles, each of another user, 600 bytes (26 events), in transactions of 2,000. It is
restored into memory, beside a floor that reads it and keeps nothing; from the store on disk alone; and from the store
with a tail behind it. Then the worker's hot path with its state on disk against in memory: users drawn from all of
the million, so that hardly one is met twice. Every measurement is a process of its own.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
from confluent_kafka import TopicPartition

from recsys.events import encode_event, event_hash
from recsys.profiles import EMPTY, Profile, apply, encode_profile
from streams import clients
from streams.bench.ground import ENGINE_CORE, ask, ground, pin, produce
from streams.settings import Settings
from streams.state import end_offsets, restore

MILLION = 1_000_000
EVENTS_EACH = 26  # 600 bytes
TOGETHER = 2000  # as a worker that catches up writes them
MIB = 1024 * 1024
What = Literal["bare", "memory", "store", "ours"]


class Order(msgspec.Struct, frozen=True):
    """What an engine is told. ours: the worker, over so many events."""

    what: What
    settings: Settings
    events: int = 0
    core: int = ENGINE_CORE


class Done(msgspec.Struct, frozen=True):
    """What an engine says. cpu_s: of all its threads; records: read from Kafka; resident_mib: at its end, Linux only."""

    took_s: float
    cpu_s: float
    records: int
    resident_mib: float | None = None


def measure(settings: Settings, profiles: int, rounds: int, tell: Callable[[str], None]) -> dict[str, object]:
    """The whole benchmark. tell: what is running now."""
    tail = profiles // 100
    with ground(settings, "restore") as own:
        tell(f"writing {profiles:,} profiles")
        bodies = _bodies()
        size = statistics.fmean(map(len, bodies))
        produce(own, "profiles", _changes(bodies, range(profiles)), TOGETHER)
        reads: dict[What, list[Done]] = {"bare": [], "memory": []}
        for number in range(rounds):
            for what, done in reads.items():
                tell(f"round {number + 1} of {rounds}: {what}")
                done.append(_ask(own, what, profiles))
        tell("first start: the store is written")
        first = _ask(own, "store", profiles)
        disk = sum(file.stat().st_size for file in _folder(own).rglob("*") if file.is_file())
        snapshots, tails = [], []
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}: from the store")
            snapshots.append(_ask(own, "store", 0))
            produce(own, "profiles", _changes(bodies, range(number * tail, (number + 1) * tail)), TOGETHER)
            tails.append(_ask(own, "store", tail))
        works = _compare_hot_paths(own, profiles, rounds, tell)
    million = MILLION / profiles
    return {
        "records_per_s": profiles / _took_s(reads["memory"]),
        "records_per_cpu_s": profiles / _cpu_s(reads["memory"]),
        "bare_records_per_s": profiles / _took_s(reads["bare"]),
        "ratio_bare": _took_s(reads["bare"]) / _took_s(reads["memory"]),
        "snapshot_1m_s": _took_s(snapshots) * million,
        "snapshot_1m_cpu_s": _cpu_s(snapshots) * million,
        "snapshot_write_1m_s": first.took_s * million,
        "disk_mib": disk / MIB,
        "tail_records": tail,
        "tail_s": _took_s(tails),
        "ratio_disk_hot_path": _took_s(works["memory"]) / _took_s(works["disk"]),
        "ratio_disk_hot_path_cpu": _cpu_s(works["memory"]) / _cpu_s(works["disk"]),
        "hot_path_events_per_s": {s: [round(done.records / done.took_s) for done in works[s]] for s in works},
        "resident_mib": {s: works[s][-1].resident_mib for s in works},
        "profiles": profiles,
        "profile_bytes": size,
        "rounds": rounds,
    }


def _took_s(done: list[Done]) -> float:
    return statistics.median(each.took_s for each in done)


def _cpu_s(done: list[Done]) -> float:
    return statistics.median(each.cpu_s for each in done)


def _compare_hot_paths(
    settings: Settings, profiles: int, rounds: int, tell: Callable[[str], None]
) -> dict[str, list[Done]]:
    """The worker by where its state lies. It finds the store that was made before."""
    count = profiles // 10
    works: dict[str, list[Done]] = {"memory": [], "disk": []}
    for number in range(rounds):
        for state, done in works.items():
            tell(f"round {number + 1} of {rounds}: the worker, its state in {state}")
            produce(settings, "events", _events(profiles, count, seed=2 * number + (state == "disk")))
            own = msgspec.structs.replace(settings, state=state)
            done.append(ask(__spec__.name, Order("ours", own, count), Done))
    return works


def _ask(settings: Settings, what: What, expected: int) -> Done:
    done = ask(__spec__.name, Order(what, settings), Done)
    if done.records != expected:  # a store that was left out would be measured as if it had been used
        raise RuntimeError(f"{what}: {done.records} records were read, not {expected}")
    return done


def _bodies() -> list[bytes]:
    """Profiles of 2,000 users after some events each."""
    from streams.bench.hot_path import USERS, make_events

    profiles: dict[str, Profile] = {}
    for event in make_events(EVENTS_EACH * USERS, 1, time.time_ns() // 1_000_000):
        profiles[event.user] = apply(profiles.get(event.user, EMPTY), event, event_hash(event, b""))
    return [encode_profile(profile) for profile in profiles.values()]


def _changes(bodies: list[bytes], users: range) -> Iterator[tuple[str, bytes]]:
    return ((f"u{n}", bodies[n % len(bodies)]) for n in users)


def _events(users: int, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """New events of users from all over the state: 7,919 steps apart, prime."""
    from streams.bench.hot_path import make_events

    for n, event in enumerate(make_events(count, 10 + seed, time.time_ns() // 1_000_000)):
        user = f"u{(n * 7919 + seed) % users}"
        yield user, encode_event(msgspec.structs.replace(event, user=user))


def _folder(settings: Settings) -> Path:
    """Where the worker keeps its state (worker.py)."""
    return Path(settings.home) / "state" / f"{settings.prefix}ranker-0"


# --- the engines -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Be one engine."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    pin(order.core)
    done = {"bare": run_bare, "memory": run_restore, "store": run_restore, "ours": run_worker}[order.what](order)
    sys.stdout.buffer.write(msgspec.json.encode(done) + b"\n")


def run_restore(order: Order) -> Done:
    """What a worker does when it is given partitions."""
    settings, topic = order.settings, order.settings.prefix + "profiles"
    admin, reader = clients.admin(settings), clients.reader(settings)
    folder = _folder(settings) if order.what == "store" else None
    started_s, cpu_s = time.perf_counter(), time.process_time()
    held, count = restore(admin, reader, topic, clients.partitions_of(admin, topic), folder)
    done = Done(time.perf_counter() - started_s, time.process_time() - cpu_s, count, _resident_mib())
    for each in held.values():
        each.close()
    return done


def run_bare(order: Order) -> Done:
    """Read the same records and keep nothing: the floor."""
    settings, topic = order.settings, order.settings.prefix + "profiles"
    admin, reader = clients.admin(settings), clients.reader(settings)
    started_s, cpu_s = time.perf_counter(), time.process_time()
    ends = end_offsets(admin, topic, clients.partitions_of(admin, topic))
    reader.assign([TopicPartition(topic, p, 0) for p in ends])
    count, left = 0, len(ends)
    while left:
        for message in reader.consume(2000, 0.2):
            if message.error() is None:
                count += 1
            else:  # the end of a partition
                left -= 1
    return Done(time.perf_counter() - started_s, time.process_time() - cpu_s, count)


def run_worker(order: Order) -> Done:
    """The worker with the ranker's task, profiles only, from its first commit to its last."""
    from streams.bench.engines import Run, run_ours

    count = order.events
    measured = run_ours(Run("ours", order.settings, count, order.core))
    return Done(count / measured.events_per_s, count * measured.cpu_s_per_event, count, _resident_mib())


def _resident_mib() -> float | None:
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB if status.exists() else None


if __name__ == "__main__":
    main()
