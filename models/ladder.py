"""The scorers of a release as a ladder: the best that answers makes the list, and the list says which it was.

    sequence   features' network + sequence tower, by ONNX
    network    features' network, by ONNX
    linear     features by a matrix product in NumPy: no runtime that could fail
    (none)     the pipeline then ranks by fusion of the sources

Called by serving.py and by evaluation.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from models.scorer import Network, OnnxScorer, feature_width
from models.sequence_tower import SequenceTower
from recsys.features import NAMES
from recsys.scoring import Ask, Scored

log = logging.getLogger(__name__)

Rung = Callable[[Sequence[Ask], NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]


class Ladder:
    """Scorers of a release folder, the best first. Raises ModelRejected."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        network = OnnxScorer(folder / "scorer.onnx", feature_width(names, NAMES))
        weights = load_file(folder / "linear.safetensors")
        linear = Network(weights["weight"], weights["bias"], weights["mean"], weights["std"])
        self.provider = network.provider
        self._rungs: dict[str, Rung] = {
            "network": lambda asks, features, vectors: network.score(features),
            "linear": lambda asks, features, vectors: linear.score(features),
        }
        if (folder / "sequence").exists():
            tower = SequenceTower(folder / "sequence" / "tower.onnx")
            self.provider = tower.provider
            self._rungs = {
                "sequence": lambda asks, features, vectors: network.score(features) + tower.score(asks, vectors),
                **self._rungs,
            }
        self._said: set[str] = set()

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        """Logits of the best scorer that answers; the reason why a better one did not."""
        features, reason = np.concatenate([ask.features for ask in asks]), None
        for name, rung in self._rungs.items():
            try:
                return Scored(rung(asks, features, vectors), name, reason)
            except Exception as error:  # ONNX Runtime's errors have no common type; the slate names it
                reason = f"{name}: {type(error).__name__}: {str(error)[:120]}"
                if reason not in self._said:  # once: a broken model is no reason to fill a disk
                    self._said.add(reason)
                    log.error("a scorer failed, lists are made by the next: %s", reason)
        return Scored(None, "rank_fusion", reason)
