"""A ready text tower in eight bits: its linear maps as integers, with scales fixed beforehand on the shop's own texts.

Static, never dynamic: a dynamic scale is taken over all that is in a call, so that a text's vector would depend on its
company (up to .07 on scores, docs/training.md), and a list could not be replayed. Weights have a scale for each output;
what flows between maps has one each, found by running texts of all lengths. Products of two flows (attention) and the
words' own embeddings stay float32: the former lose most, the latter are read, not multiplied.
The tower that results is served as any other, by ONNX Runtime alone; `onnx` is needed only here.
Called by compression.py and by the benchmark.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.export import made_beside
from models.registry import file_sha256
from models.text_tower import GRAPH, TOKENIZER, TOWER, TextTower, read_settings
from recsys.catalogue import text_hash
from recsys.errors import ModelRejected

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


def quantise(tower: Path, out: Path, texts: Sequence[str]) -> None:
    """Write the int8 tower of a float32 one as folder `out`. texts: 100 to 500 of the shop's; nothing else is learned.

    Deterministic on one machine. Raises ModelRejected if nothing became smaller. 10 s for MiniLM and 256 titles.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    settings = read_settings(tower)
    if settings.precision != "float32":
        raise ModelRejected(f"{tower} is {settings.precision} already; compress the float32 tower it was made of")
    with tempfile.TemporaryDirectory(prefix="int8-") as scratch, made_beside(out) as part, _quiet():
        plain = Path(scratch) / GRAPH
        _folded(tower / GRAPH, plain)
        quantize_static(
            plain,
            part / GRAPH,
            Texts(TextTower(tower), texts),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,  # with signed weights: what the processor's own instruction multiplies
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,  # percentiles and entropy were no nearer, and need texts of one length
            extra_options={"MatMulConstBOnly": True},
        )
        if not any(node.op_type == "DequantizeLinear" for node in onnx.load(part / GRAPH).graph.node):
            raise ModelRejected(f"{tower} has no linear map of constant weights, so int8 changes nothing; keep float32")
        (part / TOKENIZER).write_bytes((tower / TOKENIZER).read_bytes())
        settings = msgspec.structs.replace(
            settings,
            precision="int8",
            digest=text_hash("\0".join([settings.digest, "int8", *texts])),
            files={name: file_sha256(part / name) for name in (GRAPH, TOKENIZER)},
        )
        (part / TOWER).write_bytes(msgspec.json.encode(settings))


def _folded(graph: Path, out: Path) -> None:
    """The graph with what is constant computed: a weight behind a transposition would silently stay float32."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 3
    ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Its advice on preparing a model, which `_folded` has done, goes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
