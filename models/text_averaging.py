"""Averages of weights: over the steps of a run, as it goes; and over its best validations, at its end.

The first is an exponential average (Polyak), whose decay begins low so that it is not the base's for long. The second is a
uniform soup of one run's checkpoints (Wortsman et al. 2022). Both are of what learns. Called by text_tuning.py.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch

from models.text_processes import fill

Tensors = dict[str, torch.Tensor]


class Average:
    """The running average of some weights; as large as they are."""

    def __init__(self, weights: Tensors, decay: float) -> None:
        """decay: what is kept of the average at a step, 0 to 1."""
        self.values = {name: value.detach().clone() for name, value in weights.items()}
        self._weights, self._decay = weights, decay

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """After a step, counted from 0. The decay is (1 + step) / (10 + step) until it is the asked one."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, value in self._weights.items():
            self.values[name].mul_(decay).add_(value, alpha=1 - decay)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The weights are the average for a while, and then to the bit what they were."""
        held = {name: value.detach().clone() for name, value in self._weights.items()}
        fill(self._weights, self.values)
        try:
            yield
        finally:
            fill(self._weights, held)


def mean(several: Sequence[Tensors]) -> Tensors:
    """The mean of each tensor.

    >>> mean([{"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, 2.0])}])
    {'a': tensor([2., 2.])}
    """
    return {name: torch.stack([one[name] for one in several]).mean(dim=0) for name in several[0]}
