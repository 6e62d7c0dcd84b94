"""A batch of texts to its loss, as one torch module, which is what is copied or sharded among processes.

Texts are sorted by length and read in calls under a budget of tokens. A call's dropout is drawn from the batch's seed and
the call's place, so a batch that is computed piece by piece has the gradients of the batch at once.
Called by text_gradients.py, and by text_tuning.py to validate.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from models.text_adapters import Learner
from models.text_adversary import Adversary
from models.text_batches import Batch, Call, by_length, padded
from models.text_export import pooled
from models.text_losses import contrastive, guessed
from models.text_settings import TuneSettings
from models.text_teacher import Teacher


class Piece(msgspec.Struct, frozen=True):
    """What is computed at once: some calls of a batch, each the places of its rows.

    seed: of dropout while it learns. pull: the loss's gradient at all vectors of the batch, where other pieces have
    the others; vectors: only these are asked for.
    """

    batch: Batch
    calls: list[Call]
    seed: int = 0
    pull: torch.Tensor | None = None
    vectors: bool = False


class Objective(torch.nn.Module):
    """The tower that learns, read as it will serve, and what the loss needs besides."""

    def __init__(
        self, learner: Learner, settings: TuneSettings, precision: torch.dtype, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self._teacher = teacher
        self.learner: Learner = learner
        self.tower: Any = pooled(learner.model, settings.pooling)
        self._settings, self._precision = settings, precision
        embeddings: Any = learner.model.get_input_embeddings()
        self.adversary = Adversary(embeddings, settings.adversarial) if settings.adversarial else None
        if settings.loss == "words":
            # A map before the input's own embeddings, since few bases come with what guessed words in their training.
            self.words: Any = embeddings
            vocabulary, width = self.words.weight.shape
            self.map, self.bias = torch.nn.Linear(width, width), torch.nn.Parameter(torch.zeros(vocabulary))
            torch.nn.init.eye_(self.map.weight)
            torch.nn.init.zeros_(self.map.bias)

    def whole(self, batch: Batch, seed: int = 0) -> Piece:
        """A batch as one piece."""
        return Piece(batch, self.calls(batch.rows), seed)

    def calls(self, rows: Sequence[Sequence[int]], most: int | None = None) -> list[Call]:
        """How rows are read. most: tokens with padding, if fewer than the settings say."""
        budget = self._settings.token_budget
        return by_length([len(row) for row in rows], min(budget, most or budget))

    def forward(self, piece: Piece) -> torch.Tensor:
        """The mean loss of a batch, float32; of a piece its share, or what has the same gradient; or vectors."""
        with self._cast():
            if piece.batch.targets:
                loss = self._guess(piece)
            else:
                vectors = self._embed(piece)
                if piece.vectors:
                    return vectors
                if piece.pull is None:
                    loss = self.tell_apart(piece.batch, vectors)
                else:
                    loss = (vectors * piece.pull[sorted(at for call in piece.calls for at in call)]).sum()
        first = any(0 in call for call in piece.calls)
        return loss + self.learner.extra_loss() if self.training and first else loss

    def tell_apart(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        """The loss of a batch's vectors: contrastive, (2N, D); to the teacher's, (N, D)."""
        if self._teacher is not None:
            with torch.autocast(vectors.device.type, enabled=False):
                return self._teacher.loss(batch.rows, vectors)
        assert batch.log_q is not None  # noqa: S101  (a contrastive batch has both)
        log_q, same = (torch.from_numpy(each).to(vectors.device) for each in (batch.log_q, batch.same))
        anchors, positives = vectors.chunk(2)
        with torch.autocast(vectors.device.type, enabled=False):
            return contrastive(anchors, positives, log_q, same, self._settings.temperature)

    def _embed(self, piece: Piece) -> torch.Tensor:
        """Unit vectors of a piece's rows, (n, D) float32, by their places."""
        found = [self.tower(*self._inputs(piece, call)).float() for call in piece.calls]
        order = torch.tensor([at for call in piece.calls for at in call])
        return torch.cat(found)[order.argsort().to(found[0].device)]

    def _guess(self, piece: Piece) -> torch.Tensor:
        count = sum(target >= 0 for row in piece.batch.targets for target in row)
        total = self.bias.sum() * 0
        for call in piece.calls:
            ids, mask = self._inputs(piece, call)
            targets = padded([piece.batch.targets[at] for at in call], -1, ids.device)
            hidden = self.map(self.tower.hidden(ids, mask))
            if (here := int((targets >= 0).sum())) > 0:
                total = total + guessed(hidden, targets, self.words.weight, self.bias).float() * (here / count)
            else:  # read all the same: other processes wait for the same calls
                total = total + hidden.sum() * 0
        return total

    def _inputs(self, piece: Piece, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        if self.training:
            torch.manual_seed(piece.seed + call[0])
        if self.adversary is not None:
            self.adversary.call = call[0]
        chosen, device = [piece.batch.rows[at] for at in call], next(self.parameters()).device
        return padded(chosen, 0, device), padded([[1] * len(row) for row in chosen], 0, device)

    def _cast(self) -> torch.autocast:
        device = next(self.parameters()).device.type
        return torch.autocast(device, self._precision, enabled=self._precision != torch.float32)
