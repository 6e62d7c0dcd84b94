"""A record that ends whatever processes it: by a crash, by a hang, by a hang that holds the interpreter's lock.

It is put aside by its third attempt, with its bytes; the others of its batch are processed, and nobody ends again.
"""

import re
import time
from pathlib import Path
from signal import SIGSEGV

from chaos.arena import Arena, Row, arena, attempt, make_events, wait_for

from recsys.events import Click, encode_event
from streams.attempts import LAST_ATTEMPT
from streams.embedded import Embedded
from streams.rejects import read_rejects

# What a pill does, how its processes end, and how soon it must be put aside: three times the limit of what looks after
# it (worker.py, watchdog.py), and three starts.
PILLS = {
    "crash": ("crashing pill", -SIGSEGV, 15.0),
    "hang": ("hanging pill", 70, 30.0),
    "stuck": ("stuck pill", 1, 50.0),
}
PARTITIONS = 4
AT = 100  # where the pills stand among the events
SEED = 11


def rows(services: Embedded, folder: Path, quick: bool) -> list[Row]:
    """One row a kind, and two pills in one batch. Quick: one crash, one worker, and thrice the time: a suite is busy."""
    if quick:
        return [attempt("crashing pill", lambda: run(services, folder, "crash", workers=1, slack=3))]
    return [
        attempt("crashing pill", lambda: run(services, folder, "crash")),
        attempt("two crashing pills", lambda: run(services, folder, "crash", pills=2)),
        attempt("hanging pill", lambda: run(services, folder, "hang")),
        attempt("stuck pill", lambda: run(services, folder, "stuck")),
    ]


def run(services: Embedded, folder: Path, kind: str, pills: int = 1, workers: int = 2, slack: float = 1) -> Row:
    """Pills among good events; of two workers one meets them. What ends is started again at once."""
    name, code, limit_s = PILLS[kind]
    with arena(services, folder, f"{kind}-{pills}", partitions=PARTITIONS) as ring:
        met = ring.folder / "met"
        ring.child, ring.env = Path(__file__).parent / "pill_child.py", {"SLATECAST_PILLS": str(met)}
        instances = [str(n) for n in range(workers)]
        for instance in instances:
            ring.start("ranker", instance)
        wait_for(lambda: all(_owned(ring, i) == PARTITIONS // workers for i in instances), 60, "all own partitions")
        good = make_events(600, 20, SEED)
        # Of one user, so that one worker meets them all, and in one batch.
        bad = [
            Click(user=good[0].user, item=f"pill-{kind}", ts_ms=good[AT].ts_ms, id=f"pill-{n}") for n in range(pills)
        ]
        ring.send([*good[:AT], *bad, *good[AT:-20]])
        limit_s *= pills * slack
        codes = _tend(ring, LAST_ATTEMPT * pills, 3 * limit_s)
        ring.send(good[-20:])  # and on it goes
        codes_later = _tend(ring, 0, 3 * limit_s) + ring.revive()

        times_s, counts = zip(*(map(float, line.split()) for line in met.read_text().splitlines()), strict=True)
        rejects = read_rejects(ring.settings)
        whole = [(pill.user.encode(), encode_event(pill)) for pill in bad]
        exact = sorted((r.key or b"", r.value or b"") for r in rejects) == whole
        named = all(reject.reason_class == "poison_crash" for reject in rejects)
        aside_s = max((reject.ts_ms for reject in rejects), default=0) / 1000 - times_s[0]
        attempts = len(times_s) / pills
        return ring.row(
            name if pills == 1 else f"{pills} {name}s",
            len(codes),
            good,
            passed=codes == [code] * len(times_s)
            and 1 < attempts <= LAST_ATTEMPT
            and counts[0] > 1
            and not codes_later
            and exact
            and named
            and aside_s <= limit_s,
            attempts=attempts,
            met_among=int(counts[0]),
            aside_s=round(aside_s, 1),
            ended_later=len(codes_later),
        )


def _tend(ring: Arena, most: int, limit_s: float) -> list[int]:
    """Start again at once what ends, until everything is processed; with which codes it ended.

    most: ends after which it is in vain to go on.
    """
    codes, started_s = list[int](), time.monotonic()
    while ring.behind():
        codes += ring.revive()
        assert len(codes) <= most, f"ended {len(codes)} times, and again"
        assert time.monotonic() - started_s < limit_s, f"not within {limit_s} s, ended {len(codes)} times"
        time.sleep(0.02)
    return codes


def _owned(ring: Arena, instance: str) -> int:
    """How many partitions a ranker has, as it says."""
    found = re.findall(r"partitions \[(.*?)\]", ring.log("ranker", instance).read_text())
    return len(found[-1].split(",")) if found and found[-1] else 0
