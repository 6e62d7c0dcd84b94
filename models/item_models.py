"""Fits the item-item models of a release: EASE twice, and two ridge regressions from what users had to what came next.

Dense linear algebra over the items that most users bought, in closed form: no epochs, no seed. What they are for:
`recsys/item_models.py`. Called by training, and by evaluation at each origin.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack

from models.history import History
from recsys.catalogue import item_ref
from recsys.item_models import HALF_LIFE_S, ItemModel, ItemModels, weigh_lately
from recsys.signals import DAY_S

# Any purchase together; the same, the newer the more; bought in the month after; first bought in the month after.
NAMES = ("ease", "lately", "again", "fresh")
KEEP = 128  # heaviest weights of an item; with 64, new items lose 2 % of NDCG (Online Retail, 2011-08-05)
MIN_BUYERS = 3  # below that an item's row is noise
UNIT = 30  # λ of `ease` over that of `lately`, whose users have length 1 instead of √items; not searched
MONTH_S = 28 * DAY_S
# Months before the moment that the ridges learn from, with their weights: tastes of a year ago are another season's.
MONTHS = ((1, 1.0), (2, 0.7), (3, 0.5))


def fit_item_models(history: History, until_s: int, most: int, penalty: float) -> ItemModels:
    """All models of the purchases before a moment.

    most: items, those with most buyers. penalty: λ of every regression, > 0.
    O(most³): 1 s for 2,700 items, 15 s for 6,000, one core.
    """
    past = history.before(until_s).purchases()
    n, column_of = len(history.items), np.full(len(history.items), -1)
    pairs = np.unique(past.user.astype(np.int64) * n + past.item)
    buyers = np.bincount(pairs % n, minlength=n)
    order = np.argsort(-buyers, kind="stable")[:most]
    rows = np.sort(order[buyers[order] >= MIN_BUYERS])
    column_of[rows] = np.arange(len(rows))
    refs = np.array([item_ref(history.items[row].item) for row in rows.tolist()], np.uint64)
    if not len(rows):
        return ItemModels()

    def owned(events: History, weights: NDArray[np.float64] | None = None) -> sparse.csr_matrix:
        """(users, items) 1 where the user bought the item; with weights of the events, their sum."""
        columns = column_of[events.item]
        known = columns >= 0
        data = np.ones(known.sum(), np.float32) if weights is None else weights[known].astype(np.float32)
        found = sparse.csr_matrix((data, (events.user[known], columns[known])), (len(history.user_ids), len(rows)))
        found.sum_duplicates()
        if weights is None:
            found.data[:] = 1
        return found

    everything = owned(past)
    ease = _ease((everything.T @ everything).toarray(), penalty)
    recent = owned(past, 0.5 ** ((until_s - past.ts_s) / HALF_LIFE_S))
    for begin, end in zip(recent.indptr, recent.indptr[1:], strict=False):
        recent.data[begin:end] = weigh_lately(recent.data[begin:end])
    lately = _ease((recent.T @ recent).toarray(), penalty / UNIT)
    gram, again, fresh = (np.zeros((len(rows), len(rows)), np.float32) for _ in range(3))
    for back, weight in MONTHS:
        begin_s = until_s - back * MONTH_S
        had, bought = owned(past.before(begin_s)), owned(past.between(begin_s, begin_s + MONTH_S))
        active = np.flatnonzero(np.diff(bought.indptr))
        had, bought = had[active], bought[active]
        gram += weight * (had.T @ had).toarray()
        again += weight * (had.T @ bought).toarray()
        fresh += weight * (had.T @ (bought - bought.multiply(had))).toarray()
    gram[np.diag_indices_from(gram)] += penalty
    factor, _ = lapack.spotrf(gram, lower=True, overwrite_a=True)
    solved = [ease, lately, *(lapack.spotrs(factor, target, lower=True)[0] for target in (again, fresh))]
    return ItemModels(refs, {name: _keep_heaviest(matrix) for name, matrix in zip(NAMES, solved, strict=True)})


def _ease(gram: NDArray[np.float32], penalty: float) -> NDArray[np.float32]:
    """B = I - P / diag(P), P = (X'X + λI)^-1, zero diagonal (Steck 2019). Overwrites the Gram matrix.

    X'X + λI is positive definite, so neither factor nor inverse can fail.
    """
    gram[np.diag_indices_from(gram)] += penalty
    triangle, _ = lapack.spotri(lapack.spotrf(gram, lower=True, overwrite_a=True)[0], lower=True, overwrite_c=True)
    inverse = np.tril(triangle) + np.tril(triangle, -1).T
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return np.asarray(weights, np.float32)


def _keep_heaviest(weights: NDArray[np.float32]) -> ItemModel:
    """Of each row the KEEP weights that are largest in size, by column."""
    items = len(weights)
    keep = min(KEEP, items)
    columns = np.sort(np.argpartition(-np.abs(weights), keep - 1, axis=1)[:, :keep], axis=1)
    kept = np.take_along_axis(weights, columns, axis=1)
    return ItemModel(np.arange(items + 1, dtype=np.int64) * keep, columns.ravel().astype(np.int64), kept.ravel())
