"""Determinantal point process: the list that spans the largest volume, greedily.

Greedy MAP after Chen, Zhang, Zhou 2018, "Fast Greedy MAP Inference for Determinantal Point Process", algorithm 1, on
L = Diag(w) (a·S + (1-a)·I) Diag(w), w = exp(α r), α = (1-s) / (2 s), so that log det L_Y is proportional to
(1-s)·Σr + s·log det K_Y. The blended kernel has full rank: the residuals never run out, however long the list.
"""

import numpy as np
from numpy.typing import NDArray

BLEND = 0.9  # a: how much of the similarity counts; 1 would make exact duplicates impossible and ranks run out


def choose_dpp(
    relevance: NDArray[np.float64], vectors: NDArray[np.float32], k: int, strength: float
) -> NDArray[np.int64]:
    """Greedy argmax of the log-determinant, k times.

    relevance: (N,) in [0, 1]; vectors: (N, D) unit or zero; k ≤ N; 0 < strength ≤ 1. Ties by position.
    Works in logarithms of the gains: exp(α r) would overflow for a small strength.
    """
    n = len(relevance)
    log_weight = (1 - strength) / strength * relevance  # = 2 α r; -inf once chosen
    residual = np.ones(n)  # of K's diagonal: a·1 + (1-a)·1; a zero vector counts as unlike everything
    factors = np.zeros((k, n))  # rows of the growing Cholesky factor of K
    positions = np.empty(k, np.int64)
    for step in range(k):
        at = int(np.argmax(log_weight + np.log(residual)))
        positions[step] = at
        log_weight[at] = -np.inf
        if step + 1 < k:
            row = BLEND * (vectors @ vectors[at]).astype(np.float64)
            row[at] = 1.0
            row = (row - factors[:step, at] @ factors[:step]) / np.sqrt(residual[at])
            factors[step] = row
            residual = np.maximum(residual - row * row, 1e-12)  # ≥ 1-a in exact arithmetic
    return positions
