"""How varied one user's lists are: within a list, from one time to the next, and against the user's own past.

Distances come as a matrix of all pairs, so that any kind of likeness can be judged; means over lists are the caller's.
Not how right a list is (`metrics.py`) nor how different users' lists are (`crowd_metrics.py`). Called by
`models/judging.py` and by the demo's summary.
"""

from collections.abc import Collection, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from recsys.errors import Misuse

# --- within a list ----------------------------------------------------------------------------------------------------


def vector_distances(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """1 - cosine between all pairs of a list: (k, D) unit rows to (k, k), in [0, 2].

    >>> vector_distances(np.eye(2, dtype=np.float32)).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    exact = vectors.astype(np.float64)
    return np.asarray(1.0 - exact @ exact.T)


def path_distances(paths: NDArray[np.int32]) -> NDArray[np.float64]:
    """How much of their category paths two items do not share: (k, L) codes to (k, k), in [0, 1].

    1 - shared levels / levels of the deeper one. A code stands for the path down to its level, -1 for none
    (`Catalogue.category`); items without a category share nothing.

    >>> path_distances(np.array([[1, 2, 3, 4], [1, 2, 3, 5], [1, 6, -1, -1]], np.int32))[0].tolist()
    [0.0, 0.25, 0.75]
    """
    shared = ((paths[:, None] == paths[None]) & (paths >= 0)).sum(axis=2)
    depth = (paths >= 0).sum(axis=1)
    return np.asarray(1.0 - shared / np.maximum(np.maximum(depth[:, None], depth), 1))


def mean_distance(distances: NDArray[np.float64]) -> float:
    """Intra-list distance: the mean over pairs; 0 for a list without pairs.

    >>> mean_distance(np.array([[0, 1, 0.5], [1, 0, 0], [0.5, 0, 0]]))
    0.5
    """
    pairs = distances[np.triu_indices(len(distances), 1)]
    return float(pairs.mean()) if len(pairs) else 0.0


def min_distance(distances: NDArray[np.float64]) -> float:
    """The closest pair: shows the near-duplicates that a mean hides; 0 for a list without pairs.

    >>> min_distance(np.array([[0, 1, 0.5], [1, 0, 0.2], [0.5, 0.2, 0]]))
    0.2
    """
    return float(distances[np.triu_indices(len(distances), 1)].min()) if len(distances) > 1 else 0.0


def category_entropy(codes: NDArray[np.int32]) -> float:
    """Shannon entropy of a list's categories, in nats; exp of it is how many categories there are in effect.

    >>> round(category_entropy(np.array([7, 7, 9, 9], np.int32)), 4)  # log 2
    0.6931
    """
    share = np.unique(codes, return_counts=True)[1] / max(len(codes), 1)
    return float(-(share * np.log(share)).sum())


def calibration_kl(preferred: NDArray[np.float64], shown: NDArray[np.float64], alpha: float = 0.01) -> float:
    """How far the categories of a list are from those of the user's past: KL(p ‖ (1-α)q + αp), in nats. Steck 2018.

    preferred, shown: (C,) each summing to 1. α keeps a category that is not shown finite: log(1/α) at most.

    >>> calibration_kl(np.array([0.7, 0.3]), np.array([0.7, 0.3]))
    0.0
    >>> round(calibration_kl(np.array([1.0, 0.0]), np.array([0.0, 1.0])), 4)  # log 100
    4.6052
    """
    kept = preferred > 0
    p, q = preferred[kept], shown[kept]
    return float((p * np.log(p / ((1 - alpha) * q + alpha * p))).sum())


def calibration_js(preferred: NDArray[np.float64], shown: NDArray[np.float64]) -> float:
    """The same as a Jensen–Shannon divergence: symmetric, finite without an α, from 0 to log 2 nats. Lin 1991.

    >>> calibration_js(np.array([0.7, 0.3]), np.array([0.7, 0.3]))
    0.0
    >>> round(calibration_js(np.array([1.0, 0.0]), np.array([0.0, 1.0])), 4)  # log 2
    0.6931
    """
    middle = (preferred + shown) / 2
    sides = [side[side > 0] @ np.log(side[side > 0] / middle[side > 0]) for side in (preferred, shown)]
    return float(np.mean(sides))


def centroid_norm(vectors: NDArray[np.float32]) -> float:
    """The length of the mean of unit rows: (k, D) of a list; 1 = all one direction, 1/√k = all at right angles.

    Its square is the mean cosine of all pairs, an item with itself included. Of the users' list means (U, D), each of
    length 1 or less, it says how far all lists point one way.

    >>> centroid_norm(np.array([[1, 0], [1, 0]], np.float32)), round(centroid_norm(np.eye(4, dtype=np.float32)), 4)
    (1.0, 0.5)
    """
    return float(np.linalg.norm(vectors.astype(np.float64).mean(axis=0))) if len(vectors) else 0.0


# --- over time --------------------------------------------------------------------------------------------------------


def temporal_diversity(before: Sequence[Hashable], now: Sequence[Hashable], k: int) -> float:
    """The share of a list of k that was not in the list before it: |L_t - L_(t-1)| / k. Lathia et al. 2010.

    >>> temporal_diversity(["a", "b", "c", "d"], ["a", "b", "c", "e"], 4)
    0.25
    """
    return temporal_novelty([before], now, k)


def temporal_novelty(earlier: Collection[Sequence[Hashable]], now: Sequence[Hashable], k: int) -> float:
    """The share of a list of k that was in no list before: |L_t - (L_1 ∪ … ∪ L_(t-1))| / k. Lathia et al. 2010.

    Only the first k places count; a list shorter than k counts as k. Raises Misuse at k < 1 and for an item twice.

    >>> temporal_novelty([["a", "b"], ["c", "d"]], ["a", "e"], 2)
    0.5
    """
    top = list(now[:k])
    if k < 1 or len(set(top)) < len(top):
        raise Misuse("a list is judged at k ≥ 1 and offers nothing twice")
    return len(set(top).difference(*(ranked[:k] for ranked in earlier))) / k


# --- the article's losses, as figures ---------------------------------------------------------------------------------


def redundancy(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """How much each item of a list repeats the others: (k, D) unit rows to (k,), mean cosine to the rest in [0, 1].

    >>> redundancy(np.array([[1, 0], [1, 0], [0, 1]], np.float32)).tolist()
    [0.5, 0.5, 0.0]
    """
    alike = np.clip(1 - vector_distances(vectors), 0, 1)
    return np.asarray((alike.sum(axis=1) - np.diag(alike)) / max(len(vectors) - 1, 1))


def literal_losses(
    lists: Sequence[Sequence[Hashable]],
    bought: Sequence[Collection[Hashable]],
    redundancies: Sequence[NDArray[np.float64]],
) -> tuple[float, float]:
    """L_acc = 1/N Σ_i Σ_j [y_i ≠ j]² and L_disp = 1/N Σ_i Σ_j [y_i ≠ j] M(i, j), over the items j of user i's list.

    lists, bought, redundancies: one of each per user; M as of `redundancy`. Both lie in [0, R] for lists of R.
    L_acc is R less the hits, so it is least where most is hit. L_disp is the same sum, each item weighed by M, and what
    M is decides what a small L_disp means: M must be a redundancy (likeness to the rest of the list). Were it a
    distance, less would mean more of the same. Figures only: nothing can descend on them, they are counts. Raises
    Misuse where lengths differ.

    >>> varied, doubled = np.zeros(3), np.ones(3)
    >>> literal_losses([["a", "b", "c"]], [{"a"}], [varied]), literal_losses([["a", "b", "c"]], [{"a"}], [doubled])
    ((2.0, 0.0), (2.0, 2.0))
    """
    sizes = [(len(ranked), len(weights)) for ranked, weights in zip(lists, redundancies, strict=False)]
    if not lists or len(lists) != len(bought) or len(lists) != len(redundancies) or any(a != b for a, b in sizes):
        raise Misuse("losses need of each user a list, what was bought, and a redundancy of each item of the list")
    wrong = [np.array([item not in took for item in ranked]) for ranked, took in zip(lists, bought, strict=True)]
    accuracy = sum(float(missed.sum()) for missed in wrong)
    dispersion = sum(float(missed @ weights) for missed, weights in zip(wrong, redundancies, strict=True))
    return accuracy / len(lists), dispersion / len(lists)
