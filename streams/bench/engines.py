"""The engines that are compared, each alone in a process pinned to one core: ours, a bare loop, ours with scoring.

A process reads its Run from stdin, works until every event is committed, and prints what it measured. The bare loop
is the floor: the same transactions, the same number and size of outputs, and nothing else.
"""

import os
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import TopicPartition
from numpy.typing import NDArray

from models.scorer import Network, OnnxScorer
from recsys import diversify
from recsys.features import NAMES
from recsys.item_models import ItemModels
from recsys.profiles import ID_WIDTH, KEEP_IDS, KEEP_TOUCHES
from recsys.scoring import Ask, Scored
from streams import clients
from streams.ranker import BULK_BATCH, RankerTask
from streams.settings import Settings
from streams.worker import LINGER_S, Worker

DIM = 384


class Run(msgspec.Struct, frozen=True):
    """What an engine is told. core: to pin to, -1 to leave; events: how many are on the topic."""

    engine: str
    settings: Settings
    events: int
    core: int = 1


class Measured(msgspec.Struct, frozen=True):
    """What an engine says. From the first commit to the last, so start-up and restore do not count."""

    events_per_s: float
    cpu_s_per_event: float
    stage_share: dict[str, float] = {}
    candidates: float = 0.0


def main() -> None:
    """Be one engine."""
    run = msgspec.json.decode(sys.stdin.buffer.readline(), type=Run)
    if run.core >= 0 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {run.core})
    engines: dict[str, Any] = {"ours": run_ours, "bare": run_bare, "scoring": run_scoring}
    sys.stdout.buffer.write(msgspec.json.encode(engines[run.engine](run)) + b"\n")


class Clock:
    """From the first commit to the last."""

    def __init__(self) -> None:
        self._from: tuple[int, float, float] | None = None
        self._to = (0, 0.0, 0.0)

    def mark(self, done: int) -> None:
        """So many events are committed by now."""
        self._to = (done, time.perf_counter(), time.process_time())
        if self._from is None and done:
            self._from = self._to

    def measured(self, **more: Any) -> Measured:
        """The rates between the first mark and the last."""
        assert self._from is not None  # noqa: S101 - an engine ends only after its events
        count = self._to[0] - self._from[0]
        wall_s = self._to[1] - self._from[1]
        return Measured(count / wall_s, (self._to[2] - self._from[2]) / count, **more)


def run_ours(run: Run) -> Measured:
    """The worker with the ranker's task, profiles only."""
    return _work(run, RankerTask(run.settings, StubModels(), slates=False, pairs=False), Clock())


def run_scoring(run: Run) -> Measured:
    """The same with pairs and lists: candidates, features, an ONNX scorer, diversity. Shares of the stages."""
    spent: defaultdict[str, float] = defaultdict(float)
    last_s = time.perf_counter()

    def tick(stage: str) -> None:
        nonlocal last_s
        now_s = time.perf_counter()
        spent[stage] += now_s - last_s
        last_s = now_s

    models = StubModels()
    task = RankerTask(run.settings, models, tick=tick)
    task.shelf.catch_up()
    diversify.warm_up()  # else the watchdog would take a compiler at work for a record that hangs
    measured = _work(run, task, Clock())
    total = sum(spent.values())
    shares = {stage: round(s / total, 4) for stage, s in sorted(spent.items(), key=lambda pair: -pair[1])}
    return msgspec.structs.replace(measured, stage_share=shares, candidates=models.rows / max(task.counts["slates"], 1))


def _work(run: Run, task: RankerTask, clock: Clock) -> Measured:
    worker, stop = Worker(run.settings, "ranker", task, "0"), threading.Event()

    def after_batch() -> None:
        clock.mark(worker.processed)
        if worker.processed >= run.events:
            stop.set()

    worker.run(stop, after_batch)
    return clock.measured()


def run_bare(run: Run) -> Measured:
    """Consume, produce as many records of the same size as ours would, commit: the floor."""
    clock, done = Clock(), 0
    name, out = run.settings.prefix + "events", run.settings.prefix + "profiles"
    consumer = clients.consumer(run.settings, f"{run.settings.prefix}bare", instance_id="bare-0")
    producer = clients.producer(run.settings, transactional_id=f"{run.settings.prefix}bare.0")
    admin = clients.admin(run.settings)
    producer.init_transactions(30)
    consumer.assign([TopicPartition(name, p, 0) for p in clients.partitions_of(admin, name)])
    filler, known = os.urandom(4096), Counter[bytes]()
    while done < run.events:
        first = consumer.poll(0.1)
        if first is None:
            continue
        batch = [first, *consumer.consume(BULK_BATCH - 1, LINGER_S)]
        producer.begin_transaction()
        ends: dict[int, int] = {}
        touched: dict[bytes, int] = {}
        for message in batch:
            key, partition = message.key() or b"", message.partition() or 0
            known[key] += 1
            touched[key] = partition
            ends[partition] = (message.offset() or 0) + 1
        for key, partition in touched.items():
            size = ID_WIDTH * min(known[key], KEEP_IDS) + 11 * min(known[key], KEEP_TOUCHES) + 12
            producer.produce(out, filler[:size], key, partition)
        offsets = [TopicPartition(name, p, end) for p, end in ends.items()]
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), 30)
        producer.commit_transaction(-1)
        done += len(batch)
        clock.mark(done)
    consumer.close()
    return clock.measured()


class StubModels:
    """A scorer of the real size with random weights, and random vectors: what scoring costs, not what it is worth."""

    release, provider, dim = "benchmark", "CPUExecutionProvider", DIM
    item_models = ItemModels()

    def __init__(self) -> None:
        self._rng, self.rows = np.random.default_rng(0), 0
        ones = np.ones(len(NAMES), np.float32)
        weight = self._rng.normal(0, 0.1, (len(NAMES), 2)).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scorer.onnx"
            Network(weight, np.zeros(2, np.float32), 0 * ones, ones).save(path)
            self._scorer = OnnxScorer(path, len(NAMES))

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        """Real ONNX, random weights."""
        features = np.concatenate([ask.features for ask in asks])
        self.rows += len(features)
        return Scored(self._scorer.score(features), "network_onnx")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Random unit vectors."""
        vectors = self._rng.normal(size=(len(texts), DIM)).astype(np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)

    def vector(self, text_hash: str) -> NDArray[np.float32] | None:
        """None is cached."""
        return None


if __name__ == "__main__":
    main()
