"""The child process of a text tower's export: load, choose how tokens become one vector, export, compare with torch.

An encoder's vector is the mean of its tokens'; of a decoder it may also be its last token's, which alone has read all.
What is compared is what serves: the graph at shapes that the exporter has not seen, then texts through models/text_tower.
Started by models/export.py; `load` and `pooled` also serve models/text_tuning.py, so that a tower is tuned as it is read.
"""

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from models.devices import open_session
from models.export import INSIDE, MAX_TOKENS, export_graph, weight_files
from models.registry import file_sha256
from models.text_tower import GRAPH, TOKENIZER, TOWER, Pooling, Reading, TextTower, TowerSettings
from recsys.errors import ModelRejected

if TYPE_CHECKING:  # both take seconds to import, and the tests of the parent need neither
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Largest difference to torch. Seen: 3e-7 for MiniLM, 1e-5 for a decoder of 30 layers; a wrong graph is off by 1e-2.
PARITY = 1e-4
# Encoder and decoder in one, of which the encoder reads a text. The exporter cannot follow their fused attention (torch 2.15).
T5_KIND = ("t5", "mt5", "umt5")
# Other shapes than the example's (2, 7): a graph with a frozen axis, or with two inputs taken for one, fails here.
PARITY_SHAPES = ((1, 5), (3, 16), (5, 33), (2, MAX_TOKENS))
PARITY_TEXTS = (
    "Red mug",
    "red  MUG, 330 ml. kitchen > mugs",
    "Crème brûlée — ½ Pfund, 日本",
    "long text " * MAX_TOKENS,
)


def main(weights: Path, out: Path, digest: str, reading: Reading) -> None:
    """Load, export, compare; tower.json is written last but for the check that goes through it."""
    from models.text_pruning import shrink_heads

    model, tokenizer = load(weights)
    shrink_heads(model)
    tower, graph, vocabulary = pooled(model, reading.pooling), out / GRAPH, model.config.vocab_size
    limit = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", MAX_TOKENS))
    write_graph(tower, graph, vocabulary, limit)
    parity = check_parity(tower, graph, vocabulary, limit)
    (out / TOKENIZER).write_bytes(without_unknown(tokenizer, vocabulary))
    # Models of the GPT-2 kind have no token for padding. Any does, behind the mask; theirs is the end of a text.
    pad = next(one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if one is not None)
    settings = TowerSettings(
        dim=model.config.hidden_size,
        max_tokens=limit,
        pad_id=pad,
        digest=digest,
        pooling=reading.pooling,
        prompt=reading.prompt,
        files={name: file_sha256(out / name) for name in (GRAPH, TOKENIZER)},
    )
    (out / TOWER).write_bytes(msgspec.json.encode(settings))
    parity = max(parity, check_texts(tower, tokenizer, out))
    (out / TOWER).write_bytes(msgspec.json.encode(msgspec.structs.replace(settings, parity=parity)))


def load(weights: Path, kind: str = "AutoModel") -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Model and tokenizer of a folder, in float32 whatever the weights are kept in.

    Raises whatever transformers does, and ModelRejected for a folder that lacks weights, which would be filled with noise,
    or has another model's tokenizer, whose words would end a ranker when they come.
    kind: AutoModel, or AutoModelForCausalLM for one that tells what comes next. Of the T5 kind the encoder alone is taken.
    """
    import torch
    import transformers

    first, *_ = weight_files(weights)
    # A GGUF holds configuration and tokenizer too.
    inside = {"gguf_file": first.name} if first.suffix == ".gguf" else {}
    how: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True, **inside}
    if kind == "AutoModel":
        config = transformers.AutoConfig.from_pretrained(
            weights, local_files_only=True, trust_remote_code=False, **inside
        )
        if config.model_type in T5_KIND:
            kind, how["attn_implementation"] = "AutoModelForTextEncoding", "eager"
    model, loaded = getattr(transformers, kind).from_pretrained(
        weights, local_files_only=True, trust_remote_code=False, **how
    )
    # A pooler is often left out and stands behind the last layer, which is where we read.
    lacking = sorted(name for name in loaded["missing_keys"] if "pooler" not in name)
    if lacking:
        raise ModelRejected(
            f"{weights} lacks {len(lacking)} of the weights of a {type(model).__name__}, {lacking[0]} first: copy it"
            " again, or take config.json and weights of the same model"
        )
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        weights, local_files_only=True, trust_remote_code=False, **inside
    )
    tokens = max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values(), default=-1) + 1
    if tokens > model.config.vocab_size:
        raise ModelRejected(
            f"the tokenizer of {weights} has {tokens:,} tokens and its model {model.config.vocab_size:,}: take"
            " tokenizer.json and weights of the same model"
        )
    model.config.use_cache = False  # a decoder would return its keys and values too
    if (weights / INSIDE).is_file():
        from models.text_adapters import attach

        attach(model, weights / INSIDE)
    return model, tokenizer


def without_unknown(tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> bytes:
    """tokenizer.json, less added tokens that the model has no row for: Gemma 3's has an image's, which a search can spell."""
    held = msgspec.json.decode(tokenizer.backend_tokenizer.to_str())
    held["added_tokens"] = [token for token in held["added_tokens"] if token["id"] < vocabulary]
    return msgspec.json.encode(held)


def pooled(model: "PreTrainedModel", pooling: Pooling) -> "torch.nn.Module":
    """The model with what makes a unit vector of its last layer: ids and mask (N, T) int64 -> (N, dim) float32.

    Padding may stand on either side of a decoder's text. Raises ModelRejected for `last` of an encoder.
    """
    import torch

    causal = reads_left_to_right(model)
    if pooling == "last" and not causal:
        raise ModelRejected("the last token is a whole text's only if a model reads left to right; take --pooling mean")
    places = causal and "position_ids" in inspect.signature(model.forward).parameters

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            # Tokens of the text so far: a decoder counts its places by columns otherwise.
            extra = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if places else {}
            found: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, **extra).last_hidden_state
            return found

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.hidden(ids, mask)
            chosen = mask if pooling == "mean" else mask * (mask.cumsum(1) == mask.sum(1, keepdim=True))
            weight = chosen.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    return Pooled().eval()


def reads_left_to_right(model: "PreTrainedModel") -> bool:
    """Whether a token knows nothing of what follows: a decoder, by what it does, since its name need not say so."""
    import torch

    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]])
    with torch.no_grad():
        one, other = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return bool((one[:3] - other[:3]).abs().max() <= 1e-6 * one.abs().max())


def write_graph(tower: "torch.nn.Module", path: Path, vocabulary: int, limit: int = MAX_TOKENS) -> None:
    """Export to one file, number and length of texts left open, up to `limit` tokens."""
    import torch

    batch, width = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("width", min=2, max=limit)
    shapes = {"ids": {0: batch, 1: width}, "mask": {0: batch, 1: width}}
    export_graph(tower, path, _example(vocabulary), shapes, "vectors")


def _example(vocabulary: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Two tensors, never one twice: the exporter takes the same object for the same input, and says nothing."""
    import torch

    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    return torch.arange(14).reshape(2, 7) % vocabulary, mask


def check_parity(tower: "torch.nn.Module", graph: Path, vocabulary: int, limit: int = MAX_TOKENS) -> float:
    """The largest difference between torch and the graph, on shapes and masks that the exporter has not seen.

    Every second text is padded on its left. Raises ModelRejected above PARITY.
    """
    import torch

    (session, _), rng, differences = open_session(graph), np.random.default_rng(0), []
    for count, width in ((count, min(width, limit)) for count, width in PARITY_SHAPES):
        ids = rng.integers(0, vocabulary, (count, width))
        mask = (np.arange(width) < rng.integers(1, width + 1, (count, 1))).astype(np.int64)
        mask[1::2] = mask[1::2, ::-1]
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
        found = [tokenizer(text, **limit) for text in serving.reader.prompted(PARITY_TEXTS)]
        expected = np.concatenate([tower(one["input_ids"], one["attention_mask"]).numpy() for one in found])
    return _worst(np.abs(serving.encode(PARITY_TEXTS) - expected).max(axis=1), "tower")


def _worst(differences: Any, what: str) -> float:
    worst = float(np.max(differences))  # NaN wins here, and is refused
    if not worst <= PARITY:
        raise ModelRejected(f"the exported {what} differs from the model by {worst:.2g} (allowed {PARITY:.0e})")
    return worst


if __name__ == "__main__":
    try:
        reading = msgspec.convert(dict(zip(("pooling", "prompt"), sys.argv[4:], strict=True)), Reading)
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], reading)
    except Exception as error:  # a stranger's model fails in any way; the parent tells it in one line
        sys.exit(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
