"""Small real releases for tests: graphs written node by node, so that ONNX Runtime does what a test asks of it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from models.item_files import save_item_models
from models.registry import OPSET, Manifest, Release, publish, releases_folder
from models.scorer import Network
from models.sequence_tower import TRAIL_PADDED
from models.text_tower import TowerSettings
from recsys.catalogue import text_hash
from recsys.features import NAMES
from recsys.item_models import ItemModels

DIM = 8
WORDS = ["[UNK]", "[PAD]", "Thing", *map(str, range(400))]


def network(weight: float = 0.1) -> Network:
    ones = np.ones(len(NAMES), np.float32)
    return Network(np.full((len(NAMES), 2), weight, np.float32), np.zeros(2, np.float32), 0 * ones, ones)


def moody_tower() -> bytes:
    """A sequence tower whose logits are the first two features, and whose mood stands in the first vector.

    [0]: turns of a loop, which may be stopped between two; [1]: added to every logit; [2]: an index into an array of
    one, so that 0 is well and 5 raises; [3]: width of a matrix product, one operator that nobody can stop.
    """
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["on_again"]),
            helper.make_node("Identity", ["x"], ["x_again"]),
        ],
        "turn",
        [_of("turn", [], TensorProto.INT64), _of("on", [], TensorProto.BOOL), _of("x", [])],
        [_of("on_again", [], TensorProto.BOOL), _of("x_again", [])],
    )
    nodes = [
        helper.make_node("Gather", ["vectors", "zero"], ["moods"], axis=0),
        helper.make_node("Gather", ["moods", "zero"], ["mood0"], axis=0),
        helper.make_node("Cast", ["mood0"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "", "nothing"], ["turned"], body=body),
        helper.make_node("Gather", ["moods", "one"], ["mood1"], axis=0),
        helper.make_node("Gather", ["moods", "two"], ["mood2"], axis=0),
        helper.make_node("Cast", ["mood2"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["single", "index"], ["found"], axis=0),
        helper.make_node("Gather", ["moods", "three"], ["mood3"], axis=0),
        helper.make_node("Cast", ["mood3"], ["width"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["width", "as_list"], ["width1"]),
        helper.make_node("Concat", ["width1", "width1"], ["square"], axis=0),
        helper.make_node("ConstantOfShape", ["square"], ["zeros"]),
        helper.make_node("MatMul", ["zeros", "zeros"], ["product"]),
        helper.make_node("ReduceSum", ["product"], ["product1"], keepdims=0),
        helper.make_node("Slice", ["features", "starts", "ends", "axes"], ["first"]),
        helper.make_node("Sum", ["first", "turned", "mood1", "found", "product1"], ["logits"]),
    ]
    constants = {
        **{name: np.int64(at) for at, name in enumerate(("zero", "one", "two", "three"))},
        "nothing": np.float32(0),
        "single": np.zeros(1, np.float32),
        "as_list": np.array([1], np.int64),
        "starts": np.array([0], np.int64),
        "ends": np.array([2], np.int64),
        "axes": np.array([2], np.int64),
    }
    return _tower(nodes, constants)


def telling_tower(base: float) -> bytes:
    """A sequence tower whose logits are `base` and the first number of the candidate's vector: it says what it read."""
    nodes = [
        helper.make_node("Max", ["candidates", "zero"], ["rows"]),
        helper.make_node("Gather", ["vectors", "rows"], ["read"], axis=0),
        helper.make_node("Slice", ["read", "zeros", "ones", "axes"], ["first"]),
        helper.make_node("Concat", ["first", "first"], ["both"], axis=2),
        helper.make_node("Add", ["both", "base"], ["logits"]),
    ]
    constants = {
        "zero": np.int64(0),
        "zeros": np.array([0], np.int64),
        "ones": np.array([1], np.int64),
        "axes": np.array([2], np.int64),
        "base": np.float32(base),
    }
    return _tower(nodes, constants)


def write_text_tower(folder: Path, seed: int) -> None:
    """Means of random vectors of words, behind a real tokenizer."""
    folder.mkdir()
    vocabulary = {word: at for at, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = TowerSettings(dim=DIM, max_tokens=32, pad_id=1, digest=f"test {seed}")
    (folder / "tower.json").write_bytes(msgspec.json.encode(settings))
    table = np.random.default_rng(seed).normal(size=(len(WORDS), DIM)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"], axis=0),
        helper.make_node("Cast", ["mask"], ["counts"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["counts", "last"], ["weights"]),
        helper.make_node("Mul", ["words", "weights"], ["known"]),
        helper.make_node("ReduceSum", ["known", "middle"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["vectors"], axis=1, p=2),
    ]
    constants = {"table": table, "last": np.array([2], np.int64), "middle": np.array([1], np.int64)}
    inputs = [_of(name, ["b", "t"], TensorProto.INT64) for name in ("ids", "mask")]
    graph = _model(nodes, inputs, _of("vectors", ["b", DIM]), constants)
    (folder / "tower.onnx").write_bytes(graph)


def write_scorers(folder: Path, tower: bytes | None, deep: Network | None = None) -> None:
    """What `Ladder` opens."""
    (folder / "scorer.onnx").write_bytes((deep or network())._graph())
    save_file(network().arrays(), folder / "linear.safetensors")
    if tower is not None:
        (folder / "sequence").mkdir()
        (folder / "sequence" / "tower.onnx").write_bytes(tower)


def make_release(
    home: Path,
    side: float,
    tower: bytes,
    texts: Sequence[str] = (),
    *,
    serve: bool = True,
    deep: Network | None = None,
    features: tuple[str, ...] = NAMES,
    made_ts_ms: int = 0,
) -> Release:
    """A release all of whose vectors have ≈ `side` (1 or -1) as their first number; `texts` are in its cache."""
    releases_folder(home).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=releases_folder(home), prefix="draft-") as scratch:
        draft = Path(scratch) / "release"
        draft.mkdir()
        write_text_tower(draft / "text", seed=1 + int(side))
        far = np.zeros(DIM, np.float32)
        far[0] = -100 * side
        save_file({"mean": far, "matrix": np.eye(DIM, dtype=np.float32)}, draft / "whitening.safetensors")
        vectors = np.tile(side * np.eye(DIM, dtype=np.float32)[0], (len(texts), 1))
        hashes = np.frombuffer(bytes.fromhex("".join(map(text_hash, texts))), np.uint8).reshape(-1, 16)
        save_file({"vectors": vectors, "text_hashes": hashes}, draft / "vectors.safetensors")
        write_scorers(draft, tower, deep or network(0))
        save_item_models(ItemModels(), draft)
        manifest = Manifest(
            created_ts_ms=made_ts_ms, data="a test", data_until_ts_ms=0, features=features, metrics={"ndcg_at_10": 0.25}
        )
        return publish(home, draft, manifest, serve=serve)


def _tower(nodes: Sequence[object], constants: dict[str, NDArray[np.generic] | np.generic]) -> bytes:
    whole = TensorProto.INT64
    inputs = [
        _of("features", ["b", "n", len(NAMES)]),
        _of("candidates", ["b", "n"], whole),
        _of("trail", ["b", TRAIL_PADDED], whole),
        _of("actions", ["b", TRAIL_PADDED], whole),
        _of("marks", ["b", TRAIL_PADDED, 2]),
        _of("vectors", ["m", DIM]),
    ]
    return _model(nodes, inputs, _of("logits", ["b", "n", 2]), constants)


def _of(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> object:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(nodes: Sequence[object], inputs: Sequence[object], output: object, constants: dict[str, object]) -> bytes:
    initial = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "test", inputs, [output], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data
