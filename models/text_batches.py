"""What a step of tuning reads: token rows in an order that only the seed and the step's number decide.

So a run that was killed goes on with the same batches without a generator's state being kept.
Called by text_tuning.py and by `slatecast bench train`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.text_pairs import Bought
from models.text_settings import TuneSettings
from models.text_tower import TextReader
from models.text_views import View
from recsys.errors import Misuse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rows = list[list[int]]
Call = list[int]  # places of rows that are read together
KEPT, RANDOM = 0.1, 0.1  # of the tokens to be guessed: shown as they are, or another; BERT's rule


class Batch(msgspec.Struct, frozen=True):
    """Token rows; contrastive: N anchors, then N positives, with log_q (N,) and same (N, N); words: targets, -1 none;
    teacher: N texts alone.
    """

    rows: Rows
    targets: Rows = []
    log_q: NDArray[np.float32] | None = None
    same: NDArray[np.bool_] | None = None

    @property
    def tokens(self) -> int:
        """How many are read, without padding."""
        return sum(map(len, self.rows))


class Batches:
    """Batches of one kind, by their number. bought: with loss = purchases; texts: with the others."""

    def __init__(
        self,
        settings: TuneSettings,
        tokenizer: "PreTrainedTokenizerBase",
        causal: bool,
        texts: Sequence[str],
        bought: Bought | None,
        examples: NDArray[np.int64],
    ) -> None:
        """examples: purchases, as places in `bought`, or texts."""
        self._settings, self._texts, self._bought, self.examples = settings, texts, bought, examples
        own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._reader = TextReader(own, settings.prompt, settings.max_tokens, "the base")
        self._causal, self._mask_id, self._vocabulary = causal, tokenizer.mask_token_id, len(tokenizer)
        if settings.loss == "words" and not causal and self._mask_id is None:
            raise Misuse('the base reads both ways and its tokenizer has no mask token; take loss = "views"')
        self._epoch, self._order = -1, examples
        self._size = min(settings.batch, len(examples))
        self._view = View(settings, texts, bought)

    @property
    def an_epoch(self) -> int:
        """Batches that see each example once; what is left over waits for another order."""
        return len(self.examples) // self._size

    def __getitem__(self, number: int) -> Batch:
        """The batch of a number, from 0 without end. Deterministic."""
        seed, (epoch, place) = self._settings.seed, divmod(number, self.an_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([seed, 0, epoch]).permutation(self.examples)
        chosen = self._order[place * self._size : (place + 1) * self._size]
        rng = np.random.default_rng([seed, 1, number])
        if self._bought is not None:
            return self._pairs(self._bought, chosen, rng)
        texts = [self._texts[at] for at in chosen.tolist()]
        if self._settings.loss == "words":
            return self._words(texts, rng)
        if self._settings.loss == "teacher":
            return Batch(self._ids([self._view.dropped(text, rng) for text in texts]))
        views = [self._view.dropped(text, rng) for _ in range(2) for text in texts]
        equal = np.equal.outer(chosen, chosen)
        return Batch(self._ids(views), log_q=np.zeros(len(texts), np.float32), same=equal)

    def longest(self, count: int) -> Batch:
        """The batch that takes most memory for so many examples: its longest texts, by their bytes."""
        texts = self._bought.texts if self._bought else [self._texts[at] for at in self.examples.tolist()]
        chosen = sorted(texts, key=lambda text: -len(text.encode()))[:1] * count
        if self._settings.loss == "words":
            return self._words(chosen, np.random.default_rng(0))
        if self._settings.loss == "teacher":
            return Batch(self._ids(chosen))
        return Batch(self._ids(chosen * 2), log_q=np.zeros(count, np.float32), same=np.eye(count, dtype=bool))

    def _pairs(self, bought: Bought, chosen: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        anchors, positives = bought.draw(chosen, rng)
        log_q = bought.log_q[positives] * np.float32(self._settings.log_q)
        texts = [self._view.changed(bought.texts[at], rng) for at in (*anchors.tolist(), *positives.tolist())]
        return Batch(self._ids(texts), log_q=log_q, same=bought.same(anchors, positives))

    def _ids(self, texts: Sequence[str]) -> Rows:
        return [one.ids or [0] for one in self._reader.read(texts)]

    def _words(self, texts: Sequence[str], rng: np.random.Generator) -> Batch:
        rows, targets = [], []
        for one in self._reader.read(texts):
            ids = np.array(one.ids or [0])
            if self._causal:  # each token guesses the next; the last one none
                rows.append(ids.tolist())
                targets.append([*ids[1:].tolist(), -1])
                continue
            free = ~np.array(one.special_tokens_mask or [1], bool)
            hidden = free & (rng.random(len(ids)) < self._settings.mask)
            if not hidden.any() and free.any():  # a title of three words has to give one of them
                hidden[rng.choice(np.flatnonzero(free))] = True
            how = rng.random(len(ids))
            shown = np.where(hidden & (how >= KEPT + RANDOM), self._mask_id, ids)
            swapped = hidden & (how >= KEPT) & (how < KEPT + RANDOM)
            shown = np.where(swapped, rng.integers(0, self._vocabulary, len(ids)), shown)
            rows.append(shown.tolist())
            targets.append(np.where(hidden, ids, -1).tolist())
        return Batch(rows, targets)


def split(
    settings: TuneSettings,
    tokenizer: "PreTrainedTokenizerBase",
    causal: bool,
    texts: Sequence[str],
    bought: Bought | None,
) -> tuple[Batches, Batches | None]:
    """What is learned from, and the newest slice, which only says when to stop. Raises Misuse where one is too small."""
    examples = bought.anchors if bought else np.arange(len(texts))
    cut = len(examples) - round(settings.hold_out * len(examples))
    if cut < 2 or (settings.hold_out and len(examples) - cut < 2):
        raise Misuse(
            f"{len(examples)} examples, of which hold_out = {settings.hold_out:g} leaves {cut} to learn from and "
            f"{len(examples) - cut} to stop by; two of each are needed: load more, or set hold_out = 0"
        )
    plain = msgspec.structs.replace(settings, word_swap=0.0, synonyms=0.0)  # it is judged by texts as they are
    if settings.loss == "teacher":
        plain = msgspec.structs.replace(plain, word_drop=0.0)
    learned = Batches(settings, tokenizer, causal, texts, bought, examples[:cut])
    return learned, Batches(plain, tokenizer, causal, texts, bought, examples[cut:]) if settings.hold_out else None


def by_length(lengths: Sequence[int], budget: int) -> list[Call]:
    """Places in calls of texts of like length, under a budget of tokens with padding; one that exceeds it goes alone.

    >>> by_length([9, 2, 3, 2], 6)
    [[1, 3], [2], [0]]
    """
    calls: list[Call] = []
    for at in sorted(range(len(lengths)), key=lambda at: lengths[at]):
        if not calls or (len(calls[-1]) + 1) * lengths[at] > budget:
            calls.append([])
        calls[-1].append(at)
    return calls


def split_calls(calls: Sequence[Call], count: int) -> list[Call]:
    """So many calls at least, the largest halved first; a text alone is not.

    >>> split_calls([[0, 1, 2], [3]], 3)
    [[0], [1, 2], [3]]
    """
    found = [list(call) for call in calls]
    while len(found) < count and max(map(len, found)) > 1:
        at = max(range(len(found)), key=lambda at: len(found[at]))
        half = len(found[at]) // 2
        found[at : at + 1] = [found[at][:half], found[at][half:]]
    return found


def padded_size(rows: Sequence[Sequence[int]], calls: Sequence[Call]) -> int:
    """Tokens of some calls, with padding."""
    return sum(len(call) * max(len(rows[at]) for at in call) for call in calls)


def padded(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> torch.Tensor:
    """Rows as one tensor, (N, longest) int64."""
    table = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for at, row in enumerate(rows):
        table[at, : len(row)] = row
    return torch.from_numpy(table).to(device)
