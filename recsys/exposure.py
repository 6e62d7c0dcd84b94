"""The price of showing everybody the same: what a list pays for an item that others were shown.

Overlap between users grows with an item's showings, whoever sees it; what a list loses without it grows with the
probability that this user takes it. So both are weighed as probabilities, not as logits: an item that is sure for a user
stays however often others see it, and the many that are a little likely for everybody make way for each other. Called
by the pipeline.
"""

import numpy as np
from numpy.typing import NDArray

# The probability among the candidates at which an item is half sure to stay. Flat between .02 and .05 on two data sets
# (docs/diversity.md).
HALF = 0.05
FLOOR = 1e-3  # below it the price goes on in a straight line: a logarithm would make it infinite
MOST = 8.0  # logits: enough to end any candidate's hope, and the others' differences stay visible beside it
SURE = 1 - 1e-6


def price_exposure(relevance: NDArray[np.float64], shown: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """What to take off each candidate's relevance: (C,) float64 in [0, MOST], in logits.

    relevance: (C,) logits of one list. shown: (C,) in [0, 1], the item's share of all that was shown.
    With u = σ(relevance - log Σ exp(relevance) - log HALF), the order becomes that of u - weight · shown.

    >>> price_exposure(np.array([3.0, 0.0]), np.array([0.01, 0.01]), 10.0).round(2).tolist()
    [1.21, 0.41]
    >>> price_exposure(np.array([3.0, 0.0]), np.array([0.1, 0.0]), 0.0).tolist()
    [0.0, 0.0]
    """
    if not weight or not len(relevance):
        return np.zeros(len(relevance))
    largest = relevance.max()
    log_total = largest + np.log(np.exp(relevance - largest).sum())
    # Beyond e^30 the sigmoid is 0 or 1 to the last bit.
    stays = np.minimum(1 / (1 + np.exp(np.clip(np.log(HALF) + log_total - relevance, -30, 30))), SURE)
    return np.minimum(_logit(stays) - _logit(stays - weight * shown), MOST)


def _logit(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(p / (1 - p)) above FLOOR, its tangent below."""
    inside = np.maximum(share, FLOOR)
    curve: NDArray[np.float64] = np.log(inside) - np.log1p(-inside)
    return curve + np.minimum(share - FLOOR, 0) / (FLOOR * (1 - FLOOR))
