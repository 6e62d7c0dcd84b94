"""Re-ranking: relevance against variety inside one list. One door, `diversify`; one file a method.

Cures sameness within a list only: across users and over time other knobs are needed (docs/decisions.md).
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.diversify.dpp import choose_dpp
from recsys.diversify.mmr import choose_mmr
from recsys.errors import Misuse

METHODS = ("none", "mmr", "dpp")


class Choice(msgspec.Struct, frozen=True):
    """Positions in the order chosen. positions: (k,) int64; novelty: (k,) float64 in [0, 1], 1 = unlike all before."""

    positions: NDArray[np.int64]
    novelty: NDArray[np.float64]


def diversify(
    method: str, relevance: NDArray[np.float64], vectors: NDArray[np.float32], k: int, strength: float
) -> Choice:
    """Choose min(k, N) of N candidates, most relevant first where strength is 0.

    relevance: (N,) finite, any scale: the least of the request becomes 0, the greatest 1, all equal ones 1;
    vectors: (N, D) unit rows, or zero where there is no vector yet; strength in [0, 1]: 0 = relevance only.
    Ties by position. Raises Misuse on NaN, shapes that differ, an unknown method or strength. O(k N D); .1–.2 ms for
    N = 100, k = 10, D = 384.

    >>> twin = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    >>> diversify("mmr", np.array([1.0, 0.9, 0.5]), twin, 2, 0.5).positions.tolist()
    [0, 2]
    """
    if method not in METHODS:
        raise Misuse(f"no diversifier {method!r}; there are {', '.join(METHODS)}")
    if len(vectors) != len(relevance) or not 0 <= strength <= 1 or k < 0:
        raise Misuse(
            f"relevance of {len(relevance)} candidates, vectors of {len(vectors)}, strength {strength}, k {k}: "
            "give one vector a candidate, a strength from 0 to 1 and a k of at least 0"
        )
    if not (np.isfinite(relevance).all() and np.isfinite(vectors).all()):
        raise Misuse("relevance and vectors must be finite: NaN would win every comparison")
    k = min(k, len(relevance))
    low, high = (relevance.min(), relevance.max()) if len(relevance) else (0.0, 0.0)
    scaled = (relevance - low) / (high - low) if high > low else np.ones(len(relevance))
    if method == "none" or strength == 0:
        positions = np.argsort(-scaled, kind="stable")[:k]
    else:
        positions = (choose_mmr if method == "mmr" else choose_dpp)(scaled, vectors, k, strength)
    chosen = vectors[positions]
    similar = np.tril(chosen @ chosen.T, -1).max(axis=1, initial=0.0).astype(np.float64)
    return Choice(positions.astype(np.int64), np.clip(1.0 - similar, 0.0, 1.0))
