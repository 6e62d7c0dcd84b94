"""The gradient of a batch: at once where it fits in memory, call by call where it does not, and once more under attack.

A contrastive loss needs all vectors of its batch, but not all activations: vectors are computed without them, the loss's
gradient at the vectors is taken, and each call is computed again and pulled by its part of it (GradCache, Gao et al. 2021).
The gradients are those of the batch at once, for a forward pass more. A loss over words is a sum over calls anyway.
Called by text_tuning.py.
"""

import contextlib
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from models.text_batches import Batch, Call, padded_size, split_calls
from models.text_objective import Objective, Piece


class Gradients:
    """Adds up gradients of batches in the weights that learn."""

    def __init__(self, objective: Objective, parallel: Any, scaler: torch.amp.GradScaler, sharded: bool) -> None:
        """parallel: the objective as processes share it, or the objective. sharded: then all take equally many calls."""
        self.live: int | None = None  # tokens with padding whose activations may be kept at once; None: any number
        self._objective, self._parallel, self._scaler, self._sharded = objective, parallel, scaler, sharded

    def add(self, batch: Batch, seed: int, share: float, last: bool) -> float:
        """The loss of a batch, whose gradient times `share` is added. last: of a step, when processes meet."""
        adversary = self._objective.adversary
        if adversary is None:
            return self._pass(batch, seed, share, last)
        with adversary.listening():
            loss = self._pass(batch, seed, share, last=False)
        with adversary.pushing():
            self._pass(batch, seed, share, last)
        return loss

    def _pass(self, batch: Batch, seed: int, share: float, last: bool) -> float:
        pieces, loss = self._pieces(batch, seed), 0.0
        pulled = len(pieces) > 1 and not batch.targets
        if pulled:
            loss, pull = self._pull(batch, pieces)
            pieces = [Piece(batch, piece.calls, seed, pull) for piece in pieces]
        for at, piece in enumerate(pieces):
            with self._alone(last and at == len(pieces) - 1):
                found = self._parallel(piece)
                self._scaler.scale(found * share).backward()
            loss += 0.0 if pulled else float(found.detach())
        return loss

    def _pieces(self, batch: Batch, seed: int) -> list[Piece]:
        calls = self._objective.calls(batch.rows, self.live)
        apart = self.live is not None and padded_size(batch.rows, calls) > self.live
        if self._sharded:  # layers are gathered call by call, so all processes need as many
            agreed = torch.tensor([len(calls), int(apart)], device=next(self._objective.parameters()).device)
            distributed.all_reduce(agreed, distributed.ReduceOp.MAX)
            count, apart = int(agreed[0]), bool(agreed[1])
            calls = split_calls(calls, count)
        groups: list[list[Call]] = [[call] for call in calls] if apart else [calls]
        return [Piece(batch, group, seed) for group in groups]

    def _pull(self, batch: Batch, pieces: list[Piece]) -> tuple[float, torch.Tensor]:
        """The loss, and its gradient at the vectors of the whole batch."""
        with torch.no_grad():
            found = [self._parallel(Piece(batch, piece.calls, piece.seed, vectors=True)) for piece in pieces]
        order = torch.tensor([at for piece in pieces for call in piece.calls for at in sorted(call)])
        vectors = torch.cat(found)[order.argsort().to(found[0].device)].requires_grad_()
        loss = self._objective.tell_apart(batch, vectors)
        return float(loss.detach()), torch.autograd.grad(loss, vectors)[0]

    def _alone(self, meets: bool) -> contextlib.AbstractContextManager[None]:
        """While copies keep their gradients to themselves; shards always meet, and hold no whole gradient."""
        waits = not meets and isinstance(self._parallel, DistributedDataParallel)
        return self._parallel.no_sync() if waits else contextlib.nullcontext()
