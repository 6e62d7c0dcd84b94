"""Members join, leave and die, twelve times in half a minute, while events flow.

Every change moves partitions, and with them their state. Whoever owns a partition at a moment must be the only one, and
must have read what its predecessors wrote.
"""

import re
import signal
import time
from collections import Counter
from pathlib import Path
from random import Random
from subprocess import Popen

from chaos.arena import Arena, Flow, Row, arena, attempt, make_events, wait_for

from streams.embedded import Embedded

MEMBERS = ("0", "1", "2")
PARTITIONS = 6
PER_S, USERS = 60.0, 100
CYCLE = ("kill", "join", "leave", "join")  # so that there are two to four of them
CALM_S = 120.0  # a dead member's partitions move after 10 s, its open transaction holds their state back for 15
SEED = 13
RESTORED = re.compile(r"(\d+) changelog records in ([\d.]+) s")


def rows(services: Embedded, folder: Path, quick: bool) -> list[Row]:
    """Twelve changes in 30 s. Quick: four in 5 s."""
    changes, within_s = (4, 5.0) if quick else (12, 30.0)
    return [attempt("storm", lambda: run(services, folder, changes, within_s))]


def run(services: Embedded, folder: Path, changes: int, within_s: float) -> Row:
    """SIGKILLs, joins of new members and of some who were gone, SIGTERMs."""
    with (
        arena(services, folder, "storm", partitions=PARTITIONS) as ring,
        Flow(ring, make_events(100_000, users=USERS, seed=SEED), PER_S) as flow,
    ):
        for member in MEMBERS:
            ring.start("ranker", member)
        wait_for(
            lambda: all(RESTORED.search(ring.log("ranker", m).read_text()) for m in MEMBERS), 60, "all are members"
        )
        wait_for(lambda: ring.processed() > USERS, 60, "there is state to be moved")
        before, started_s = ring.processed(), time.monotonic()
        ended = _storm(ring, changes, within_s)
        took_s = time.monotonic() - started_s
        events = flow.stop()
        done = ring.processed() - before
        calm_s = wait_for(lambda: not ring.behind(), CALM_S, "what waited is done")
        restores = [found for log in ring.folder.glob("ranker-*.log") for found in RESTORED.findall(log.read_text())]
        moved = sum(int(count) for count, _ in restores)  # what is not on the disk of its new owner
        codes = {kind: Counter(process.wait(10) for process in processes) for kind, processes in ended.items()}
        killed, left = codes["kill"][-signal.SIGKILL], codes["leave"][0] + codes["leave"][-signal.SIGTERM]
        return ring.row(
            "storm",
            changes,
            events,
            passed=killed + left == changes // 2 and len(restores) > len(MEMBERS) and moved > 0 and done > 0,
            killed=killed,
            left=left,
            joined=changes // 2,
            took_s=round(took_s, 1),
            assignments=len(restores),
            moved_records=moved,
            slowest_restore_s=max(float(took_s) for _, took_s in restores),
            done_meanwhile=done,
            calm_s=round(calm_s, 1),
            sent=len(events),
        )


def _storm(ring: Arena, changes: int, within_s: float) -> dict[str, list[Popen[bytes]]]:
    """One change after the other, evenly in time; the processes that were ended, by how."""
    rng, started_s, fresh = Random(SEED), time.monotonic(), len(MEMBERS)
    alive, gone = list(MEMBERS), list[str]()
    ended: dict[str, list[Popen[bytes]]] = {"kill": [], "leave": []}
    for n in range(changes):
        time.sleep(max(0.0, started_s + n * within_s / changes - time.monotonic()))
        kind = CYCLE[n % len(CYCLE)]
        if kind == "join":
            if gone and rng.random() < 0.5:
                member = gone.pop(0)
            else:
                member, fresh = str(fresh), fresh + 1
            ring.start("ranker", member)
            alive.append(member)
        else:
            member = alive.pop(rng.randrange(len(alive) - 1))  # not the one that came last: it owns nothing yet
            gone.append(member)
            process = ring.processes.pop(("ranker", member))
            process.send_signal(signal.SIGKILL if kind == "kill" else signal.SIGTERM)
            ended[kind].append(process)
    return ended
