"""`slatecast bench hot-path`: how fast events become profiles and lists, as ratios in one run on one broker.

Three engines in turn, several rounds, each alone on one core while the broker has the others. Medians are compared.
Then the same with lists of 200 candidates, and how long an event waits for its list at half of that load.
"""

import statistics
import subprocess
import time
from collections.abc import Callable

import msgspec
import numpy as np

from recsys.catalogue import Item, encode_item, item_ref
from recsys.events import Cart, Click, Event, Purchase, View, encode_event, event_hash
from recsys.profiles import EMPTY, Profile, apply
from recsys.signals import Signal, Tally, absorb
from streams import clients
from streams.bench.engines import Measured, Run
from streams.bench.ground import ask, command, environ, ground, produce
from streams.settings import Settings
from streams.watching import poll_slates

USERS, ITEMS = 2000, 5000
EVENTS = {"ours": 100_000, "bare": 100_000, "faust": 20_000, "scoring": 6_000}
LATENCY_S = 15.0


def make_events(count: int, seed: int, now_ms: int) -> list[Event]:
    """Users who walk through a catalogue whose popular items they meet more often; the newest event is now."""
    rng = np.random.default_rng(seed)
    users, kinds = rng.integers(0, USERS, count).tolist(), rng.integers(0, 4, count).tolist()
    items = (ITEMS * rng.random(count) ** 2).astype(int).tolist()
    kind_of = (Click, View, Cart, Purchase)
    return [
        kind_of[kind](
            user=f"u{user}", item=f"item-{item}", ts_ms=now_ms - (count - n) * 10, id=f"b{seed}-{n}", session="s"
        )
        for n, (user, item, kind) in enumerate(zip(users, items, kinds, strict=True))
    ]


def make_items() -> list[Item]:
    """A catalogue of the usual shape."""
    return [
        Item(item=f"item-{n}", title=f"Thing {n}", category=f"c{n % 12} > d{n % 90} > e{n % 400}", price=1 + n % 50)
        for n in range(ITEMS)
    ]


def compare(settings: Settings, rounds: int, tell: Callable[[str], None]) -> dict[str, object]:
    """The whole benchmark. tell: what is running now."""
    rates: dict[str, list[float]] = {"ours": [], "bare": [], "faust": []}
    for number in range(rounds):
        for engine, measured in rates.items():
            tell(f"round {number + 1} of {rounds}: {engine}")
            with ground(settings, f"{number}-{engine}") as own:
                measured.append(_measure(own, engine).events_per_s)
    tell("lists of 200 candidates")
    with ground(settings, "scoring") as own:
        scoring = _measure(own, "scoring")
    tell("waiting for lists at half of that load")
    with ground(settings, "wait") as own:
        waits_ms = _latency(own, scoring.events_per_s / 2)
    middle = {engine: statistics.median(values) for engine, values in rates.items()}
    return {
        "ratio_faust": middle["ours"] / middle["faust"],
        "ratio_bare": middle["ours"] / middle["bare"],
        "events_per_s": {engine: [round(rate) for rate in values] for engine, values in rates.items()},
        "scoring_events_per_s": scoring.events_per_s,
        "scoring_candidates": scoring.candidates,
        "scoring_stage_share": scoring.stage_share,
        "half_load_events_per_s": scoring.events_per_s / 2,
        "event_to_slate_p50_ms": float(np.percentile(waits_ms, 50)),
        "event_to_slate_p99_ms": float(np.percentile(waits_ms, 99)),
    }


def _measure(settings: Settings, engine: str) -> Measured:
    """The same events, one engine alone."""
    if engine == "scoring":
        _stock(settings)
    events = make_events(EVENTS[engine], 1, time.time_ns() // 1_000_000)
    produce(settings, "events", [(event.user, encode_event(event)) for event in events])
    module = "streams.bench.faust_peer" if engine == "faust" else "streams.bench.engines"
    return ask(module, Run(engine, settings, len(events)), Measured)


def _latency(settings: Settings, rate: float) -> list[float]:
    """Milliseconds from produce to a list that a read_committed subscriber has, at a steady rate of events."""
    _stock(settings)
    count = int(rate * LATENCY_S)
    run = Run("scoring", settings, count)
    engine = subprocess.Popen(
        command("streams.bench.engines"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environ()
    )
    with engine as process:
        try:
            assert process.stdin is not None  # noqa: S101 - it was opened as a pipe
            process.stdin.write(msgspec.json.encode(run) + b"\n")
            process.stdin.flush()
            return _watch(settings, count, rate)
        finally:
            process.kill()


def _watch(settings: Settings, count: int, rate: float) -> list[float]:
    """One event wakes the engine; after its list the rest come at a steady rate."""
    producer, watching = clients.producer(settings), poll_slates(settings, 0.001)
    sent_s: dict[tuple[str, int], float] = {}
    waits_ms: list[float] = []

    def send(event: Event) -> None:
        sent_s[event.user, event.ts_ms] = time.perf_counter()
        producer.produce(settings.prefix + "events", encode_event(event), event.user.encode())
        producer.poll(0)

    def watch() -> None:
        for slate, _ in next(watching):
            begun_s = sent_s.pop((slate.user, slate.cause.ts_ms), None)
            if begun_s is not None:
                waits_ms.append((time.perf_counter() - begun_s) * 1000)

    events = make_events(count, 2, time.time_ns() // 1_000_000)
    send(events[0])
    while not waits_ms:
        watch()
    waits_ms.clear()
    begin_s = time.perf_counter()
    for at, event in enumerate(events[1:]):
        while time.perf_counter() < begin_s + at / rate:
            watch()
        send(event)
    end_s = time.perf_counter() + 5
    while sent_s and time.perf_counter() < end_s:  # a user's older event has no list of its own if a newer one came
        watch()
    watching.close()
    return waits_ms


def _stock(settings: Settings) -> None:
    """The catalogue, and the signals of 50,000 earlier events: without neighbours there would be few candidates."""
    produce(settings, "items", [(item.item, encode_item(item)) for item in make_items()])
    tally, profiles = Tally(), dict[str, Profile]()
    for event in make_events(50_000, 3, time.time_ns() // 1_000_000):
        before = profiles.get(event.user, EMPTY)
        tally.add(event, before)
        profiles[event.user] = apply(before, event, event_hash(event, b""))
    name_of = {item_ref(item.item): item.item for item in make_items()}
    signals: dict[str, Signal] = {}
    for key, inc in tally.increments():
        item = key if isinstance(key, str) else name_of[key]
        signals[item] = absorb(signals.get(item, Signal()), inc)
    produce(settings, "signals", [(item, msgspec.msgpack.encode(signal)) for item, signal in signals.items()])
