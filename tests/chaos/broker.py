"""The broker is killed, stopped, and left with a transaction that nobody ends.

Workers are those of `slatecast run`: whatever ends is started again by the real Supervisor, after its pause.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from chaos.arena import Arena, Flow, Row, arena, attempt, make_events, wait_for

from streams.embedded import Embedded
from streams.roles import Supervisor

INSTANCES = ("0", "1")
PER_S = 60.0  # what two workers do with ease on a busy machine too
UNDER_LOAD_S = 3.0  # of a steady flow before each fault
RECOVERED_S = 10.0
BUSY_S = 60.0  # inside the suite, which is no judge of times: other work may go on beside it
STOPPED_S = 8.0
ABORTED_S = 25.0  # a transaction's time is 15 s, and the broker looks now and then


def rows(services: Embedded, folder: Path, quick: bool) -> list[Row]:
    """Kills, a stop, an abandoned transaction. Quick: one kill."""
    if quick:
        return [attempt("broker killed", lambda: run_kills(services, folder, 1, PER_S / 4, BUSY_S))]
    return [
        attempt("broker killed", lambda: run_kills(services, folder, 3)),
        attempt("broker stopped", lambda: run_stop(services, folder, 2)),
        attempt("abandoned transaction", lambda: run_abandoned(services, folder)),
    ]


def run_kills(services: Embedded, folder: Path, kills: int, per_s: float = PER_S, limit_s: float = RECOVERED_S) -> Row:
    """SIGKILL under load, and a start on the same data."""

    def fault() -> float:
        services.kill("kafka")
        died_s = time.monotonic()
        services.start_broker()
        return time.monotonic() - died_s

    return _under_load(services, folder, "broker killed", fault, kills, per_s, limit_s)


def run_stop(services: Embedded, folder: Path, stops: int) -> Row:
    """SIGSTOP under load for longer than a heartbeat may take."""

    def fault() -> float:
        process = services.processes["kafka"]
        process.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_S)
        process.send_signal(signal.SIGCONT)
        return STOPPED_S

    return _under_load(services, folder, "broker stopped", fault, stops, PER_S, RECOVERED_S)


def run_abandoned(services: Embedded, folder: Path) -> Row:
    """A worker dies inside its transaction and never comes back; the broker ends it, and another goes on."""
    with arena(services, folder, "abandoned") as ring:
        events = make_events(2000, users=500, seed=8)
        ring.send(events)
        dead = ring.start("ranker", "0", "after_flush=kill@4")
        wait_for(lambda: dead.poll() is not None, 30, "the worker is killed")
        theirs = ring.open_records()
        ring.start("ranker", "1")
        aborted_s = wait_for(lambda: not ring.open_records() & theirs, 60, "the broker has ended the transaction")
        wait_for(lambda: not ring.behind(), 60, "another has done the work")
        visible = len(ring.places() & theirs)
        return ring.row(
            "abandoned transaction",
            ring.fired()["after_flush"],
            events,
            passed=bool(theirs) and not visible and aborted_s <= ABORTED_S,
            open_records=len(theirs),
            visible=visible,
            aborted_s=round(aborted_s, 1),
        )


def _under_load(
    services: Embedded,
    folder: Path,
    name: str,
    fault: Callable[[], float],
    times: int,
    per_s: float,
    limit_s: float,
) -> Row:
    """Two supervised workers and a steady flow; how soon after each fault no more waits than a second's worth.

    Counted by what was sent, not by what the broker has: what waits in the sender is behind too.
    """
    with (
        arena(services, folder, name.replace(" ", "-")) as ring,
        Flow(ring, make_events(100_000, users=500, seed=7), per_s) as flow,
    ):
        out_s, recovered_s, waited = [], [], []

        def waiting() -> int:
            return flow.sent - ring.processed()

        with _supervised(ring) as started:
            for _ in range(times):
                until = flow.sent + per_s * UNDER_LOAD_S
                wait_for(lambda u=until: flow.sent >= u and waiting() <= per_s, 90, "a steady flow")
                out_s.append(fault())
                waited.append(waiting())
                recovered_s.append(wait_for(lambda: waiting() <= per_s, 120, "what waited is done"))
            events = flow.stop()
            wait_for(lambda: not ring.behind(), 60, "the rest is done")
        return ring.row(
            name,
            times,
            events,
            passed=max(recovered_s) <= limit_s and min(waited) > per_s,
            recovered_s=round(max(recovered_s), 1),
            out_s=round(max(out_s), 1),
            waited=max(waited),
            restarts=len(started) - len(INSTANCES),
            sent=len(events),
        )


@contextlib.contextmanager
def _supervised(ring: Arena) -> Iterator[set[int]]:
    """Workers as `slatecast run` keeps them; the process ids there have been."""
    crews = [Supervisor(ring.settings, ["ranker"], ring.log("ranker", i), i) for i in INSTANCES]
    pids, over = set[int](), threading.Event()

    def tend() -> None:
        while not over.wait(0.05):
            for crew in crews:
                crew.tend()
                pids.update(process.pid for process in crew.processes.values())

    thread = threading.Thread(target=tend)
    thread.start()
    try:
        yield pids
    finally:
        over.set()
        thread.join()
        for crew in crews:
            crew.stop()
