"""Features of candidates to logits, by ONNX: a linear part and a small network beside it, two heads or three.

The graph is built here node by node: a dozen nodes need no exporter. `Network` is written by training, `OnnxScorer`
serves.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.devices import Gpu, open_session
from models.registry import OPSET
from recsys.errors import ModelRejected
from recsys.scoring import HEADS

CLIP = 5.0  # standard deviations; a feature beyond them says nothing more, but a broken one must not win
# Rows are padded to a multiple of it. For the linear graph bits were equal without (1 to 5,000 rows, 7 to 81 features);
# a tower behind this door needs it: its kernels treat the last few rows of an odd number differently (measured).
PAD = 8
PARITY = 1e-5  # of the largest logit that the weights allow; float32 sums of 29 products differ by a tenth of it
PARITY_ROWS = (1, 7, 200, 333)


class Network:
    """A scorer's weights as arrays, float32 and finite: linear, plus a small network if it has hidden layers.

    logits = x @ weight + bias (+ silu(… silu(x @ W1 + b1) …) @ Wn + bn), x = clip((features - mean) / std, ±5)
    weight: (F, H), H of HEADS; bias: (H,); mean, std: (F,), std > 0 (very large where constant in training); deep: (in,
    out) and (out,) of each layer, the last to H.
    """

    def __init__(
        self,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        deep: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]] = (),
    ) -> None:
        arrays = [weight, bias, mean, std, *(array for layer in deep for array in layer)]
        if not all(np.isfinite(array).all() for array in arrays):
            raise ModelRejected("training ended in weights that are not finite; lower its learning rate")
        if not (std > 0).all():
            raise ValueError(f"std of feature {int(np.argmin(std))} is not above zero; give a constant feature 1")
        self.weight, self.bias, self.mean, self.std, self.deep = weight, bias, mean, std, list(deep)

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, F) to (N, H) in NumPy: the reference for the graph."""
        scaled = np.clip((features - self.mean) / self.std, -CLIP, CLIP)
        logits = scaled @ self.weight + self.bias
        hidden = scaled
        for at, (weight, bias) in enumerate(self.deep):
            hidden = hidden @ weight + bias
            if at < len(self.deep) - 1:
                hidden = hidden / (1 + np.exp(-np.clip(hidden, -80, None)))
        return np.asarray(logits + hidden if self.deep else logits, np.float32)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The linear part, by name, as it is kept beside the graph."""
        return {"weight": self.weight, "bias": self.bias, "mean": self.mean, "std": self.std}

    def save(self, path: Path) -> None:
        """Write the graph. Raises ModelRejected, and writes nothing, if it does not agree with `score`."""
        graph = self._graph()
        scorer, rng = OnnxScorer(graph, len(self.mean)), np.random.default_rng(0)
        for rows in PARITY_ROWS:
            x = rng.normal(self.mean, 3 * self.std, (rows, len(self.mean))).astype(np.float32)
            worst = float(np.abs(scorer.score(x) - self.score(x)).max())
            if not worst <= PARITY * self._largest():
                raise ModelRejected(f"the scorer's graph differs from its weights by {worst:.2g}")
        path.write_bytes(graph)

    def _largest(self) -> float:
        """A bound of the logits: what a rounding error is compared with."""
        bound = np.full(len(self.mean), CLIP)
        linear, hidden = bound @ np.abs(self.weight) + np.abs(self.bias), bound
        for weight, bias in self.deep:
            hidden = hidden @ np.abs(weight) + np.abs(bias)
        return float(np.max(linear + hidden if self.deep else linear))

    def _graph(self) -> bytes:
        import onnx  # here, since a ranker only loads graphs
        from onnx import TensorProto, helper, numpy_helper

        constants: dict[str, NDArray[np.float32] | np.float32] = {
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
            helper.make_node("Gemm", ["clipped", "weight", "bias"], ["linear" if self.deep else "logits"]),
        ]
        last = "clipped"
        for at, (weight, bias) in enumerate(self.deep):
            constants |= {f"weight{at}": weight, f"bias{at}": bias}
            nodes.append(helper.make_node("Gemm", [last, f"weight{at}", f"bias{at}"], [f"sum{at}"]))
            last = f"sum{at}"
            if at < len(self.deep) - 1:
                nodes.append(helper.make_node("Sigmoid", [last], [f"gate{at}"]))
                nodes.append(helper.make_node("Mul", [last, f"gate{at}"], [f"hidden{at}"]))
                last = f"hidden{at}"
        if self.deep:
            nodes.append(helper.make_node("Add", ["linear", last], ["logits"]))
        graph = helper.make_graph(
            nodes,
            "scorer",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", len(self.mean)])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(self.bias)])],
            [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
        )
        # IR 10 is the oldest that may carry opset 18 with everything used here: older runtimes can load it too.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data


def mean_of(networks: Sequence[Network]) -> Network:
    """One network whose logits are the mean of those of several that share mean and std, layer for layer.

    Layers stand side by side: the first reads the same features, those behind it each its own.
    """
    if len(networks) == 1:
        return networks[0]
    first, share = networks[0], np.float32(1 / len(networks))
    deep = []
    for at, layers in enumerate(zip(*(network.deep for network in networks), strict=True)):
        last = at == len(first.deep) - 1
        weights, biases = [weight for weight, _ in layers], [bias for _, bias in layers]
        weight = np.concatenate(weights, axis=1) if at == 0 else _diagonal(weights)
        if last:
            weight = (np.concatenate(weights) if at else sum(weights)) * share
        deep.append((weight, np.sum(biases, axis=0) * share if last else np.concatenate(biases)))
    weight, bias = (np.mean([getattr(network, name) for network in networks], axis=0) for name in ("weight", "bias"))
    return Network(weight, bias, first.mean, first.std, deep)


def _diagonal(blocks: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Blocks along the diagonal of a matrix of zeros."""
    whole = np.zeros(np.sum([block.shape for block in blocks], axis=0), np.float32)
    row, column = 0, 0
    for block in blocks:
        whole[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return whole


class OnnxScorer:
    """A scorer graph at work: one call for a whole micro-batch of users.

    provider: what ONNX Runtime really computes on. Raises ModelRejected if the graph is none, or not for `width`
    features and two or three heads; Unavailable if a GPU is required in vain.
    """

    def __init__(
        self, graph: Path | bytes, width: int, *, threads: int = 1, gpu: Gpu = "auto", cpu: bool = False
    ) -> None:
        self._session, self.provider = open_session(graph, threads=threads, gpu=gpu, cpu=cpu)
        self._options = ort.RunOptions()
        inputs = {node.name: node.shape[1:] for node in self._session.get_inputs()}
        outputs = {node.name: node.shape[1:] for node in self._session.get_outputs()}
        if inputs != {"features": [width]} or outputs not in ({"logits": [2]}, {"logits": [len(HEADS)]}):
            name = graph if isinstance(graph, Path) else "the graph"
            raise ModelRejected(
                f"{name} maps {inputs} to {outputs}, wanted {width} features to two or three heads; train again"
            )
        self._width = width

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, F) to (N, H) float32. A row's logits do not depend on the other rows, to the bit on CPU.

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
        logits: NDArray[np.float32] = self._session.run(None, {"features": padded}, self._options)[0][:rows]
        if not np.isfinite(logits).all():
            raise ModelRejected("the scorer answered with numbers that are not finite; roll back, or train again")
        return logits

    def stop(self) -> None:
        """For another thread: the call in hand raises at its next operator, and so does every later one."""
        self._options.terminate = True


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
