"""Workers that are stopped, replaced and woken: they must notice, and nothing of theirs may be seen.

A process that the kernel stops for a while (a paused machine, a swap storm) does not know it. It holds an open
transaction, its partitions and its locks as far as it can tell; meanwhile another has taken over.
"""

import os
import signal
from pathlib import Path

from chaos.arena import Row, arena, attempt, make_events, wait_for

from streams.embedded import Embedded

FENCED_S = 5.0
TAKEN_OVER_S = 90.0  # evicted after 10 s, its transaction aborted after 15; the rest is work, and a busy machine
# Where it is stopped, and who follows: its namesake, or another member after its eviction. Woken in time, by a slow
# clock so to say: a worker that slept for more than 10 s is ended by its own watchdog before it can say a word to the
# broker, which the last case shows.
CASES = {
    "same id": ("after_flush", "0", "unwatched.py"),
    "evicted": ("after_flush", "1", "unwatched.py"),
    "same id, early": ("after_apply", "0", "unwatched.py"),
    "evicted, early": ("after_apply", "1", "unwatched.py"),
    "evicted, watched": ("after_flush", "1", "child.py"),
}


def rows(services: Embedded, folder: Path, quick: bool) -> list[Row]:
    """Stopped inside its transaction or before it. Quick: the first case."""
    cases, events = (["same id"], 600) if quick else (list(CASES), 4000)
    return [attempt(f"zombie, {case}", lambda c=case: run(services, folder, c, events)) for case in cases]


def run(services: Embedded, folder: Path, case: str, count: int) -> Row:
    """Stop a worker, let a successor do the work, wake it."""
    point, successor, child = CASES[case]
    name = f"zombie, {case}"
    with arena(services, folder, name.replace(", ", "-").replace(" ", "-")) as ring:
        events = make_events(count, users=500, seed=3)
        ring.child = Path(__file__).parent / child
        zombie = ring.start("ranker", "0", f"{point}=stop@4")

        def refused() -> bool:  # where nothing of its own was open, it drops its batch and joins the group again
            return zombie.poll() is not None or "transaction aborted" in ring.log("ranker").read_text()

        try:
            ring.send(events[: count // 2])
            wait_for(lambda: _is_stopped(zombie.pid), 30, "the worker is stopped")
            theirs = ring.open_records()
            ring.start("ranker", successor)
            took_over_s = wait_for(lambda: not ring.behind(), TAKEN_OVER_S, "the successor has done the work")
            seen = ring.places()
            zombie.send_signal(signal.SIGCONT)
            fenced_s = wait_for(refused, 20, "the zombie is refused")
            visible = len(ring.places() - seen) + len(seen & theirs)
            ring.send(events[count // 2 :])
            wait_for(lambda: not ring.behind(), TAKEN_OVER_S, "the work goes on")
            exit_code = zombie.poll()
        finally:
            zombie.kill()
            zombie.wait()
        in_time = fenced_s <= FENCED_S and (exit_code == (1 if child == "child.py" else 70) or case == "evicted, early")
        return ring.row(
            name,
            ring.fired()[point],
            events,
            passed=ring.fired()[point] == 1 and bool(theirs) == (point == "after_flush") and in_time and not visible,
            fenced_s=round(fenced_s, 2),
            exit_code="none, it joined again" if exit_code is None else exit_code,
            open_records=len(theirs),
            visible=visible,
            took_over_s=round(took_over_s, 1),
        )


def _is_stopped(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
