"""Whether lists are right, and how sure one may be of it. How varied they are: `list_metrics.py`, `crowd_metrics.py`.

A list is items best first (any hashable or row numbers); a truth is what the user then took. Averages over users are
the caller's. Where definitions differ between libraries, the docstring says which one this is; tests compare with ranx
and ir_measures. Called by `models/judging.py`, by training, by benchmarks and by the demo's summary.
"""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from recsys.errors import Misuse

Ranked = Sequence[Hashable]
Truth = Collection[Hashable]  # a set is fastest
Subtopics = Mapping[str, Collection[Hashable]]  # of each relevant item, what it is about

# --- right: one list against one truth, in [0, 1] ---------------------------------------------------------------------


def ndcg_at_k(ranked: Ranked, truth: Truth, k: int) -> float:
    """Discounted gain over that of the best possible list, which has min(k, |truth|) hits. Järvelin & Kekäläinen 2002.

    >>> round(ndcg_at_k(["a", "x", "b"], {"a", "b", "c"}, 3), 4)  # (1 + 1/2) / (1 + 1/log2(3) + 1/2)
    0.7039
    """
    gain = 1 / np.log2(np.arange(2, k + 2))
    hits = _hits(ranked, truth, k)
    return float(gain[: len(hits)][hits].sum() / gain[: len(truth)].sum())


def precision_at_k(ranked: Ranked, truth: Truth, k: int) -> float:
    """The share of the k places that are right; a list shorter than k still counts as k.

    >>> precision_at_k(["a", "x"], {"a", "b"}, 4)
    0.25
    """
    return float(_hits(ranked, truth, k).sum() / k)


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


def reciprocal_rank_at_k(ranked: Ranked, truth: Truth, k: int) -> float:
    """1 / the place of the first hit, 0 without one; its mean over users is the MRR.

    >>> reciprocal_rank_at_k(["x", "a", "b"], {"a", "b"}, 3)
    0.5
    """
    places = np.flatnonzero(_hits(ranked, truth, k))
    return float(1 / (places[0] + 1)) if len(places) else 0.0


# --- right for several wishes at once: an item is about subtopics (a basket's categories, a search's meanings) ---------


def subtopic_recall(ranked: Sequence[str], subtopics: Subtopics, k: int) -> float:
    """The share of all subtopics that the list's relevant items are about. S-recall, Zhai, Cohen & Lafferty 2003.

    subtopics: of every relevant item; an item without any is not relevant. Raises Misuse where there are none.

    >>> subtopic_recall(["a", "x", "b"], {"a": {1, 2}, "b": {1}, "c": {3, 4}}, 3)
    0.5
    """
    relevant = {item for item, about in subtopics.items() if about}
    top = np.flatnonzero(_hits(ranked, relevant, k)).tolist()
    everything = {topic for about in subtopics.values() for topic in about}
    return len({topic for place in top for topic in subtopics[ranked[place]]}) / len(everything)


def alpha_ndcg(ranked: Sequence[str], subtopics: Subtopics, k: int, alpha: float = 0.5) -> float:
    """Discounted gain where a subtopic is worth 1 - α less each time, over a greedy ideal. Clarke et al. 2008.

    Gain of an item: Σ over its subtopics of (1-α)^(times above). The best list is NP-hard to find; the greedy one, equal
    gains by descending id, is what pyndeval divides by (another order differs by up to .01). O(k · relevant items).

    >>> round(alpha_ndcg(["a", "b"], {"a": {1}, "b": {1}, "c": {2}}, 2), 4)  # (1 + .5/log2(3)) / (1 + 1/log2(3))
    0.8066
    """
    relevant = {item: about for item, about in subtopics.items() if about}
    _hits(ranked, relevant, k)  # refuses what cannot be judged
    seen: dict[Hashable, int] = {}
    gained = _alpha_gain([relevant.get(item, ()) for item in ranked[:k]], alpha)
    ideal: list[Collection[Hashable]] = []
    left = dict(relevant)
    while left and len(ideal) < k:
        best = max(left, key=lambda item: (_worth(left[item], seen, alpha), item))
        ideal.append(left.pop(best))
        for topic in ideal[-1]:
            seen[topic] = seen.get(topic, 0) + 1
    return gained / _alpha_gain(ideal, alpha)


def _alpha_gain(abouts: Sequence[Collection[Hashable]], alpha: float) -> float:
    """The discounted gain of items in an order, by what they are about."""
    seen: dict[Hashable, int] = {}
    total = 0.0
    for place, about in enumerate(abouts):
        total += _worth(about, seen, alpha) / math.log2(place + 2)
        for topic in about:
            seen[topic] = seen.get(topic, 0) + 1
    return total


def _worth(about: Collection[Hashable], seen: Mapping[Hashable, int], alpha: float) -> float:
    """Exact whatever the order of the topics, so that equal gains are equal."""
    return math.fsum((1 - alpha) ** seen.get(topic, 0) for topic in about)


def _hits(ranked: Ranked, truth: Truth, k: int) -> NDArray[np.bool_]:
    """Which of the first k places are right. Raises Misuse where every figure would mean nothing."""
    top = list(ranked[:k])
    if k < 1 or not len(truth) or len(set(top)) < len(top):
        raise Misuse("a list is judged at k ≥ 1 by a truth that is not empty, and offers nothing twice")
    return np.fromiter((item in truth for item in top), np.bool_, len(top))


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
