"""Maximal marginal relevance: each next item is relevant and unlike the most similar one chosen.

Carbonell & Goldstein 1998. The cheap method: one matrix-vector product a step.
"""

import numpy as np
from numpy.typing import NDArray


def choose_mmr(
    relevance: NDArray[np.float64], vectors: NDArray[np.float32], k: int, strength: float
) -> NDArray[np.int64]:
    """Argmax (1 - s)·r_i - s·max(0, max_j∈S cos_ij), k times; the first is the most relevant.

    relevance: (N,) in [0, 1]; vectors: (N, D) unit or zero; k ≤ N. Ties by position.
    An opposite (cos < 0) is as good as a stranger: nobody looks for the opposite of a mug.
    """
    open_relevance = (1 - strength) * relevance  # -inf once chosen
    nearest = np.zeros(len(relevance))
    positions = np.empty(k, np.int64)
    for step in range(k):
        at = int(np.argmax(open_relevance - strength * nearest if step else relevance))
        positions[step] = at
        open_relevance[at] = -np.inf
        nearest = np.maximum(nearest, vectors @ vectors[at])
    return positions
