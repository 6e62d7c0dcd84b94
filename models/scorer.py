"""Features of candidates to logits, by ONNX: the first scorer is linear, two heads.

The graph is clip((x - mean) / std, ±5) @ W + b. It is built here node by node: seven nodes need no exporter. The
tower that will replace it stands behind the same door.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.devices import open_session
from recsys.errors import ModelRejected

HEADS = ("all", "new")  # next purchase, repeats allowed; next purchase of something never bought
CLIP = 5.0  # standard deviations; a feature beyond them says nothing more, but a broken one must not win
PAD = 8  # rows are padded to a multiple: kernels then treat a row alike whatever else is in the batch


class Linear:
    """Weights as arrays. weight: (F, 2); bias: (2,); mean, std: (F,); float32."""

    def __init__(
        self,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
    ) -> None:
        self.weight, self.bias, self.mean, self.std = weight, bias, mean, std

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, F) to (N, 2) in NumPy: the reference for the graph."""
        scaled = np.clip((features - self.mean) / self.std, -CLIP, CLIP)
        logits: NDArray[np.float32] = np.asarray(scaled @ self.weight + self.bias, np.float32)
        return logits

    def save(self, path: Path) -> None:
        """Write the graph, and refuse it if it does not agree with `score` on other shapes."""
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
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())
        scorer, rng = OnnxScorer(path, len(self.mean)), np.random.default_rng(0)
        for n in (1, 7, 200, 333):
            x = rng.normal(self.mean, 3 * self.std, (n, len(self.mean))).astype(np.float32)
            worst = float(np.abs(scorer.score(x) - self.score(x)).max())
            if not worst < 1e-4:
                raise ModelRejected(f"the scorer's graph differs from its weights by {worst:.2g}")


class OnnxScorer:
    """A scorer graph at work: one call for a whole micro-batch of users."""

    def __init__(self, path: Path, width: int, threads: int = 1) -> None:
        try:
            self._session = open_session(path, threads=threads)
        except Exception as error:  # a corrupt graph raises one of three unrelated classes (measured)
            raise ModelRejected(f"{path} is no scorer that ONNX Runtime can load: {type(error).__name__}") from error
        shape = self._session.get_inputs()[0].shape
        if shape[1] != width:
            raise ModelRejected(f"{path} wants {shape[1]} features, this version computes {width}; train again")
        self.provider: str = self._session.get_providers()[0]

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, F) float32 to (N, 2) float32. A row's logits do not depend on the other rows, to the bit on CPU.

        Raises ModelRejected if a logit is not finite.
        """
        n = len(features)
        padded = np.zeros((n + -n % PAD, features.shape[1]), np.float32)
        padded[:n] = features
        logits: NDArray[np.float32] = self._session.run(None, {"features": padded})[0][:n]
        if not np.isfinite(logits).all():
            raise ModelRejected("the scorer answered with numbers that are not finite")
        return logits


def feature_width(names: Sequence[str], wanted: Sequence[str]) -> int:
    """How many features, once their names are known to agree in order. Raises ModelRejected."""
    if list(names) != list(wanted):
        differing = sorted(set(names) ^ set(wanted)) or ["their order"]
        raise ModelRejected(f"the release was trained on other features ({', '.join(differing)}); train again")
    return len(names)
