"""The sequence tower at work: lists to logits by ONNX, all users of a micro-batch in one call.

Imports no torch. What it is: sequence_net.py; its logits are averaged with those of the
features' network, so a ranker without it still ranks. Called by serving.py and by the benchmark.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.devices import Gpu, open_session
from models.resident import Resident
from models.scorer import PAD
from recsys.errors import ModelRejected
from recsys.scoring import TRAIL, Ask, Trail

# The trail is padded to a fixed length, candidates to a multiple of PAD: then a candidate's bits do not depend on what
# else is in the call. Kernels treat the last few rows of an odd number differently (192 of 192 shapes equal with it).
TRAIL_PADDED = -(-TRAIL // PAD) * PAD
GRAPH, HALF = "tower.onnx", "tower.fp16.onnx"


def pad_trails(trails: Sequence[Trail]) -> dict[str, NDArray[np.generic]]:
    """Inputs of the tower that tell of users: trail (B, 56) int64, actions (B, 56) int64, marks (B, 56, 2) float32."""
    rows = np.full((len(trails), TRAIL_PADDED), -1, np.int64)
    actions = np.zeros((len(trails), TRAIL_PADDED), np.int64)
    marks = np.zeros((len(trails), TRAIL_PADDED, 2), np.float32)
    for at, trail in enumerate(trails):
        length = len(trail.rows)
        rows[at, :length], actions[at, :length], marks[at, :length] = trail.rows, trail.actions, trail.marks
    return {"trail": rows, "actions": actions, "marks": marks}


class SequenceTower:
    """A session over tower.onnx. Raises ModelRejected if the graph is none, or of other inputs.

    resident: buffers and vectors stay on the device, and calls are replayed there; see resident.py.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        gpu: Gpu = "auto",
        threads: int = 1,
        cpu: bool = False,
        resident: bool = False,
    ) -> None:
        self._session, self.provider = open_session(model, gpu=gpu, threads=threads, cpu=cpu, replayed=resident)
        self._options = ort.RunOptions()
        self._resident = Resident(self._session, self.provider) if resident else None
        shapes = {one.name: one.shape for one in self._session.get_inputs()}
        names = set(shapes)
        if names != {"features", "candidates", "trail", "actions", "marks", "vectors"}:
            raise ModelRejected(f"{model if isinstance(model, Path) else 'the graph'} is no sequence tower: {names}")
        self.dim: int = shapes["vectors"][1]
        self.heads: int = self._session.get_outputs()[0].shape[2]

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, (N, H) float32, lists stacked in their order. vectors: (M, D) of the catalogue.

        Raises ModelRejected if a logit is not finite.
        """
        if not sum(len(ask.rows) for ask in asks):
            return np.zeros((0, self.heads), np.float32)
        most = -(-max(len(ask.rows) for ask in asks) // PAD) * PAD
        features = np.zeros((len(asks), most, asks[0].features.shape[1]), np.float32)
        candidates = np.full((len(asks), most), -1, np.int64)
        for at, ask in enumerate(asks):
            features[at, : len(ask.rows)], candidates[at, : len(ask.rows)] = ask.features, ask.rows
        inputs: dict[str, NDArray[np.generic]] = {"features": features, "candidates": candidates}
        inputs |= pad_trails([ask.trail for ask in asks])
        if self._resident:
            answer = self._resident.run(inputs, vectors)
        else:
            answer = self._session.run(None, {**inputs, "vectors": vectors}, self._options)[0]
        logits: NDArray[np.float32] = np.concatenate([answer[at, : len(ask.rows)] for at, ask in enumerate(asks)])
        if not np.isfinite(logits).all():
            raise ModelRejected("the sequence tower answered with numbers that are not finite; train again")
        return logits

    def stop(self) -> None:
        """For another thread: the call in hand raises at its next operator, and so does every later one."""
        self._options.terminate = True
        if self._resident:
            self._resident.stop()
