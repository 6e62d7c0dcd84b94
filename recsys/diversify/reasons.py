"""Why an item stands where it stands: its gain in four parts, and a sentence. Called for the chosen items only.

Not why it was a candidate at all: that is `recsys/explain.py`.
"""

import numpy as np
from numpy.typing import NDArray

from recsys.slates import Gain

FAR, NEAR = 0.8, 0.4  # 1 - cosine to the nearest item above: from here on unlike; below: alike


def nearness(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each chosen item, 1 - cosine to the most similar one above it, in [0, 1]. vectors: (k, D) in the list's order.

    >>> nearness(np.array([[1, 0], [0.6, 0.8], [1, 0]], np.float32)).round(2).tolist()
    [1.0, 0.4, 0.0]
    """
    similar = np.tril(vectors @ vectors.T, -1).max(axis=1, initial=0.0).astype(np.float64)
    novelty: NDArray[np.float64] = np.clip(1.0 - similar, 0.0, 1.0)
    return novelty


def gains(parts: NDArray[np.float64], vectors: NDArray[np.float32]) -> list[Gain]:
    """The gains of a list in its order. parts: (k, 4) of a `Choice`; vectors: (k, D) of the same items.

    >>> gains(np.array([[0.9, -0.1, 0.2, -0.05]]), np.ones((1, 1), np.float32))[0].said
    'the most relevant here; adds a kind you like that the list lacked; though many are shown it'
    """
    novelty = nearness(vectors)
    best = parts[:, 0].max(initial=-np.inf)
    spread = best - parts[:, 0].min(initial=np.inf)
    found = []
    for slot, (relevance, difference, coverage, penalty) in enumerate(parts.round(4).tolist()):
        said = []
        if relevance >= round(float(best), 4):
            said.append("the most relevant here")
        elif relevance >= best - spread / 2:
            said.append("among the more relevant")
        else:
            said.append("less relevant than others")
        if slot:
            far = novelty[slot]
            said.append(
                "unlike all above it"
                if far >= FAR
                else "close to one above it"
                if far < NEAR
                else "rather unlike the rest"
            )
        if coverage > 0:
            said.append("adds a kind you like that the list lacked")
        if penalty < 0:
            said.append("though many are shown it")
        found.append(Gain(relevance, difference, coverage, penalty, "; ".join(said)))
    return found
