"""Texts to vectors, for serving: a tokenizer and an ONNX session, neither torch nor transformers.

A tower is a folder: tower.onnx, tokenizer.json, tower.json. models/export.py makes one from any Hugging Face encoder or
decoder. It knows nothing of items: what text stands for an item is said in recsys/catalogue.py, and a vector is kept
under the hash of that whole text, so a change of the template cannot go unnoticed.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # 50 µs a text on one thread; the other core is Kafka's

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from models.devices import CUDA, ORT_ERRORS, Gpu, open_session
from recsys.errors import UNREADABLE, ModelRejected

log = logging.getLogger(__name__)

# Tokens with padding in one call: 30 to 100 titles. On one thread 256 to 1,024 are equal (112 texts/s of 30 tokens) and
# 4,096 is 15 % slower, out of cache; two threads need 1,024 to share the work (194 texts/s, 100 with 512).
TOKEN_BUDGET = 1024
GRAPH, TOKENIZER, TOWER = "tower.onnx", "tokenizer.json", "tower.json"
Pooling = Literal["mean", "last"]


class Reading(msgspec.Struct, frozen=True):
    """How a model reads a text. pooling: the mean of its tokens' vectors or the last one; prompt: {} is the text.

    For models that were trained to be read so: asking SmolLM2 for one word and taking the last token gained nothing over
    the plain mean (docs/experiments.md). Raises ValueError unless {} is in the prompt once.
    """

    pooling: Pooling = "mean"
    prompt: str = "{}"

    def __post_init__(self) -> None:
        if self.prompt.count("{}") != 1:
            raise ValueError(f"the prompt {self.prompt!r} must hold {{}} once, where the text goes")


PLAIN = Reading()


class TowerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """tower.json: what the folder is. dim: of its vectors; digest: of the weights and of the way they were exported.

    files: name -> sha256, of what lies beside it; parity: the largest difference to torch that was seen, of an int8 tower
    before it became one; precision: of its linear maps.
    """

    dim: int
    max_tokens: int
    pad_id: int
    digest: str
    pooling: Pooling = "mean"
    prompt: str = "{}"
    files: Mapping[str, str] = {}
    parity: float = 0.0
    precision: Literal["float32", "int8"] = "float32"


class TextReader:
    """Texts to tokens, the same in training and serving. folder: for messages; raises ModelRejected if a prompt is too long."""

    def __init__(self, tokenizer: Tokenizer, prompt: str, max_tokens: int, folder: str) -> None:
        self._tokenizer, self._prompt = tokenizer, prompt
        tokenizer.enable_truncation(max_tokens)
        tokenizer.no_padding()  # a file may ask for 128 tokens whatever the text (MiniLM's does)
        self._before, _, self._after = prompt.partition("{}")
        # One character can be four tokens, and the one at the cut is kept whole.
        self._room = max_tokens - len(tokenizer.encode(self._before + self._after)) - 4
        if self._room < 1 and prompt != PLAIN.prompt:
            raise ModelRejected(f"the prompt of {folder} leaves no room for a text; export it with a shorter one")

    def read(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokens of texts inside the prompt; beyond `max_tokens` a text is cut."""
        return list(self._tokenizer.encode_batch(self.prompted(texts)))

    def prompted(self, texts: Sequence[str]) -> list[str]:
        """The texts inside the prompt, cut so that it stays whole behind them; "" for a text without a token."""
        if self._prompt == PLAIN.prompt:
            return list(texts)
        bare = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ends = [one.offsets[: self._room][-1][1] if one.ids else 0 for one in bare]
        return [self._before + text[:end] + self._after if end else "" for text, end in zip(texts, ends, strict=True)]


class TextTower:
    """A tower at work.

    threads: of the session, 0 for all cores (embedding a catalogue), 1 beside Kafka's client. Raises ModelRejected if
    the folder is not whole, Unavailable if a GPU is required in vain. Opening takes .3 s.
    """

    def __init__(self, folder: Path, *, threads: int = 1, gpu: Gpu = "auto") -> None:
        self.settings = read_settings(folder)
        try:
            tokenizer = Tokenizer.from_str((folder / TOKENIZER).read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises nothing more exact
            raise ModelRejected(f"{folder / TOKENIZER} is no tokenizer: {error}; make the tower again") from error
        self._graph, self._threads = folder / GRAPH, threads
        self._session, self.provider = open_session(self._graph, threads=threads, gpu=gpu)
        self.reader = TextReader(tokenizer, self.settings.prompt, self.settings.max_tokens, str(folder))
        self.dim = self.settings.dim

    def encode(
        self, texts: Sequence[str], progress: Callable[[int, int], None] = lambda done, of: None
    ) -> NDArray[np.float32]:
        """Unit vectors of texts: (N, dim) float32, in their order. A text without a token is a zero vector.

        Batches are sorted by length under a token budget, so little of a call is padding: on one core 400 texts/s of 7
        tokens, 110 of 30. A text's vector differs by less than 1e-6 whatever else is in its batch. Beyond `max_tokens`
        a text is cut. `progress` is told (texts done, texts) after each batch.
        """
        vectors = np.zeros((len(texts), self.dim), np.float32)
        ids = [[] if all(one.special_tokens_mask) else one.ids for one in self.reader.read(texts)]
        order = sorted((at for at in range(len(texts)) if ids[at]), key=lambda at: len(ids[at]))
        start = 0
        while start < len(order):
            end = start + 1
            while end < len(order) and (end + 1 - start) * len(ids[order[end]]) <= TOKEN_BUDGET:
                end += 1
            batch = order[start:end]
            vectors[batch] = self._run([ids[at] for at in batch])
            start = end
            progress(start + len(texts) - len(order), len(texts))
        if not np.isfinite(vectors).all():
            raise ModelRejected("the text tower answered with numbers that are not finite; make it again")
        return vectors

    def _run(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        width = max(2, *(len(row) for row in rows))  # the graph was exported for 2 tokens and more
        ids = np.full((len(rows), width), self.settings.pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)], mask[at, : len(row)] = row, 1
        try:
            result: NDArray[np.float32] = self._session.run(None, {"ids": ids, "mask": mask})[0]
        except ORT_ERRORS as error:  # a GPU without memory, say, which must not cost who searches a list
            if self.provider != CUDA:
                raise
            log.error("the text tower failed on the GPU and stays on CPU until it is opened again: %s", error)
            self._session, self.provider = open_session(self._graph, threads=self._threads, cpu=True)
            return self._run(rows)
        return result


def read_settings(folder: Path) -> TowerSettings:
    """What a tower's folder says of itself. Raises ModelRejected."""
    try:
        return msgspec.json.decode((folder / TOWER).read_bytes(), type=TowerSettings)
    except (OSError, *UNREADABLE) as error:
        raise ModelRejected(f"{folder} is no text tower: {error}; `slatecast train` makes one") from None
