"""What moves weights, and its rate along a fit by the share of it that is done. Called by fitting.py and
text_tuning.py; the optimiser by text_optimiser.py too.

By share and not by step, so that a fit which time will end goes through its whole schedule too: weights taken at a high
rate are noise.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from models.train_settings import Optimiser, Schedule

START, END = 1 / 25, 1 / 250_000  # of the highest rate, of one_cycle: Smith 2018's, as torch has them
MOMENTUM, CYCLED = 0.95, 0.10  # of one_cycle: the momentum falls by so much where the rate is highest


def height(share: float, schedule: Schedule, warm_up: float) -> float:
    """How high the rate stands, in [0, 1], when a share of the fit is done.

    >>> [height(share, "linear", 0.2) for share in (0.1, 0.2, 0.6, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    >>> [round(height(share, "one_cycle", 0.5), 3) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    rising, done = share < warm_up, (share - warm_up) / (1 - warm_up)
    if rising:
        return (1 - math.cos(math.pi * share / warm_up)) / 2 if schedule == "one_cycle" else share / warm_up
    if schedule == "constant":
        return 1.0
    return 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


def set_rate(
    optimiser: torch.optim.Optimizer, highest: float, share: float, schedule: Schedule, warm_up: float
) -> None:
    """Give the optimiser its rate for a step at which this share is done; and with one_cycle its momentum."""
    high = height(share, schedule, warm_up)
    low = (START if share < warm_up else END) if schedule == "one_cycle" else 0.0
    for group in optimiser.param_groups:
        group["lr"] = highest * (low + (1 - low) * high)
        if schedule == "one_cycle" and "betas" in group:
            group["betas"] = (MOMENTUM - CYCLED * high, group["betas"][1])


def make_optimiser(
    name: Optimiser, weights: Sequence[torch.Tensor] | Sequence[dict[str, Any]], rate: float, decay: float
) -> torch.optim.Optimizer:
    """The optimiser of a name. weights: all of them, or groups as torch has them, which may say their own decay."""
    if name == "adamw":
        return torch.optim.AdamW(weights, rate, weight_decay=decay)
    if name == "sgd":
        return torch.optim.SGD(weights, rate, momentum=0.9, weight_decay=decay)
    return torch.optim.Adafactor(weights, rate, weight_decay=decay)
