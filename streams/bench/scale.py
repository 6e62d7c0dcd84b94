"""`slatecast bench scale`: how much more two workers do than one, and what the limit was.

Rankers with lists over a backlog, scored by a network of the size of a small tower, so that nearly all the work is the
worker's own and the broker has little of it. One worker and two in turn; what counts is the time in which all of them
are at work. The same scoring without Kafka, in one process and in two, says what the machine itself can.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.catalogue import encode_item
from recsys.errors import Unavailable
from recsys.events import encode_event
from recsys.features import NAMES
from recsys.pipeline import Scored
from streams.bench.engines import StubModels
from streams.bench.ground import ENGINE_LIMIT_S, command, environ, ground, produce
from streams.bench.hot_path import make_events, make_items
from streams.ranker import LIVE_BATCH, RankerTask
from streams.settings import Settings
from streams.worker import Worker

BACKLOG_PER_S = 1000  # events to lay ready for each second: no two cores make as many lists of this kind
WARM_S = 10
WIDTH, CHUNK = 1024, 256  # 1.1 million weights, 10 ms a list with all else; rows that fit a cache
FULL = 0.85  # a worker that computes so much of the time waits for nothing
IDLE = 0.15  # cores; less is none
Limit = Literal["broker", "cores", "workers", "unknown"]


class Order(msgspec.Struct, frozen=True):
    """What an engine is told. settings: none for scoring alone."""

    settings: Settings | None
    instance: str


class Mark(msgspec.Struct, frozen=True):
    """What an engine says again and again. at_s: of the machine's monotonic clock, which its processes share."""

    at_s: float
    done: int
    cpu_s: float


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
    with contextlib.ExitStack() as grounds:
        tell("laying a backlog")
        places: dict[tuple[str, int], Settings | None] = {("scoring", 1): None, ("scoring", 2): None}
        for count in (1, 2):
            own = grounds.enter_context(ground(settings, f"scale-{count}"))
            _stock(own, int(BACKLOG_PER_S * (seconds + WARM_S) * rounds))
            places["workers", count] = own
        found: dict[tuple[str, int], list[Window]] = {place: [] for place in places}
        for number in range(rounds):
            for (what, count), windows in found.items():
                tell(f"round {number + 1} of {rounds}: {what} in {count} process{'es' * (count > 1)}")
                windows.append(_watch(places[what, count], count, seconds, broker_pid))
    rate = {place: statistics.median(window.per_s for window in windows) for place, windows in found.items()}
    two = found["workers", 2]
    worker_cores = statistics.median(cores for window in two for cores in window.worker_cores)
    idle, broker = _middle([window.idle_cores for window in two]), _middle([window.broker_cores for window in two])
    machine, efficiency = (rate[what, 2] / rate[what, 1] / 2 for what in ("scoring", "workers"))
    per_cpu_s = {
        count: statistics.median(w.per_s / sum(w.worker_cores) for w in found["workers", count]) for count in (1, 2)
    }
    return {
        "efficiency": efficiency,
        "limit": limit_of(worker_cores, idle),
        "machine_efficiency": machine,
        "efficiency_per_cpu_s": per_cpu_s[2] / per_cpu_s[1],
        "events_per_cpu_s": per_cpu_s[1],
        "events_per_s": {count: [round(w.per_s, 1) for w in found["workers", count]] for count in (1, 2)},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "worker_cores": worker_cores,
        "broker_cores": broker,
        "broker_cores_with_one": _middle([window.broker_cores for window in found["workers", 1]]),
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


def _watch(settings: Settings | None, count: int, seconds: float, broker_pid: int) -> Window:
    """Some engines for some seconds, from when the last of them is at work."""
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(_engine(Order(settings, str(n)))) for n in range(count)]
        _wait_for(engines, lambda engine: bool(engine.marks))
        begins = [engine.marks[-1] for engine in engines]
        begin_s, idle_s, broker_s = time.monotonic(), _idle_s(), _cpu_s(broker_pid)
        _wait_for(engines, lambda engine: engine.marks[-1].at_s >= begin_s + seconds)
        ends = [engine.marks[-1] for engine in engines]
        took_s = time.monotonic() - begin_s
        idle_s, broker_s = _since(idle_s, _idle_s()), _since(broker_s, _cpu_s(broker_pid))
    took = [
        (end.done - begin.done, end.cpu_s - begin.cpu_s, end.at_s - begin.at_s)
        for begin, end in zip(begins, ends, strict=True)
    ]
    return Window(
        sum(done / s for done, _, s in took),
        [cpu_s / s for _, cpu_s, s in took],
        broker_s and broker_s / took_s,
        idle_s and idle_s / took_s,
    )


class Engine(msgspec.Struct, frozen=True):
    """One that runs. marks grows."""

    process: subprocess.Popen[bytes]
    marks: list[Mark]


@contextlib.contextmanager
def _engine(order: Order) -> Iterator[Engine]:
    """A process for the length of a block: it ends by the end of its stdin."""
    with subprocess.Popen(
        command(__spec__.name), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ()
    ) as process:
        engine = Engine(process, [])
        reading = threading.Thread(target=_read, args=[engine])
        reading.start()
        assert process.stdin is not None  # noqa: S101 - it was opened as a pipe
        try:
            process.stdin.write(msgspec.json.encode(order) + b"\n")
            process.stdin.flush()
            yield engine
        finally:
            process.stdin.close()
            reading.join(ENGINE_LIMIT_S)


def _read(engine: Engine) -> None:
    for line in engine.process.stdout or ():
        engine.marks.append(msgspec.json.decode(line, type=Mark))


def _wait_for(engines: Sequence[Engine], condition: Callable[[Engine], bool]) -> None:
    deadline_s = time.monotonic() + ENGINE_LIMIT_S
    while not all(map(condition, engines)):
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


# --- the engines -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Be one engine until stdin ends."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    stop = threading.Event()

    def end_with_parent() -> None:
        os.read(0, 1)  # not sys.stdin: its lock, held by this thread, would stop the interpreter's exit
        stop.set()

    threading.Thread(target=end_with_parent, daemon=True).start()
    if order.settings is None:
        _score(stop)
    else:
        _work(order.settings, order.instance, stop)


def _work(settings: Settings, instance: str, stop: threading.Event) -> None:
    """The worker with the ranker's task, lists and all."""
    task = RankerTask(settings, Tower())
    task.shelf.catch_up()
    task.batch_limit = LIVE_BATCH  # the first batch too, however slow the machine is (worker.py, PROCESS_LIMIT_S)
    worker, said = Worker(settings, "ranker", task, instance), 0

    def after_batch() -> None:
        nonlocal said
        if worker.processed > said:
            said = worker.processed
            _mark(said)

    worker.run(stop, after_batch)


def _score(stop: threading.Event) -> None:
    """Nothing but scoring."""
    models, done = Tower(), 0
    features = np.random.default_rng(1).normal(size=(CHUNK, len(NAMES))).astype(np.float32)
    while not stop.is_set():
        for _ in range(32):
            models.score(features)
        done += 32
        _mark(done)


def _mark(done: int) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(Mark(time.monotonic(), done, time.process_time())) + b"\n")
    sys.stdout.buffer.flush()


class Tower(StubModels):
    """Real ONNX, and a dense network beside it: what a tower costs, not what it is worth."""

    def __init__(self) -> None:
        super().__init__()
        shapes = ((len(NAMES), WIDTH), (WIDTH, WIDTH), (WIDTH, 2))
        self._layers = [self._rng.normal(0, 0.05, shape).astype(np.float32) for shape in shapes]

    def score(self, features: NDArray[np.float32]) -> Scored:
        """The linear scorer's logits; the network's are thrown away."""
        for begin in range(0, len(features), CHUNK):
            hidden = features[begin : begin + CHUNK]
            for weight in self._layers:
                hidden = np.maximum(hidden @ weight, 0)
        return super().score(features)


if __name__ == "__main__":
    main()
