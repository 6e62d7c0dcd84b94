"""One engine of `slatecast bench scale`: scores alone, then works as a ranker, and says on stdout how far it is.

A process of its own, which `streams/bench/scale.py` starts, tells what to do on stdin, and ends by closing it.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys import diversify
from recsys.features import NAMES
from recsys.scoring import Ask, Scored, Trail
from streams.bench.engines import StubModels
from streams.ranker import RankerTask
from streams.settings import Settings
from streams.worker import Worker

WIDTH, CHUNK = 1024, 256  # 1.1 million weights, 10 ms a list with all else; rows that fit a cache
What = Literal["scoring", "working"]


class Order(msgspec.Struct, frozen=True):
    """What an engine is told: to score; at the next line, to be a worker; at the end of stdin, to end."""

    settings: Settings
    instance: str


class Mark(msgspec.Struct, frozen=True):
    """What an engine says again and again. at_s: of the machine's monotonic clock, which its processes share."""

    at_s: float
    done: int
    cpu_s: float


class Said(msgspec.Struct, frozen=True):
    """A line of an engine."""

    what: What
    mark: Mark


class Tower(StubModels):
    """Real ONNX, and a dense network beside it: what a tower costs, not what it is worth."""

    def __init__(self) -> None:
        super().__init__()
        shapes = ((len(NAMES), WIDTH), (WIDTH, WIDTH), (WIDTH, 2))
        self._layers = [self._rng.normal(0, 0.05, shape).astype(np.float32) for shape in shapes]

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        """The linear scorer's logits; the network's are thrown away."""
        features = np.concatenate([ask.features for ask in asks])
        for begin in range(0, len(features), CHUNK):
            hidden = features[begin : begin + CHUNK]
            for weight in self._layers:
                hidden = np.maximum(hidden @ weight, 0)
        return super().score(asks, vectors)


def main() -> None:
    """Be one engine until stdin ends."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    work, stop = threading.Event(), threading.Event()

    def listen() -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock, held by this thread, would stop the interpreter's exit
            work.set()
        work.set()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    models = Tower()
    _score(models, work)
    _work(models, order, stop)


def _score(models: Tower, until: threading.Event) -> None:
    """Nothing but scoring."""
    done, features = 0, np.random.default_rng(1).normal(size=(CHUNK, len(NAMES))).astype(np.float32)
    nothing = Trail(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2), np.float32))
    asks = [Ask(np.zeros(CHUNK, np.int64), features, nothing)]
    while not until.is_set():
        models.score(asks, np.zeros((1, 0), np.float32))
        done += 1
        _say("scoring", done)


def _work(models: Tower, order: Order, stop: threading.Event) -> None:
    """The worker with the ranker's task, lists and all."""
    task = RankerTask(order.settings, models)
    task.shelf.catch_up()
    diversify.warm_up()  # else the watchdog would take a compiler at work for a record that hangs
    worker, said = Worker(order.settings, "ranker", task, order.instance), 0

    def after_batch() -> None:
        nonlocal said
        if worker.processed > said:
            said = worker.processed
            _say("working", said)

    worker.run(stop, after_batch)


def _say(what: What, done: int) -> None:
    said = Said(what, Mark(time.monotonic(), done, time.process_time()))
    sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
