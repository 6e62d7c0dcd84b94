"""The scorers of a release as a ladder: the best that answers makes the list, and the list says which it was.

    sequence       mean of features' network and sequence tower, by ONNX, on CUDA where there is a device
    sequence_cpu   the same on CPU, in float32; only where the first is on CUDA
    network        features' network, by ONNX on CPU
    linear         features by a matrix product in NumPy: no runtime that could fail
    rank_fusion    no logits: the pipeline then ranks by fusion of the sources

A rung that raises, answers with numbers that are not finite, or does not come back costs one deadline, once. It is
tried again beside the lists, opened anew, with growing pauses; lists wait for it only after it has answered. Called by
serving.py and by evaluation.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from models.devices import CPU, CUDA, Gpu, why_no_cuda
from models.scorer import Network, OnnxScorer, feature_width
from models.sequence_tower import GRAPH, HALF, SequenceTower
from recsys.errors import ModelRejected
from recsys.features import NAMES
from recsys.scoring import Ask, Scored, Trail

log = logging.getLogger(__name__)

# A call takes 16 ms of one core. Three rungs that hang one after the other must stay below the 5 s after which the
# worker's watchdog ends the process.
DEADLINE_S = 1.0
# Candidates in one call, padded. On CPU 8 lists of 200: as fast as 32 in one call (62 ms for 32 lists of which each reads
# a full trail), with 40 MB inside the tower instead of 180. A GPU wants larger ones; 32 lists, not measured.
CALL_CANDIDATES = {CPU: 1_600, CUDA: 6_400}
PAUSE_S, PAUSE_MAX_S = 1.0, 20.0  # between trials of a rung that failed; a mended one is back within half a minute
SCORERS = ("sequence", "sequence_cpu", "network", "linear", "rank_fusion")  # as lists name them, the best first
TRIAL_S = 30.0  # a trial may load CUDA's kernels; it holds up nobody, but must not hold its thread for ever

Logits = NDArray[np.float32]


class Scorer(Protocol):
    """What a rung asks, in a thread of its own: the graphs below, or the deep stage (deep.py)."""

    provider: str

    def warm_up(self) -> None:
        """A first inference."""
        ...

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Logits:
        """Of all candidates, stacked in the order of the lists. May raise anything."""
        ...

    def stop(self) -> None:
        """Called by another thread: the call in hand raises soon."""
        ...


class Ladder:
    """Scorers of a release folder, the best first, each warmed up.

    clock_s: monotonic; deadline_s: for one call. Raises ModelRejected if a graph is none, or for other features. One
    that loads but does not answer leaves its lists to the next, as it would later.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        gpu: Gpu = "auto",
        clock_s: Callable[[], float] = time.monotonic,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        width = feature_width(names, NAMES)
        weights = load_file(folder / "linear.safetensors")
        self._linear = Network(weights["weight"], weights["bias"], weights["mean"], weights["std"])

        network = (folder / "scorer.onnx").read_bytes()  # kept: a rung opened anew is what was verified

        def rung(name: str, tower: bytes | None = None, *, cpu: bool = False, resident: bool = False) -> Rung:
            def opened() -> Graphs:
                return Graphs(network, width, tower, gpu=gpu, cpu=cpu, resident=resident)

            return Rung(name, opened, clock_s, deadline_s)

        self._rungs = [rung("network")]
        if (folder / "sequence").exists():
            exact, first = (folder / "sequence" / GRAPH).read_bytes(), None
            if gpu == "fast" and not why_no_cuda():
                try:
                    first = rung("sequence", (folder / "sequence" / HALF).read_bytes(), resident=True)
                except (ModelRejected, FileNotFoundError) as error:  # a release of before has none
                    log.error("the graph for gpu = fast cannot be had, the exact one serves: %s", error)
            first = first or rung("sequence", exact)
            spare = [rung("sequence_cpu", exact, cpu=True)] if first.provider == CUDA else []
            self._rungs = [first, *spare, *self._rungs]
        self.provider = self._rungs[0].provider

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        """Logits of the best scorer that answers; the reason why a better one did not. Never raises, never NaN."""
        features = _stack(asks)
        if not np.isfinite(features).all():  # our own bug, and no scorer's fault: none of them is asked
            row, column = np.argwhere(~np.isfinite(features))[0].tolist()
            return Scored(None, "rank_fusion", f"features: {NAMES[column]} of candidate {row} is not a finite number")
        reasons: list[str] = []
        for rung in self._rungs:
            logits = rung.score(asks, vectors)
            if logits is not None:
                return Scored(logits, rung.name, " | ".join(reasons) or None)
            reasons.append(rung.reason)
        try:
            return Scored(_finite(self._linear.score(features)), "linear", " | ".join(reasons))
        except (ModelRejected, ValueError) as error:
            return Scored(None, "rank_fusion", " | ".join([*reasons, f"linear: {error}"]))


class Rung:
    """One scorer with a thread of its own, which costs a call 20 µs (median; 40 µs on a busy machine).

    reason: why it makes no lists at present, empty while it does. Not thread-safe: one caller.
    """

    def __init__(
        self, name: str, open_scorer: Callable[[], "Scorer"], clock_s: Callable[[], float], deadline_s: float
    ) -> None:
        self.name, self.reason = name, ""
        self._open, self._clock_s, self._deadline_s = open_scorer, clock_s, deadline_s
        self._pause_s, self._since_s, self._again_s, self._trial_s = PAUSE_S, -float("inf"), 0.0, 0.0
        self._trial: SimpleQueue[Answer] | None = None
        self._scorer = open_scorer()
        self.provider = self._scorer.provider
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        threading.Thread(target=_work, args=[self._jobs], name=f"scorer-{name}", daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)  # with the rung its thread and its session go
        try:
            self._scorer.warm_up()  # here, without a deadline: CUDA's first call may take seconds
        except Exception as error:  # ONNX Runtime's errors have no common type; the slate names it
            self._fall(error)

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Logits | None:
        """Logits, or None if it does not serve: `reason` says why."""
        if self.reason and not self._is_back(asks, vectors):
            return None
        try:
            return np.concatenate([self._call(few, vectors) for few in split(asks, CALL_CANDIDATES[self.provider])])
        except Exception as error:  # as above
            self._fall(error)
            return None

    def _call(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Logits:
        try:
            logits, error = self._post(lambda: self._scorer.score(asks, vectors)).get(timeout=self._deadline_s)
        except Empty:
            self._scorer.stop()
            raise TimeoutError(f"no answer within {self._deadline_s:g} s") from None
        if logits is None:
            raise error or RuntimeError("no answer")
        return logits

    def _post(self, work: Callable[[], Logits]) -> "SimpleQueue[Answer]":
        answer: SimpleQueue[Answer] = SimpleQueue()
        self._jobs.put((work, answer))
        return answer

    def _fall(self, error: Exception) -> None:
        """From now on the next rung makes the lists."""
        now_s, said = self._clock_s(), self.reason
        settled = not said and now_s - self._since_s > PAUSE_MAX_S  # else it fails, comes back, fails: longer pauses
        self._pause_s = PAUSE_S if settled else min(2 * self._pause_s, PAUSE_MAX_S)
        self._again_s = now_s + self._pause_s
        self.reason = f"{self.name}: {type(error).__name__}: {str(error)[:120]}"
        if self.reason != said:  # once: a broken model is no reason to fill a disk
            log.error("a scorer failed, lists are made by the next until it answers again: %s", self.reason)

    def _is_back(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> bool:
        """Whether a trial beside the lists went well. A thread that still hangs begins none before it has come back."""
        now_s = self._clock_s()
        if self._trial is None:
            if now_s >= self._again_s:
                few = next(split(asks, CALL_CANDIDATES[self.provider]))
                self._trial, self._trial_s = self._post(lambda: self._open_again(few, vectors)), now_s
            return False
        try:
            logits, error = self._trial.get_nowait()
        except Empty:
            if now_s - self._trial_s > TRIAL_S:
                self._scorer.stop()
            return False
        self._trial = None
        if logits is None:
            self._fall(error or RuntimeError("no answer"))
            return False
        log.info("scorer %s makes lists again", self.name)
        self.reason, self._since_s = "", now_s
        return True

    def _open_again(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Logits:
        """In the thread: after CUDA ran out of memory a session may fail for ever, so a new one is asked."""
        self._scorer = self._open()
        self._scorer.warm_up()
        return self._scorer.score(asks, vectors)


Answer = tuple[Logits | None, Exception | None]
Job = tuple[Callable[[], Logits], "SimpleQueue[Answer]"]


def _work(jobs: "SimpleQueue[Job | None]") -> None:
    """A rung's thread. It knows no rung, so that a rung nobody needs any more is freed."""
    while (job := jobs.get()) is not None:
        work, answer = job
        try:
            answer.put((work(), None))
        except Exception as error:  # told to who asked
            answer.put((None, error))
        del job, work, answer  # what they hold is not kept until the next job comes


def split(asks: Sequence[Ask], limit: int) -> Iterator[Sequence[Ask]]:
    """Lists in calls of at most `limit` padded candidates, or of one list.

    A candidate's bits do not depend on the split: the tower keeps candidates and lists apart.
    """
    start, longest = 0, 0
    for at, ask in enumerate(asks):
        longest = max(longest, len(ask.rows))
        if at > start and (at + 1 - start) * longest > limit:
            yield asks[start:at]
            start, longest = at, len(ask.rows)
    yield asks[start:]


class Graphs:
    """The graphs of a release as one scorer: the features' network, and its mean with the sequence tower if there is one."""

    def __init__(
        self,
        network: bytes,
        width: int,
        tower: bytes | None,
        *,
        gpu: Gpu = "auto",
        cpu: bool = False,
        resident: bool = False,
    ) -> None:
        self._network = OnnxScorer(network, width, cpu=True)  # 40 µs there, and one device less that can fail
        self._tower = SequenceTower(tower, gpu=gpu, cpu=cpu, resident=resident) if tower is not None else None
        self.provider = self._tower.provider if self._tower else self._network.provider

    def warm_up(self) -> None:
        """A first inference: memory, CUDA's kernels."""
        trail = Trail(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros((1, 2), np.float32))
        ask = Ask(np.zeros(8, np.int64), np.zeros((8, len(NAMES)), np.float32), trail)
        self.score([ask], np.zeros((2, self._tower.dim if self._tower else 0), np.float32))

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Logits:
        """Logits of a few lists, (N, H) float32, stacked in their order, in one call. May raise anything."""
        logits = self._network.score(_stack(asks))
        if self._tower is not None:
            logits = (logits + self._tower.score(asks, vectors)) / np.float32(2)
        return _finite(logits)

    def stop(self) -> None:
        """Called by another thread: the call in hand raises at its next operator."""
        self._network.stop()
        if self._tower:
            self._tower.stop()


def _stack(asks: Sequence[Ask]) -> NDArray[np.float32]:
    return np.concatenate([ask.features for ask in asks])


def _finite(logits: Logits) -> Logits:
    if not np.isfinite(logits).all():
        raise ModelRejected("it answered with numbers that are not finite; roll back, or train again")
    return logits
