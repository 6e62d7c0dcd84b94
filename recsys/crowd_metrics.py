"""How different users' lists are from each other, and how much of the catalogue is seen at all.

Lists are rows of items, (U, k), -1 where a list is shorter. Lists that are varied each can all be the same list: no
figure of `list_metrics.py` sees that, these do. Called by `models/judging.py` and by the demo's summary.
"""

import numpy as np
from numpy.typing import NDArray

# --- what is shown at all ---------------------------------------------------------------------------------------------


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


def effective_catalogue(shown: NDArray[np.int64]) -> float:
    """How many items the showings are spread over in effect: exp of their Shannon entropy. shown: (N,); 0 for none.

    >>> round(effective_catalogue(np.array([5, 5, 5, 0])), 4)
    3.0
    """
    return float(np.exp(_entropy(shown.astype(np.float64)))) if shown.sum() else 0.0


def tail_share(shown: NDArray[np.int64], buyers: NDArray[np.int64], head: float = 0.2) -> float:
    """The share of showings that go to items outside the most bought fifth (`head`) of the catalogue; ties by row.

    shown, buyers: (N,), of the catalogue's items. (Others cut where the head has a share of the purchases.)

    >>> tail_share(np.array([6, 2, 1, 1, 0]), np.array([90, 5, 4, 3, 2]))
    0.4
    """
    popular = np.argsort(-buyers, kind="stable")[: round(head * len(buyers))]
    return float(1 - shown[popular].sum() / shown.sum()) if shown.sum() else 0.0


def novelty(lists: NDArray[np.int64], buyers: NDArray[np.int64], users: int) -> float:
    """Mean self-information of what is shown, in bits: -log2 of the share of users who bought it (MIUF).

    lists: (U, k), -1 where shorter; buyers: (N,) distinct buyers, an item without any counts as one.

    >>> novelty(np.array([[0, 1]]), np.array([8, 2]), 8)  # (0 + 2) / 2
    1.0
    """
    rows = lists[lists >= 0]
    return float(-np.log2(np.maximum(buyers[rows], 1) / users).mean()) if len(rows) else 0.0


def popularity_complement(lists: NDArray[np.int64], buyers: NDArray[np.int64], users: int) -> float:
    """EPC without discount: the mean over what is shown of 1 - the share of users who bought it. Vargas & Castells 2011.

    lists: (U, k), -1 where shorter; buyers: (N,) distinct buyers.

    >>> popularity_complement(np.array([[0, 1]]), np.array([8, 2]), 8)  # (0 + 3/4) / 2
    0.375
    """
    rows = lists[lists >= 0]
    return float(1 - (buyers[rows] / users).mean()) if len(rows) else 0.0


# --- who sees the same ------------------------------------------------------------------------------------------------


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


def user_item_information(lists: NDArray[np.int64]) -> float:
    """What the list tells of the user, in nats: I(user; item) = H(mean list) - mean H(list), lists as even shares.

    (U, k) distinct rows within a list, -1 where shorter; an empty list does not count. 0 = all lists are one list, at
    most log U: no item on two lists.

    >>> user_item_information(np.array([[0, 1], [0, 1]])), round(user_item_information(np.array([[0], [1]])), 4)
    (0.0, 0.6931)
    """
    whole, own = _entropies(lists)
    return max(whole - own, 0.0)


def homogenisation(lists: NDArray[np.int64]) -> float:
    """1 - I(user; item) / H(item): 1 = everybody sees the same; for lists of k with nothing in common log k / log(U k).

    So figures are comparable only at the same U and k. Overlap asks pairs of users, this the whole crowd: many small
    groups that each see one list have little overlap but tell little of the user.

    >>> homogenisation(np.array([[0, 1], [0, 1]])), round(homogenisation(np.array([[0, 1], [2, 3]])), 4)
    (1.0, 0.5)
    """
    whole, own = _entropies(lists)
    return min(own / whole, 1.0) if whole > 0 else 1.0


def _entropies(lists: NDArray[np.int64]) -> tuple[float, float]:
    """Of the mean of all lists, and the mean of each list's."""
    sizes = (lists >= 0).sum(axis=1)
    kept, sizes = lists[sizes > 0], sizes[sizes > 0]
    if not len(kept):
        return 0.0, 0.0
    weights = np.where(kept >= 0, 1 / sizes[:, None], 0.0)
    shares = np.bincount(np.where(kept >= 0, kept, 0).ravel(), weights.ravel())
    return _entropy(shares.astype(np.float64)), float(np.log(sizes).mean())


def _entropy(amounts: NDArray[np.float64]) -> float:
    """Shannon's, in nats, of amounts that need not sum to 1."""
    share = amounts[amounts > 0] / amounts.sum()
    return float(-(share * np.log(share)).sum())
