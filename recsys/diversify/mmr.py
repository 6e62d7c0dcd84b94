"""Maximal marginal relevance: each next item is relevant and unlike the most similar one chosen.

Carbonell & Goldstein 1998. The cheap method: one matrix-vector product a step.
"""

import numpy as np
from numpy.typing import NDArray


def choose_mmr(
    relevance: NDArray[np.float64], vectors: NDArray[np.float32], k: int, strength: float
) -> NDArray[np.int64]:
    """Argmax (1 - s)·r_i - s·max_j∈S cos_ij, k times; the first is the most relevant.

    relevance: (N,) in [0, 1]; vectors: (N, D) unit or zero; k ≤ N. Ties by position.
    """
    weighted = (1 - strength) * relevance
    nearest = np.zeros(len(relevance))
    open_to_choice = np.zeros(len(relevance))  # -inf once chosen
    positions = np.empty(k, np.int64)
    for step in range(k):
        at = int(np.argmax(weighted - strength * nearest + open_to_choice))
        positions[step] = at
        open_to_choice[at] = -np.inf
        similar = vectors @ vectors[at]
        nearest = similar.astype(np.float64) if step == 0 else np.maximum(nearest, similar)
    return positions
