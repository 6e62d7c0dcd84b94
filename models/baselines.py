"""What a recommender has to beat: popularity, habit, neighbours, and a linear item-item model.

Each is a function from an origin to scores (U, C), higher is better; `Scored` makes lists of them. Where a setting
matters, `FAMILIES` has several; evaluation chooses among them at an earlier moment.
Called by `models/evaluate.py`.
"""

from collections.abc import Callable, Mapping
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack

from models.origins import DAY_S, TASKS, WINDOW_S, Origin, Task, top_k

Score = Callable[[Origin], NDArray[np.float32]]
NEIGHBOURS = 200  # of each item; from 100 to 400 hardly a difference


class Scored:
    """A recommender that ranks the catalogue by scores, computed once a moment for both tasks."""

    def __init__(self, name: str, score: Score) -> None:
        self.name = name
        self._score = score
        self._last: tuple[Origin, NDArray[np.float32]] | None = None

    def rank(self, origin: Origin, task: Task, k: int) -> NDArray[np.int64]:
        """The k best, as `Recommender.rank`."""
        if self._last is None or self._last[0] is not origin:
            self._last = origin, self._score(origin)
        return top_k(self._last[1], origin, task, k)


def popularity(origin: Origin, window_s: int | None = None) -> NDArray[np.float32]:
    """The share of users who bought the item, ever or within the window before: the same list for everybody."""
    return np.tile(_share(origin, window_s), (len(origin.users), 1))


def own_frequency(origin: Origin, half_life_d: float) -> NDArray[np.float32]:
    """How often the user bought the item, an older purchase counting less.

    half_life_d > 0, infinite for plain counts. The share of recent buyers, below 1, is added: it breaks ties and fills
    the lists of users with few items, which makes the strongest form of this baseline.
    """
    age_d = (origin.at_s - origin.ts_s) / DAY_S
    weights = (0.5 ** (age_d / half_life_d)).astype(np.float32)
    own = sparse.csr_matrix((weights, (origin.user, origin.column)), origin.counts.shape)
    return np.asarray(own[origin.users].toarray() + _share(origin, WINDOW_S))


def item_neighbours(origin: Origin) -> NDArray[np.float32]:
    """Cosine of items as sets of buyers, buyers of many things counting less (tf-idf), summed over what the user has.

    Each candidate keeps its 200 nearest items and is no neighbour of its own.
    """
    bought = _binary(origin.counts)
    items_of_user = np.maximum(1, np.diff(bought.indptr))
    weighted = sparse.diags(np.log(bought.shape[1] / items_of_user).astype(np.float32)) @ bought
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=0)).ravel())
    unit = weighted @ sparse.diags(1 / np.maximum(length, 1e-9))
    similar = (unit.T @ unit).toarray().astype(np.float32)
    np.fill_diagonal(similar, 0)
    if len(similar) > NEIGHBOURS:
        bar = -np.partition(-similar, NEIGHBOURS - 1, axis=0)[NEIGHBOURS - 1]
        similar[similar < bar] = 0
    return np.asarray(bought[origin.users] @ similar)


def ease(origin: Origin, penalty: float) -> NDArray[np.float32]:
    """The linear item-item model with zero diagonal, in closed form: B = I - P / diag(P), P = (X'X + λI)^-1.

    Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data". penalty: λ > 0. O(C^3): 10 s for 6,000 items.
    """
    bought = _binary(origin.counts)
    gram = (bought.T @ bought).toarray()
    gram[np.diag_indices_from(gram)] += penalty
    # Cholesky, then the inverse from it in place: a third of the work of solving against an identity matrix. X'X + λI
    # is positive definite, so neither can fail.
    triangle, _ = lapack.spotri(lapack.spotrf(gram, lower=True, overwrite_a=True)[0], lower=True, overwrite_c=True)
    inverse = np.tril(triangle) + np.tril(triangle, -1).T
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return np.asarray(bought[origin.users] @ weights)


def _share(origin: Origin, window_s: int | None) -> NDArray[np.float32]:
    """(C,) share of the users who bought anything (within the window) who bought the item, below 1."""
    begin = 0 if window_s is None else int(np.searchsorted(origin.ts_s, origin.at_s - window_s))
    pairs = np.unique(origin.user[begin:].astype(np.int64) * len(origin.rows) + origin.column[begin:])
    buyers = np.bincount(pairs % len(origin.rows), minlength=len(origin.rows))
    return (buyers / (1 + len(np.unique(origin.user[begin:])))).astype(np.float32)


def _binary(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    binary = counts.copy()
    binary.data[:] = 1
    return binary


class Family(msgspec.Struct, frozen=True):
    """One kind of model. settings: how it is named in the table -> the scores; tasks: what it can be asked."""

    name: str
    settings: Mapping[str, Score]
    tasks: tuple[Task, ...] = TASKS


# The grids hold what was best on two data sets (gifts, groceries) and a neighbour on either side, where that is worse.
FAMILIES = (
    Family("popularity", {"": popularity}),
    Family("recent popularity", {"": partial(popularity, window_s=WINDOW_S)}),
    Family(
        "own frequency",
        {f"{days} d": partial(own_frequency, half_life_d=days) for days in (30, 60, 120)}
        | {"no decay": partial(own_frequency, half_life_d=np.inf)},
        ("all",),
    ),
    Family("item-kNN", {"": item_neighbours}),
    Family("EASE", {f"λ {penalty}": partial(ease, penalty=penalty) for penalty in (300, 1000)}),
)
