"""How broad a user's tastes are, and how much variety that is worth: the strength of the diversifier, per user.

Who buys, looks at and searches for things of many kinds gets the policy's strength; who wants one kind of thing gets less
of it. Of little history nothing follows, so the factor is shrunk towards 1. With the policy's `adapt` at 0, its default,
nothing is computed (docs/decisions.md has the measurement). Called by `recsys/variety.py`.
"""

import numpy as np
from numpy.typing import NDArray

from recsys.context import Context
from recsys.policy import Policy

LEVEL = 1  # of the category path, from 0: as fine as tastes are counted
BROAD = 20  # so many kinds in equal parts are as broad as counts
SOFTENED = 1.0  # nats added to both entropies (Huawei's pDPP): who wants one thing only still gets some variety
HALF_SURE = 20.0  # things: with so many the factor is half the user's own
ANSWERS = 10  # of each search that is remembered, whose kinds stand for what was searched


def adapted_strength(context: Context, policy: Policy) -> float:
    """The policy's strength for this user, in [0, strength]. 10 µs, and 50 µs a search that is remembered."""
    if not (policy.adapt and policy.strength):
        return policy.strength
    return policy.strength * (1.0 + policy.adapt * (factor(kinds(context)) - 1.0))


def factor(counts: NDArray[np.float64]) -> float:
    """How much of the strength a user gets who had so many things of each kind, in (0, 1]. counts: (K,) ≥ 0.

    f = (H + l) / (H_max + l), H the entropy of the kinds, H_max that of BROAD kinds in equal parts; of n things it counts
    n / (n + HALF_SURE), and 1 for the rest.

    >>> factor(np.zeros(0)), round(factor(np.full(20, 1e6)), 4)
    (1.0, 1.0)
    >>> round(factor(np.array([5.0])), 2), round(factor(np.array([500.0])), 2)
    (0.85, 0.28)
    """
    n = float(counts.sum())
    own = min(1.0, (entropy(counts) + SOFTENED) / (float(np.log(BROAD)) + SOFTENED))
    return 1.0 + (own - 1.0) * n / (n + HALF_SURE)


def entropy(counts: NDArray[np.float64]) -> float:
    """Of counts as shares, in nats; 0 of nothing.

    >>> round(entropy(np.array([2.0, 2.0, 0.0])), 4), entropy(np.zeros(3))
    (0.6931, 0.0)
    """
    positive = counts[counts > 0]
    shares = positive / positive.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0


def kinds(context: Context) -> NDArray[np.float64]:
    """How often the user had to do with each kind of thing: (K,) float64, unordered.

    One for each purchase and touch that the profile remembers, and for each of its searches, which is shared out among
    the kinds of what has its words.
    """
    catalogue = context.shop.catalogue
    rows = [context.bought.rows, context.touched.rows]
    weights = [np.ones(len(context.bought.rows)), np.ones(len(context.touched.rows))]
    for _, text in context.request.profile.queries:
        answers, cosines = catalogue.words.search(catalogue.words.query(text), ANSWERS)
        rows.append(answers)
        weights.append(cosines / max(float(cosines.sum()), 1e-9))
    codes, share = catalogue.category[np.concatenate(rows), LEVEL], np.concatenate(weights)
    known = codes >= 0
    found, place = np.unique(codes[known], return_inverse=True)
    return np.bincount(place, share[known], len(found)).astype(np.float64)
