"""A ready text tower in eight bits: its linear maps as integers, with scales fixed beforehand on the shop's own texts.

Static, never dynamic: a dynamic scale is taken over all that is in a call, so that a text's vector would depend on its
company, and a list could not be replayed. Weights have a scale for each output; what flows into a map has one, found by
running texts of all lengths. What stays float32: products of two flows (attention); the words' own embeddings, which are
read and not multiplied; and those maps that come out farthest off, which in a transformer are a few.
The tower that results is served as any other, by ONNX Runtime alone; `onnx` is needed only here.
Called by compression.py and by the benchmark.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.export import made_beside
from models.registry import file_sha256
from models.text_tower import GRAPH, TOKENIZER, TOWER, TextTower, read_settings
from recsys.catalogue import text_hash
from recsys.errors import ModelRejected

# Of the linear maps, so many stay float32: with a quarter of MiniLM's cold items lose 2.5 % instead of 5.1, at 1.5 times the
# speed instead of 2 (docs/training.md).
EXACT = 0.25
LOOKED_AT = 64  # texts to find the maps that are farthest off: their order no longer changes
Feed = dict[str, NDArray[np.int64]]


class Texts:
    """Calibration's texts, one a call, so that no padding is taken for text. What ONNX Runtime reads from."""

    def __init__(self, tower: TextTower, texts: Sequence[str]) -> None:
        self._rows: Iterator[Feed] = iter([feed for text in texts if (feed := _feed(tower, text))])

    def get_next(self) -> Feed | None:
        """The next text, None after the last."""
        return next(self._rows, None)

    def __iter__(self) -> "Texts":
        return self

    def __next__(self) -> Feed:
        return next(self._rows)


def _feed(tower: TextTower, text: str) -> Feed:
    ids = np.array([tower.reader.read([text])[0].ids], np.int64)
    return {"ids": ids, "mask": np.ones_like(ids)} if ids.shape[1] > 1 else {}


def quantise(tower: Path, out: Path, texts: Sequence[str], exact: float = EXACT) -> None:
    """Write the int8 tower of a float32 one as folder `out`. texts: 100 to 500 of the shop's; nothing else is learned.

    exact: share of the linear maps that stay float32, those farthest off. Deterministic on one machine. Raises ModelRejected if nothing became smaller. 10 s for MiniLM and 256 titles.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    settings = read_settings(tower)
    if settings.precision != "float32":
        raise ModelRejected(f"{tower} is {settings.precision} already; compress the float32 tower it was made of")
    with tempfile.TemporaryDirectory(prefix="int8-") as scratch, made_beside(out) as part, _quiet():
        plain, reader = Path(scratch) / GRAPH, TextTower(tower)
        _folded(tower / GRAPH, plain)
        looked_at = list(Texts(reader, texts[:: max(1, len(texts) // LOOKED_AT)]))
        quantize_static(
            plain,
            part / GRAPH,
            Texts(reader, texts),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=farthest_off(plain, looked_at, exact),
            per_channel=True,
            activation_type=QuantType.QUInt8,  # with signed weights: what the processor's own instruction multiplies
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,  # percentile 99.999: no better (docs/experiments.md)
            extra_options={"MatMulConstBOnly": True},
        )
        if not any(node.op_type == "DequantizeLinear" for node in onnx.load(part / GRAPH).graph.node):
            raise ModelRejected(f"{tower} has no linear map of constant weights, so int8 changes nothing; keep float32")
        (part / TOKENIZER).write_bytes((tower / TOKENIZER).read_bytes())
        settings = msgspec.structs.replace(
            settings,
            precision="int8",
            digest=text_hash("\0".join([settings.digest, "int8", f"{exact:g}", *texts])),
            files={name: file_sha256(part / name) for name in (GRAPH, TOKENIZER)},
        )
        (part / TOWER).write_bytes(msgspec.json.encode(settings))


def farthest_off(graph: Path, feeds: Sequence[Feed], share: float) -> list[str]:
    """Names of the linear maps whose product in eight bits is farthest from float32's, a share of all.

    By the mean over tokens of |error|² / |product|²: a token counts as much as any, also where others are a hundred times
    larger, as the first and last token of a text are.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(graph)
    held = {one.name: one for one in model.graph.initializer}
    maps = [one for one in model.graph.node if one.op_type in ("MatMul", "Gemm") and one.input[1] in held]
    flows = list(dict.fromkeys(one.input[0] for one in maps))
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in flows)
    session = ort.InferenceSession(model.SerializeToString(), _options(), providers=["CPUExecutionProvider"])
    seen: dict[str, list[NDArray[np.float32]]] = {name: [] for name in flows}
    for feed in feeds:
        for name, value in zip(flows, session.run(flows, feed), strict=True):
            seen[name].append(value.reshape(-1, value.shape[-1]))
    off = {}
    for one in maps:
        turned = any(each.name == "transB" and each.i for each in one.attribute)
        weight = numpy_helper.to_array(held[one.input[1]])
        off[one.name] = product_error(np.concatenate(seen[one.input[0]]), weight.T if turned else weight)
    return sorted(off, key=lambda name: -off[name])[: round(share * len(off))]


def product_error(flow: NDArray[np.float32], weight: NDArray[np.float32]) -> float:
    """What eight bits do to a product: the mean over rows of |error|² / |product|². flow: (N, D), weight: (D, W)."""
    step = max((max(float(flow.max()), 0) - min(float(flow.min()), 0)) / 255, 1e-12)
    steps = np.maximum(np.abs(weight).max(axis=0) / 127, 1e-12)
    product = flow @ weight
    error = (np.round(flow / step) * step) @ (np.round(weight / steps) * steps) - product
    return float(np.mean((error**2).sum(axis=1) / np.maximum((product**2).sum(axis=1), 1e-12)))


def _folded(graph: Path, out: Path) -> None:
    """The graph with what is constant computed: a weight behind a transposition would silently stay float32."""
    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _options() -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    return options


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Its advice on preparing a model, which `_folded` has done, goes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
