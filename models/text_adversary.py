"""Adversarial training: a text's token embeddings are moved the way that the loss grows fastest, and it is learned again.

FGM of Miyato et al. 2017 (Adversarial Training Methods for Semi-Supervised Text Classification, eq. 5): r = ε g / |g|,
where g is the gradient at a text's embeddings, and the loss is the plain one and the moved one together. What is moved is
what the model reads, not its table, so it works with whatever learns. ε is a share of the length of what is moved, as
bases differ a hundredfold in it. Called by text_objective.py and text_gradients.py.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


class Adversary:
    """Remembers the embeddings of each call while `listening`, adds to them while `pushing`; else it changes nothing."""

    def __init__(self, embeddings: torch.nn.Module, size: float) -> None:
        """embeddings: ids -> (N, T, D). size: the share ε."""
        self.call = 0  # whose turn it is
        self._size, self._listens = size, False
        self._felt: dict[int, torch.Tensor] = {}
        self._pushes: dict[int, torch.Tensor] = {}
        embeddings.register_forward_hook(self._after)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While the plain loss is computed and its gradient taken."""
        self._listens = True
        try:
            yield
        finally:
            self._listens = False

    @contextlib.contextmanager
    def pushing(self) -> Iterator[None]:
        """While the same calls are computed again."""
        self._pushes = {call: push(felt, felt.grad, self._size) for call, felt in self._felt.items()}
        self._felt = {}
        try:
            yield
        finally:
            self._pushes = {}

    def _after(self, _module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if self._pushes:
            return output + self._pushes[self.call]
        if self._listens and torch.is_grad_enabled():
            output = output if output.requires_grad else output.detach().requires_grad_()
            output.retain_grad()
            self._felt[self.call] = output
        return output


def push(embedded: torch.Tensor, gradient: torch.Tensor | None, size: float) -> torch.Tensor:
    """What is added to the embeddings of texts, (N, T, D): of each text along its gradient, `size` times its own length.

    Nothing where the gradient is nothing, as at padding, or is not finite, as when float16 runs over.
    """
    if gradient is None:
        return torch.zeros_like(embedded)
    read = (gradient != 0).any(-1, keepdim=True)  # padding has no gradient, and its length does not count
    length = (embedded.detach() * read).flatten(1).norm(dim=1)
    steep = gradient.flatten(1).norm(dim=1)
    share = torch.where((steep > 0) & steep.isfinite(), size * length / steep, 0.0)
    return gradient.nan_to_num(0, 0, 0) * share[:, None, None]
