"""Features of candidates to logits, by ONNX: the first scorer is linear, two heads.

The graph is clip((x - mean) / std, ±5) @ W + b. It is built here node by node: five nodes need no exporter. The
tower that will replace it stands behind the same door. `Linear` is written by training, `OnnxScorer` serves.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.devices import open_session
from models.registry import OPSET
from recsys.errors import ModelRejected

HEADS = ("all", "new")  # next purchase, repeats allowed; next purchase of something never bought
CLIP = 5.0  # standard deviations; a feature beyond them says nothing more, but a broken one must not win
# Rows are padded to a multiple of it. For the linear graph bits were equal without (1 to 5,000 rows, 7 to 81 features);
# a tower behind this door needs it: its kernels treat the last few rows of an odd number differently (measured).
PAD = 8
PARITY = 1e-5  # of the largest logit that the weights allow; float32 sums of 29 products differ by a tenth of it
PARITY_ROWS = (1, 7, 200, 333)


class Linear:
    """Weights as arrays. weight: (F, 2); bias: (2,); mean, std: (F,); float32, finite, std > 0 (1 where constant)."""

    def __init__(
        self,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
    ) -> None:
        if not all(np.isfinite(array).all() for array in (weight, bias, mean, std)):
            raise ModelRejected("training ended in weights that are not finite; lower its learning rate")
        if not (std > 0).all():
            raise ValueError(f"std of feature {int(np.argmin(std))} is not above zero; give a constant feature 1")
        self.weight, self.bias, self.mean, self.std = weight, bias, mean, std

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, F) to (N, 2) in NumPy: the reference for the graph."""
        scaled = np.clip((features - self.mean) / self.std, -CLIP, CLIP)
        logits: NDArray[np.float32] = np.asarray(scaled @ self.weight + self.bias, np.float32)
        return logits

    def save(self, path: Path) -> None:
        """Write the graph. Raises ModelRejected, and writes nothing, if it does not agree with `score`."""
        graph = self._graph()
        scorer, rng = OnnxScorer(graph, len(self.mean)), np.random.default_rng(0)
        largest = float((np.abs(self.weight).sum(axis=0) * CLIP + np.abs(self.bias)).max())
        for rows in PARITY_ROWS:
            x = rng.normal(self.mean, 3 * self.std, (rows, len(self.mean))).astype(np.float32)
            worst = float(np.abs(scorer.score(x) - self.score(x)).max())
            if not worst <= PARITY * largest:
                raise ModelRejected(f"the scorer's graph differs from its weights by {worst:.2g}")
        path.write_bytes(graph)

    def _graph(self) -> bytes:
        import onnx  # here, since a ranker only loads graphs
        from onnx import TensorProto, helper, numpy_helper

        constants = {
            "mean": self.mean,
            "std": self.std,
            "low": np.float32(-CLIP),
            "high": np.float32(CLIP),
            "weight": self.weight,
            "bias": self.bias,
        }
        nodes = [
            helper.make_node("Sub", ["features", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["scaled"]),
            helper.make_node("Clip", ["scaled", "low", "high"], ["clipped"]),
            helper.make_node("MatMul", ["clipped", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["logits"]),
        ]
        graph = helper.make_graph(
            nodes,
            "linear",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", len(self.mean)])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(HEADS)])],
            [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
        )
        # IR 10 is the oldest that may carry opset 18 with everything used here: older runtimes can load it too.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data


class OnnxScorer:
    """A scorer graph at work: one call for a whole micro-batch of users.

    provider: what ONNX Runtime really computes on. Raises ModelRejected if the graph is none, or not for `width`
    features and two heads; Unavailable if a GPU is required in vain.
    """

    def __init__(self, graph: Path | bytes, width: int, *, threads: int = 1, require_gpu: bool = False) -> None:
        self._session, self.provider = open_session(graph, threads=threads, require_gpu=require_gpu)
        inputs = {node.name: node.shape[1:] for node in self._session.get_inputs()}
        outputs = {node.name: node.shape[1:] for node in self._session.get_outputs()}
        if inputs != {"features": [width]} or outputs != {"logits": [len(HEADS)]}:
            name = graph if isinstance(graph, Path) else "the graph"
            raise ModelRejected(f"{name} maps {inputs} to {outputs}, wanted {width} features to two heads; train again")
        self._width = width

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, F) to (N, 2) float32. A row's logits do not depend on the other rows, to the bit on CPU.

        Raises ModelRejected if a logit is not finite, ValueError if a feature is not: that is the caller's bug, and
        ONNX Runtime would clip an infinite one into a score. 40 µs for 200 rows, .4 ms for 6,400.
        """
        if features.ndim != 2 or features.shape[1] != self._width:
            raise ValueError(f"features of shape {features.shape}; the scorer reads (N, {self._width})")
        if not np.isfinite(features).all():
            row, column = np.argwhere(~np.isfinite(features))[0].tolist()
            raise ValueError(f"feature {column} of row {row} is {features[row, column]}")
        rows = len(features)
        padded = np.zeros((rows + -rows % PAD, self._width), np.float32)
        padded[:rows] = features
        logits: NDArray[np.float32] = self._session.run(None, {"features": padded})[0][:rows]
        if not np.isfinite(logits).all():
            raise ModelRejected("the scorer answered with numbers that are not finite; roll back, or train again")
        return logits


def feature_width(names: Sequence[str], wanted: Sequence[str]) -> int:
    """How many features, once their names are known to agree in order. Raises ModelRejected.

    >>> feature_width(["own_count", "price"], ["own_count", "price"])
    2
    >>> feature_width(["own_count", "price"], ["own_count", "age"])
    Traceback (most recent call last):
    recsys.errors.ModelRejected: the release was trained on other features (age, price); train again
    """
    if list(names) != list(wanted):
        differing = ", ".join(sorted(set(names) ^ set(wanted))) or "their order"
        raise ModelRejected(f"the release was trained on other features ({differing}); train again")
    return len(names)
