"""The tower that another one imitates: an untouched model's whitened vectors, and how far a student is from them.

Whitened, since raw vectors all look alike (cosine .9 and more for any two texts): a student that learned only those would
learn what texts have in common. The map is fitted once on the teacher's vectors of the shop's texts and then fixed, and the
student goes through the same one, so that it is pulled in every direction by which texts differ. No labels.
The teacher is no part of what learns, is copied or sharded; it reads in float32 whatever the student learns in, as whitening
stretches rounding too. Called by text_objective.py, of text_tuning.py; what tuning for it is for: compression.py.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch.nn import functional

from models.export import find_weights
from models.text_batches import by_length, padded
from models.text_export import load, pooled
from models.text_settings import TuneSettings
from models.text_tower import TextReader
from models.whitening import fit_whitening
from recsys.errors import Misuse

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Teacher:
    """What the vectors of token rows should be, and the loss of what they are."""

    def __init__(
        self,
        settings: TuneSettings,
        student: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        texts: Sequence[str],
        device: torch.device,
    ) -> None:
        """tokenizer: the student's. texts: that the whitening is fitted on; reads them, 15 s for 3,000 titles and MiniLM.

        Raises Misuse if student and teacher do not read the same tokens into vectors of one width.
        """
        self.folder, self._device, self._budget = find_weights(settings.teacher), device, settings.token_budget
        model, tokens = load(self.folder)
        own = tokens.backend_tokenizer.to_str()
        if own != tokenizer.backend_tokenizer.to_str() or model.config.hidden_size != student.config.hidden_size:
            raise Misuse(
                f"the model reads other tokens than its teacher {settings.teacher}, or into another width; "
                "take its teacher, of which it is a pruned copy"
            )
        self._tower: Any = pooled(model, settings.pooling).to(device)
        self._known: dict[tuple[int, ...], torch.Tensor] = {}
        reader = TextReader(Tokenizer.from_str(own), settings.prompt, settings.max_tokens, "the teacher")
        raw = self.vectors([one.ids or [0] for one in reader.read(texts)])
        whitening = fit_whitening(raw.cpu().numpy(), raw.shape[1])
        self._mean, self._matrix = (torch.from_numpy(each).to(device) for each in (whitening.mean, whitening.matrix))

    def loss(self, rows: Sequence[Sequence[int]], vectors: torch.Tensor) -> torch.Tensor:
        """1 - the mean cosine of a student's vectors of some rows, (N, D), to the teacher's, both whitened by one map."""
        return 1 - (self._whiten(vectors) * self._whiten(self.vectors(rows))).sum(dim=1).mean()

    def vectors(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """The teacher's own vectors, (N, D), not whitened. Each is read once: an epoch later it is known."""
        new = sorted({tuple(row) for row in rows} - self._known.keys())
        if new:
            self._known |= dict(zip(new, self._read(new), strict=True))
        return torch.stack([self._known[tuple(row)] for row in rows])

    def _whiten(self, vectors: torch.Tensor) -> torch.Tensor:
        return functional.normalize((vectors - self._mean) @ self._matrix)

    @torch.no_grad()
    def _read(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        found: list[Any] = [None] * len(rows)
        for call in by_length([len(row) for row in rows], self._budget):
            chosen = [rows[at] for at in call]
            mask = padded([[1] * len(row) for row in chosen], 0, self._device)
            for at, vector in zip(call, self._tower(padded(chosen, 0, self._device), mask).float(), strict=True):
                found[at] = vector
        return torch.stack(found)
