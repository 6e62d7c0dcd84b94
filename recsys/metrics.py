"""How good lists are: right, varied within, different between users; and how sure one may be of it.

A list is items best first (any hashable or row numbers); a truth is what the user then took. Averages over users are
the caller's. Where definitions differ between libraries, the docstring says which one this is.
Called by `models/evaluate.py`, by training and by the demo's summary.
"""

from collections.abc import Collection, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from recsys.errors import Misuse

Ranked = Sequence[Hashable]
Truth = Collection[Hashable]  # a set is fastest

# --- right: one list against one truth, in [0, 1] ---------------------------------------------------------------------


def ndcg_at_k(ranked: Ranked, truth: Truth, k: int) -> float:
    """Discounted gain over that of the best possible list, which has min(k, |truth|) hits. Järvelin & Kekäläinen 2002.

    >>> round(ndcg_at_k(["a", "x", "b"], {"a", "b", "c"}, 3), 4)  # (1 + 1/2) / (1 + 1/log2(3) + 1/2)
    0.7039
    """
    gain = 1 / np.log2(np.arange(2, k + 2))
    hits = _hits(ranked, truth, k)
    return float(gain[: len(hits)][hits].sum() / gain[: len(truth)].sum())


def recall_at_k(ranked: Ranked, truth: Truth, k: int) -> float:
    """The share of the truth that the list has.

    >>> recall_at_k(["a", "x", "b"], {"a", "b", "c", "d"}, 3)
    0.5
    """
    return float(_hits(ranked, truth, k).sum() / len(truth))


def average_precision_at_k(ranked: Ranked, truth: Truth, k: int) -> float:
    """Mean of the precision at each hit, over min(k, |truth|): a full list of hits is 1 (some divide by |truth|).

    >>> round(average_precision_at_k(["a", "x", "b"], {"a", "b", "c", "d"}, 3), 4)  # (1/1 + 2/3) / 3
    0.5556
    """
    hits = _hits(ranked, truth, k)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].sum() / min(k, len(truth)))


def f1_at_k(ranked: Ranked, truth: Truth, k: int) -> float:
    """2·hits / (k + |truth|); a list shorter than k still counts as k.

    >>> f1_at_k(["a", "x", "b"], {"a", "b", "c", "d", "e"}, 3)
    0.5
    """
    return float(2 * _hits(ranked, truth, k).sum() / (k + len(truth)))


def hit_at_k(ranked: Ranked, truth: Truth, k: int) -> float:
    """1 if anything of the truth is there; its mean over users is the hit rate.

    >>> hit_at_k(["x", "a"], {"a"}, 1), hit_at_k(["x", "a"], {"a"}, 2)
    (0.0, 1.0)
    """
    return float(_hits(ranked, truth, k).any())


def _hits(ranked: Ranked, truth: Truth, k: int) -> NDArray[np.bool_]:
    """Which of the first k places are right. Raises Misuse where every figure would mean nothing."""
    top = list(ranked[:k])
    if k < 1 or not len(truth) or len(set(top)) < len(top):
        raise Misuse("a list is judged at k ≥ 1 by a truth that is not empty, and offers nothing twice")
    return np.fromiter((item in truth for item in top), np.bool_, len(top))


# --- varied within: one list ------------------------------------------------------------------------------------------


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


# --- different between users: all lists -------------------------------------------------------------------------------


def exposure(lists: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """How often each of n items is shown: (U, k) rows, -1 where a list is shorter, to (n,).

    >>> exposure(np.array([[0, 1], [0, -1]]), 3).tolist()
    [2, 1, 0]
    """
    return np.bincount(lists[lists >= 0], minlength=n)


def coverage(shown: NDArray[np.int64]) -> float:
    """The share of the items that anybody is shown. shown: (N,), from `exposure`.

    >>> coverage(np.array([2, 1, 0, 0]))
    0.5
    """
    return float((shown > 0).mean())


def gini(shown: NDArray[np.int64]) -> float:
    """Inequality of exposure: Σ (2i - n - 1) p_(i) / (n - 1), ascending; 0 = all alike, 1 = one item has it all.

    (Divided by n - 1, so that 1 is reached; others divide by n.)

    >>> gini(np.array([3, 3, 3])), gini(np.array([0, 0, 9]))
    (0.0, 1.0)
    """
    n, total = len(shown), shown.sum()
    if n < 2 or not total:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(shown) / (total * (n - 1)))


def novelty(lists: NDArray[np.int64], buyers: NDArray[np.int64], users: int) -> float:
    """Mean self-information of what is shown, in bits: -log2 of the share of users who bought it (MIUF).

    lists: (U, k), -1 where shorter; buyers: (N,) distinct buyers, an item without any counts as one.

    >>> novelty(np.array([[0, 1]]), np.array([8, 2]), 8)  # (0 + 2) / 2
    1.0
    """
    rows = lists[lists >= 0]
    return float(-np.log2(np.maximum(buyers[rows], 1) / users).mean()) if len(rows) else 0.0


def inter_user_overlap(lists: NDArray[np.int64]) -> float:
    """The share of a list that another user's list has too, mean over all pairs of users: 1 = everybody sees the same.

    lists: (U, k) distinct rows within a list, -1 where shorter. Exact in O(U k): an item shown to c users is shared
    by c(c-1)/2 of the U(U-1)/2 pairs. 0 for a single user.

    >>> inter_user_overlap(np.array([[0, 1], [0, 2], [3, 4]]))  # one of three pairs shares one of two
    0.16666666666666666
    """
    users, k = lists.shape
    if users < 2:
        return 0.0
    shown = np.unique(lists[lists >= 0], return_counts=True)[1].astype(np.float64)
    return float(shown @ (shown - 1) / (k * users * (users - 1)))


# --- how sure ---------------------------------------------------------------------------------------------------------


def resample_means(values: NDArray[np.float64], rng: np.random.Generator, draws: int = 2000) -> NDArray[np.float64]:
    """Means over users of bootstrap resamples: (U, M) to (draws, M). Columns stay paired: the same users in all.

    So the ratio or difference of two columns is a paired comparison. 2,000 draws: the ends of a 95 % interval rest
    on 50 each. O(U draws M).

    >>> means = resample_means(np.array([[1.0, 2.0], [3.0, 6.0]]), np.random.default_rng(0), 100)
    >>> means.shape, bool((means[:, 1] == 2 * means[:, 0]).all())
    ((100, 2), True)
    """
    users = len(values)
    if not users:
        raise Misuse("no users to resample")
    times: NDArray[np.float64] = rng.multinomial(users, np.full(users, 1 / users), draws) / users
    return times @ values


def interval(samples: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of bootstrap samples: their percentiles.

    >>> interval(np.arange(101.0), 0.5)
    (25.0, 75.0)
    """
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
