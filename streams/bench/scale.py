"""`slatecast bench scale`: how much more two workers do than one, and what the limit was.

Rankers with lists over a backlog, scored by a network of the size of a small tower, so that nearly all the work is the
worker's own and the broker has little of it. One worker and two in turn; what counts is the time in which all of them
are at work. Before that each process only scores, without Kafka: what two of them do then is what the machine can.
"""

import contextlib
import os
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec

from recsys.catalogue import encode_item
from recsys.errors import Unavailable
from recsys.events import encode_event
from streams.bench import scale_engine
from streams.bench.ground import ENGINE_LIMIT_S, command, environ, ground, produce
from streams.bench.hot_path import make_events, make_items
from streams.bench.scale_engine import Mark, Order, Said, What
from streams.settings import Settings

BACKLOG_PER_S = 1000  # events to lay ready for each second: no two cores make as many lists of this kind
START_S, WARM_S = 10, 20
FULL = 0.85  # a worker that computes so much of the time waits for nothing
IDLE = 0.15  # cores; less is none
Limit = Literal["broker", "cores", "workers", "unknown"]
COUNTS = (1, 2)


class Window(msgspec.Struct, frozen=True):
    """While all engines were at work. worker_cores: how much of a core each used; idle, broker: None if unknown."""

    per_s: float
    worker_cores: list[float]
    broker_cores: float | None
    idle_cores: float | None


def measure(
    settings: Settings, seconds: float, rounds: int, tell: Callable[[str], None], broker_pid: int = 0
) -> dict[str, object]:
    """The whole benchmark. tell: what is running now. broker_pid: whose processor time counts as the broker's."""
    found: dict[tuple[What, int], list[Window]] = defaultdict(list)
    with contextlib.ExitStack() as grounds:
        tell("laying a backlog")
        places = {count: grounds.enter_context(ground(settings, f"scale-{count}")) for count in COUNTS}
        for own in places.values():
            _stock(own, int(BACKLOG_PER_S * (seconds + START_S) * rounds + BACKLOG_PER_S * WARM_S))
        if broker_pid:  # one that has just started compiles itself: .25 of a core, where it needs .1 later
            tell("warming the broker up")
            _watch(places[2], 2, WARM_S, broker_pid)
        for number in range(rounds):
            for count, own in places.items():
                tell(f"round {number + 1} of {rounds}: {count} worker{'s' * (count > 1)}")
                for what, window in _watch(own, count, seconds, broker_pid).items():
                    found[what, count].append(window)
    rate = {place: statistics.median(window.per_s for window in windows) for place, windows in found.items()}
    two = found["working", 2]
    worker_cores = statistics.median(cores for window in two for cores in window.worker_cores)
    idle, broker = _middle([window.idle_cores for window in two]), _middle([window.broker_cores for window in two])
    machine, efficiency = (rate[what, 2] / rate[what, 1] / 2 for what in get_args(What))
    per_cpu_s = {
        count: statistics.median(w.per_s / sum(w.worker_cores) for w in found["working", count]) for count in (1, 2)
    }
    return {
        "efficiency": efficiency,
        "limit": limit_of(worker_cores, idle),
        "machine_efficiency": machine,
        "efficiency_per_cpu_s": per_cpu_s[2] / per_cpu_s[1],
        "events_per_cpu_s": per_cpu_s[1],
        "events_per_s": {count: [round(w.per_s, 1) for w in found["working", count]] for count in (1, 2)},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "worker_cores": worker_cores,
        "broker_cores": broker,
        "broker_cores_with_one": _middle([window.broker_cores for window in found["working", 1]]),
        "idle_cores": idle,
        "seconds": seconds,
        "rounds": rounds,
    }


def limit_of(worker_cores: float, idle_cores: float | None) -> Limit:
    """What two workers lacked. Workers: nothing, each computed all the time, more of them would do more.

    cores: a worker had to wait for a core. broker: cores were idle, and the workers waited for its answers.
    """
    if worker_cores >= FULL:
        return "workers"
    if idle_cores is None:
        return "unknown"
    return "cores" if idle_cores < IDLE else "broker"


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _stock(settings: Settings, events: int) -> None:
    produce(settings, "items", [(item.item, encode_item(item)) for item in make_items()])
    now_ms = time.time_ns() // 1_000_000
    produce(settings, "events", ((event.user, encode_event(event)) for event in make_events(events, 1, now_ms)))


# --- watching engines --------------------------------------------------------------------------------------------------


def _watch(settings: Settings, count: int, seconds: float, broker_pid: int) -> dict[What, Window]:
    """Some engines for some seconds at each kind of work."""
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(_engine(Order(settings, str(n)))) for n in range(count)]
        scoring = _window([engine.marks["scoring"] for engine in engines], engines, seconds, broker_pid)
        for engine in engines:
            _tell(engine, b"work\n")
        working = _window([engine.marks["working"] for engine in engines], engines, seconds, broker_pid)
    return {"scoring": scoring, "working": working}


def _window(parts: list[list[Mark]], engines: Sequence["Engine"], seconds: float, broker_pid: int) -> Window:
    """From when the last of them is at work."""
    _wait_for(lambda: all(parts), engines)
    begins = [marks[-1] for marks in parts]
    begin_s, idle_s, broker_s = time.monotonic(), _idle_s(), _cpu_s(broker_pid)
    _wait_for(lambda: all(marks[-1].at_s >= begin_s + seconds for marks in parts), engines)
    ends = [marks[-1] for marks in parts]
    took_s = time.monotonic() - begin_s
    idle_s, broker_s = _since(idle_s, _idle_s()), _since(broker_s, _cpu_s(broker_pid))
    spans = list(zip(begins, ends, strict=True))
    return Window(
        sum((end.done - begin.done) / (end.at_s - begin.at_s) for begin, end in spans),
        [(end.cpu_s - begin.cpu_s) / (end.at_s - begin.at_s) for begin, end in spans],
        broker_s and broker_s / took_s,
        idle_s and idle_s / took_s,
    )


class Engine(msgspec.Struct, frozen=True):
    """One that runs. Its marks grow."""

    process: subprocess.Popen[bytes]
    marks: dict[What, list[Mark]]


@contextlib.contextmanager
def _engine(order: Order) -> Iterator[Engine]:
    """A process for the length of a block: it ends by the end of its stdin."""
    with subprocess.Popen(
        command(scale_engine.__name__), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ()
    ) as process:
        engine = Engine(process, {what: [] for what in get_args(What)})
        reading = threading.Thread(target=_read, args=[engine])
        reading.start()
        assert process.stdin is not None  # noqa: S101 - it was opened as a pipe
        try:
            _tell(engine, msgspec.json.encode(order) + b"\n")
            yield engine
        finally:
            process.stdin.close()
            reading.join(ENGINE_LIMIT_S)


def _tell(engine: Engine, line: bytes) -> None:
    assert engine.process.stdin is not None  # noqa: S101 - it was opened as a pipe
    engine.process.stdin.write(line)
    engine.process.stdin.flush()


def _read(engine: Engine) -> None:
    for line in engine.process.stdout or ():
        said = msgspec.json.decode(line, type=Said)
        engine.marks[said.what].append(said.mark)


def _wait_for(condition: Callable[[], bool], engines: Sequence[Engine]) -> None:
    deadline_s = time.monotonic() + ENGINE_LIMIT_S
    while not condition():
        ended = any(engine.process.poll() is not None for engine in engines)
        if ended or time.monotonic() > deadline_s:
            raise Unavailable("a worker ended, or came to a stand; what it said stands above")
        time.sleep(0.02)


def _since(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else now - before


def _cpu_s(pid: int) -> float | None:
    """Processor time of a process so far; None where nobody says."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() if pid else []
        if fields:
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return None


def _idle_s() -> float | None:
    """Time that cores had nothing to do so far, all together; None where nobody says."""
    with contextlib.suppress(OSError):
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
    return None
