"""What the engines of `slatecast bench scorer` share: their order, their clock, and how they answer.

A process reads its Order from stdin, gets ready and says what it is; then each line is the name of a task, and what it
found is the answer, until stdin ends. Nothing heavy is imported here: one of these processes is a ranker's start, timed.
Called by scorer_ours.py, scorer_peers.py and, for the types, by scorer.py.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

CANDIDATES, HISTORY = 200, 20  # of a request


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is told; folders absolute.

    texts: to embed; the first 200 are candidates, the next 20 a history. pairs: of how many candidates a cross-encoder
    scores. weights: a Hugging Face encoder; tower: the text tower made of it. core: to be pinned to, -1 for none.
    """

    engine: str
    folder: str
    texts: list[str] = []
    pairs: int = 0
    weights: str = ""
    tower: str = ""
    release: str = ""
    core: int = -1


class Took(msgspec.Struct, frozen=True):
    """Of one piece of work; the median where it was done several times."""

    wall_s: float
    cpu_s: float


class Engine(msgspec.Struct, frozen=True):
    """One that is ready. about: what it says of itself, and some answers to compare; tasks: what it can be asked."""

    about: dict[str, Any]
    tasks: dict[str, Callable[[], Any]] = {}


def serve(engines: Mapping[str, Callable[[Order], Engine]]) -> None:
    """Be one of these engines until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no answer
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    if order.core >= 0:
        from streams.bench.ground import pin

        pin(order.core)
    engine = engines[order.engine](order)
    answers.write(msgspec.json.encode(engine.about) + b"\n")
    for line in sys.stdin.buffer:
        answers.write(msgspec.json.encode(engine.tasks[line.decode().strip()]()) + b"\n")


def timed(work: Callable[[], Any], times: int = 1) -> Callable[[], Took]:
    """A task that does the work, and says how long it took."""

    def run() -> Took:
        wall_s, cpu_s = [], []
        for _ in range(times):
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            wall_s.append(time.perf_counter() - wall)
            cpu_s.append(time.process_time() - cpu)
        return Took(statistics.median(wall_s), statistics.median(cpu_s))

    return run
