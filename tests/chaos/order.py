"""Events that come twice, late and with wrong times, to a ranker whose own clock jumps: the same profiles as in order.

Shown against a second ranker that gets each event once, in the order of its time, and has a clock that is right; in
the quick row against the pure functions only.
"""

import socket
from collections import Counter
from pathlib import Path
from random import Random
from urllib.request import urlopen

import msgspec
from chaos.arena import Arena, Row, arena, attempt, make_events, wait_for

from recsys.events import Event, encode_event, event_hash
from recsys.profiles import EMPTY, Profile, apply, encode_profile
from recsys.slates import decode_slate
from streams.embedded import Embedded

HOUR_MS = 3_600_000
SPAN_MS = 3 * HOUR_MS  # what happens in that time is sent at once
TWICE, LATE = 0.2, 0.1  # shares
SEED = 17


def rows(services: Embedded, folder: Path, quick: bool) -> list[Row]:
    """One row."""
    return [attempt("order", lambda: run(services, folder, 1500 if quick else 20_000, against_ranker=not quick))]


def run(services: Embedded, folder: Path, count: int, *, against_ranker: bool) -> Row:
    """The same events to both."""
    clean = _events(count)
    messy, late = _mess(clean)
    expected = _run_in_order(services, folder, clean) if against_ranker else _fold(clean)
    port = _free_port()
    with arena(services, folder, "messy", metrics_port=port) as ring:
        ring.child = Path(__file__).parent / "skewed_child.py"
        ring.send(messy)
        ring.start("ranker")
        wait_for(lambda: not ring.behind(), 300, "all is processed")
        measured = _metrics(port)
        found = _profiles(ring)
        differ = sum(found.get(user) != expected.get(user) for user in found.keys() | expected.keys())
        slates = [decode_slate(record.value or b"") for record in ring.read("slates")]
        causes = Counter((slate.user, slate.cause.ts_ms) for slate in slates)
        negative = sum(slate.freshness_ms < 0 for slate in slates) + sum(value < 0 for value in measured.values())
        skewed = sum(slate.freshness_ms > HOUR_MS / 2 for slate in slates)
        known = int(measured["slatecast_duplicates_total"])
        rejects = len(ring.read("rejects"))
        return ring.row(
            "order",
            late + known,
            messy,
            passed=late >= count * LATE / 2
            and known >= len(messy) - count > 0
            and 0 < skewed < len(slates)
            and not (differ or negative or rejects)
            and max(causes.values()) == 1,
            differ_from_order=differ,
            late=late,
            twice=known,
            rejects=rejects,
            negative=negative,
            lists_for_repeats=sum(n - 1 for n in causes.values()),
            lists_by_a_wrong_clock=skewed,
        )


def _run_in_order(services: Embedded, folder: Path, events: list[Event]) -> dict[str, bytes]:
    """What a ranker makes of them to whom nothing happens."""
    with arena(services, folder, "in-order") as ring:
        ring.send(events)
        ring.start("ranker")
        wait_for(lambda: not ring.behind(), 300, "all is processed")
        return _profiles(ring)


def _fold(events: list[Event]) -> dict[str, bytes]:
    """What the pure functions make of them."""
    profiles = dict[str, Profile]()
    for event in events:
        identity = event_hash(event, encode_event(event))
        profiles[event.user] = apply(profiles.get(event.user, EMPTY), event, identity)
    return {user: encode_profile(profile) for user, profile in profiles.items()}


def _profiles(ring: Arena) -> dict[str, bytes]:
    return {(r.key or b"").decode(): r.value or b"" for r in sorted(ring.read("profiles"), key=lambda r: r.offset)}


def _metrics(port: int) -> dict[str, float]:
    """What a role shows, by name and labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def _events(count: int) -> list[Event]:
    """In the order of their time as their users' clocks say it: each is wrong by up to an hour, to either side."""
    rng, users = Random(SEED), max(10, count // 100)
    wrong_ms = {f"u{n}": rng.randint(-HOUR_MS, HOUR_MS) for n in range(users)}
    made = make_events(count, users, SEED)
    start_ms = made[-1].ts_ms - SPAN_MS
    return sorted(
        (
            msgspec.structs.replace(event, ts_ms=start_ms + n * SPAN_MS // count + wrong_ms[event.user])
            for n, event in enumerate(made)
        ),
        key=lambda event: event.ts_ms,
    )


def _mess(events: list[Event]) -> tuple[list[Event], int]:
    """Some later by up to an hour, some once more within the next hour; how many came after a newer one of their user."""
    rng = Random(SEED)
    sent = [(event.ts_ms + (rng.random() < LATE) * rng.randint(0, HOUR_MS), event) for event in events]
    again = [(at_ms + rng.randint(0, HOUR_MS), event) for at_ms, event in rng.sample(sent, int(TWICE * len(sent)))]
    messy = [event for _, event in sorted([*sent, *again], key=lambda pair: pair[0])]
    newest, seen, late = dict[str, int](), set[str](), 0
    for event in messy:
        late += event.id not in seen and event.ts_ms < newest.get(event.user, 0)
        seen.add(event.id)
        newest[event.user] = max(event.ts_ms, newest.get(event.user, 0))
    return messy, late


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
