"""Workers killed at every point of their loop, again and again; and the same without transactions, which must be seen.

A kill at a random time hits nothing that matters (failpoints.py), so each falls at an armed point, evenly over all of
them. The control shows that the arena would find what it says is not there.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from signal import SIGKILL
from time import monotonic, sleep

from chaos.arena import Arena, Row, arena, attempt, make_events

from recsys.events import Event
from streams.embedded import Embedded
from streams.failpoints import POINTS

# The last falls into the commit itself, or just behind it.
PLACES = (*(f"{point}=kill" for point in POINTS), "before_commit=kill_soon")
# Where a batch is half done. At the other points even a loop without transactions has nothing to send twice.
HALF_DONE = ("after_produce=kill", "after_flush=kill", "before_commit=kill")
INSTANCES = ("0", "1")
LIVE_BATCH = 32  # events a transaction, while lists are made
SEED = 5


def rows(services: Embedded, folder: Path, quick: bool) -> list[Row]:
    """The kills, and the control."""
    small = {"events": 1800, "users": 200} if quick else {"events": 100_000, "users": 2000}
    control = {"events": 1200, "users": 500} if quick else {"events": 8000, "users": 2000}
    return [
        attempt("kills", lambda: run(services, folder, kills=9 if quick else 108, **small)),
        attempt(
            "control",
            lambda: run_control(services, folder, kills=4 if quick else 21, least=10 if quick else 100, **control),
        ),
    ]


def run(services: Embedded, folder: Path, kills: int, events: int, users: int) -> Row:
    """Kills at all points: nothing lost, nothing twice, the same profiles."""
    with arena(services, folder, "kills") as ring:
        sent = make_events(events, users, SEED)
        ended, took_s = _hunt(ring, "ranker", sent, PLACES, kills)
        fired, least = ring.fired(), kills // len(PLACES)
        happened = ended[-SIGKILL]
        evenly = len(fired) >= 6 and min(fired.values()) >= least
        others = ended.total() - happened
        return ring.row(
            "kills",
            happened,
            sent,
            passed=happened >= kills and evenly and not others,
            **fired,
            ended_otherwise=others,
            sent=events,
            took_s=round(took_s),
        )


def run_control(services: Embedded, folder: Path, kills: int, least: int, events: int, users: int) -> Row:
    """The same loop without transactions. It passes when the arena finds the duplicates that it must have."""
    with arena(services, folder, "control") as ring:
        sent = make_events(events, users, SEED)
        ended, _ = _hunt(ring, "loose", sent, HALF_DONE, kills)
        judged = ring.judge(sent)
        return Row(
            "control",
            ended[-SIGKILL],
            judged.lost,
            judged.duplicated,
            judged.profiles_differ,
            passed=ended[-SIGKILL] >= kills and judged.duplicated >= least,
            said={"increments_differ": ring.pairs_differ(sent), "wanted": least},
        )


def _hunt(
    ring: Arena, role: str, events: Sequence[Event], places: Sequence[str], kills: int
) -> tuple[Counter[int], float]:
    """Two workers under fire until every event is committed; with which codes they ended, and how long it took.

    Events come in portions, so that there is work for every kill. A dead worker is back at once, armed for the next.
    """
    rng, started_s = Random(SEED), monotonic()
    plan = [place for _ in range(-(-kills // len(places))) for place in places][:kills]
    rng.shuffle(plan)
    passages = max(1, len(events) // kills // LIVE_BATCH)  # so that each finds as many transactions as it needs

    def arm() -> str:
        return f"{plan.pop()}@{rng.randint(1, passages)}" if plan else ""

    for instance in INSTANCES:
        ring.start(role, instance, arm())
    ended, sent, portion = Counter[int](), 0, -(-len(events) // kills)
    while (behind := ring.behind(role)) or sent < len(events):
        if behind < 4 * portion and sent < len(events):
            ring.send(events[sent : sent + portion])
            sent += portion
        ended.update(ring.revive(arm))
        sleep(0.02)
    ended.update(ring.revive())
    return ended, monotonic() - started_s
