"""How likely a decoder finds some texts after a common beginning: all of them in one forward, none knowing another.

The beginning and the texts lie behind one another in one row of tokens. An attention function of ours, registered with
transformers, lets a text see the beginning and itself only, and its places go on after the beginning, so that it fares
as if it stood there alone. Every layer's matrix products see all tokens at once; attention is computed block by block,
never under a mask of all tokens by all. The model's own code is untouched, which is why any decoder will do whose
attention is of the plain kind: opening one compares it with itself, text by text, and refuses it if they differ.
Called by models/deep.py, the only one here that brings torch and transformers into a process that makes lists.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from models.devices import CPU, CUDA
from models.text_export import load
from recsys.errors import ModelRejected

ISOLATED = "slatecast_isolated"
# Lengths are padded to multiples of this: kernels treat the rest of a row otherwise, and a text's bits would be its
# company's. With 8, as with 1, three of eight texts had other bits alone (differences to 3e-6); with 16 none.
STEP = 16
# Nats per token between a text in company and alone through the model's own attention. Seen: 4e-6 for SmolLM2's thirty
# layers; an attention with another scale, bias or cap than ours knows is off by more.
PARITY = 1e-3

Tokens = Sequence[int] | NDArray[np.int64]


class Decoder:
    """A causal language model at work. places: how many tokens it can read."""

    def __init__(self, weights: Path) -> None:
        """weights: a local folder, safetensors or GGUF. Raises ModelRejected, and whatever transformers does."""
        torch.set_num_threads(1)  # a ranker leaves the other cores to Kafka's client and to other rankers
        loaded, self.tokenizer = load(weights, "AutoModelForCausalLM")
        self._model: Any = loaded  # whose class, and so whose arguments, only its folder knows
        self.provider = CUDA if torch.cuda.is_available() else CPU
        self._device = torch.device("cuda" if self.provider == CUDA else "cpu")
        if self.provider == CUDA:
            torch.nn.Module.cuda(loaded)
        self.places: int = getattr(self._model.config, "max_position_embeddings", 2048)
        self._keeps = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        transformers.AttentionInterface.register(ISOLATED, attend_isolated)
        self._check()

    def log_likelihoods(self, beginning: Tokens, texts: Sequence[Tokens]) -> NDArray[np.float64]:
        """Mean log-probability of each text's tokens after the beginning, which is not empty, nor is any text: (N,)."""
        lengths = [len(text) for text in texts]
        prefix, longest, total = _up(len(beginning)), _up(max(lengths)), sum(lengths)
        ids, places = np.zeros((2, 1, _up(prefix + total)), np.int64)
        ids[0, : len(beginning)] = beginning
        places[0, : len(beginning)] = np.arange(len(beginning))
        ids[0, prefix : prefix + total] = np.concatenate(texts)
        places[0, prefix : prefix + total] = np.concatenate([np.arange(n) for n in lengths]) + len(beginning)

        # (1, N, longest, prefix + longest): what each token of each text sees. It tells `attend_isolated` where texts
        # begin and end too, since a mask of four axes is what transformers hands through every model unchanged.
        place, real = np.arange(longest), np.arange(longest) < np.array(lengths)[:, None]
        own = (place <= place[:, None]) & real[:, :, None] & real[:, None, :]
        seen = np.broadcast_to(np.arange(prefix) < len(beginning), (len(texts), longest, prefix)) & real[:, :, None]
        mask = np.concatenate([seen, own], axis=2)[None]

        # A text's first token is told by the beginning's last, every other by the one before it.
        told_by = np.arange(prefix - 1, prefix + total - 1)
        told_by[np.cumsum([0, *lengths[:-1]])] = len(beginning) - 1
        told_by = np.concatenate([told_by, np.full(_up(total) - total, len(beginning) - 1)])
        of_tokens = self._log_probabilities(ids, places, mask, told_by, np.concatenate(texts))
        return np.add.reduceat(of_tokens, np.cumsum([0, *lengths[:-1]])) / lengths

    def _log_probabilities(
        self, ids: NDArray[Any], places: NDArray[Any], mask: NDArray[Any] | None, told_by: NDArray[Any], told: Tokens
    ) -> NDArray[np.float64]:
        """Of the tokens `told`, by the rows `told_by`, which may be more: (len(told),)."""
        rows = torch.from_numpy(told_by).to(self._device)
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids), "position_ids": torch.from_numpy(places)}
        if mask is not None:
            inputs["attention_mask"] = torch.from_numpy(mask)
        inputs = {name: value.to(self._device) for name, value in inputs.items()}
        with torch.inference_mode():
            if self._keeps:  # the widest product of all, and only these rows need it
                logits = self._model(**inputs, logits_to_keep=rows).logits[0]
            else:
                logits = self._model(**inputs).logits[0, rows]
            chosen = torch.as_tensor(np.asarray(told), device=self._device)
            logits = logits.float()
            found = logits[torch.arange(len(chosen)), chosen] - logits.logsumexp(1)[: len(chosen)]
        return np.asarray(found.double().cpu().numpy())

    def _check(self) -> None:
        """In company, by our attention, as alone by the model's own. Leaves ours in place. Raises ModelRejected."""
        rng = np.random.default_rng(0)
        beginning, *texts = (rng.integers(0, self._model.config.vocab_size, count) for count in (21, 1, 7, 3))
        self._model.set_attn_implementation("eager")  # the model's own code; torch's faster one leaves out caps too
        alone = []
        for text in texts:
            ids = np.concatenate([beginning, text])[None]
            by = np.arange(len(beginning) - 1, ids.shape[1] - 1)
            alone.append(self._log_probabilities(ids, np.arange(ids.shape[1])[None], None, by, text).mean())
        self._model.set_attn_implementation(ISOLATED)
        worst = float(np.abs(self.log_likelihoods(beginning, texts) - alone).max())  # NaN is refused too
        if not worst <= PARITY:
            raise ModelRejected(
                f"texts in one forward differ by {worst:.2g} from texts alone (allowed {PARITY:.0e}): "
                f"{type(self._model).__name__} does not attend in the plain way; take another decoder"
            )


def attend_isolated(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **unused: object,
) -> tuple[torch.Tensor, None]:
    """Attention of one row: the beginning as in any decoder, then each text over the beginning and itself.

    query: (1, heads, T, D); key, value: (1, fewer or as many heads, T, D). attention_mask: (1, N, longest, prefix +
    longest), as made above. Returns (1, T, heads, D), zero for the padding behind the texts.
    """
    (mask,) = attention_mask
    count, longest, seen = mask.shape
    prefix = seen - longest
    real = mask[:, :, prefix:].diagonal(dim1=1, dim2=2)  # (N, longest): a token sees itself, padding does not
    total = int(real.sum())
    grouped = query.shape[1] != key.shape[1]  # several heads share keys

    def apart(packed: torch.Tensor) -> torch.Tensor:
        """(N, heads, longest, D): the texts, each in a row of its own."""
        _, heads, _, dim = packed.shape
        rows = packed.new_zeros(count, longest, heads, dim)
        rows[real] = packed[0, :, prefix : prefix + total].transpose(0, 1)
        return rows.transpose(1, 2)

    def with_beginning(packed: torch.Tensor) -> torch.Tensor:
        shared = packed[:, :, :prefix].expand(count, -1, -1, -1)
        return torch.cat([shared, apart(packed)], dim=2)

    q, k, v = query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix]
    first = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
    # A row of padding would see nothing, whose softmax is NaN on some devices: it sees everything, and is left out.
    visible = (mask | ~real[:, :, None])[:, None]
    own = scaled_dot_product_attention(
        apart(query), with_beginning(key), with_beginning(value), visible, scale=scaling, enable_gqa=grouped
    )
    answer = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])
    answer[0, :prefix] = first[0].transpose(0, 1)
    answer[0, prefix : prefix + total] = own.transpose(1, 2)[real]
    return answer, None


def _up(length: int) -> int:
    return -(-length // STEP) * STEP
