"""What a scorer is worth on training lists it has not seen: accuracy of both heads, and how alike its lists are.

Within each list's candidates and without policy, so only scorers of one world compare; what a shop gets is for
evaluate.py to say. Called by training, after each fit and while it goes on.
"""

from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.examples import Lists
from recsys.catalogue import Catalogue
from recsys.crowd_metrics import coverage, exposure, inter_user_overlap
from recsys.features import NAMES
from recsys.list_metrics import literal_losses, mean_distance, path_distances, redundancy
from recsys.metrics import average_precision_at_k, f1_at_k, ndcg_at_k
from recsys.scoring import HEADS

K = 10
CLICK = HEADS.index("click")


class Worth(msgspec.Struct, frozen=True, kw_only=True):
    """Means over lists, at K. Accuracy of what is bought next (_new: of that, what was never bought before; _click: of what
    is clicked next, None where nothing is or no head says).

    distance: of a list's items by category; overlap: of two users' lists; coverage: share of all candidates' items that is
    shown; l_acc, l_disp: the two losses counted literally (recsys/list_metrics.py), less is better.
    """

    ndcg_at_10: float
    ndcg_at_10_new: float
    f1_at_10: float
    map_at_10: float
    distance: float
    overlap: float
    coverage: float
    l_acc: float
    l_disp: float
    ndcg_at_10_click: float | None = None


def judge_scores(
    scores: Mapping[str, NDArray[np.float32]], lists: Lists, vectors: NDArray[np.float32], catalogue: Catalogue
) -> dict[str, Worth]:
    """Each scorer's worth. scores: (N, H) by name, a row a candidate; vectors: (M, D) unit rows of the catalogue."""
    return {name: _judge(of, lists, vectors, catalogue) for name, of in scores.items()}


def before(lists: Lists) -> NDArray[np.float32]:
    """What ranked before anything was learned, as scores (N, 2): own frequency; of new items, how many bought them."""
    return lists.features[:, [NAMES.index("own_120d"), NAMES.index("buyers")]]


def mean_ndcg(scores: NDArray[np.float32], lists: Lists) -> float:
    """Mean of both purchase heads' NDCG: what early stopping goes by. 50 ms for 1,000 lists."""
    return (_mean_ndcg(scores, lists, 0) + _mean_ndcg(scores, lists, 1)) / 2


def ndcgs(scores: NDArray[np.float32], lists: Lists, head: int) -> NDArray[np.float64]:
    """Each list's NDCG by a head, (L,); NaN where nothing of its kind was bought, or clicked."""
    tops = _tops(scores, lists, head)
    return np.array([ndcg_at_k(rows.tolist(), truth, K) if truth else np.nan for rows, truth in tops])


def _judge(scores: NDArray[np.float32], lists: Lists, vectors: NDArray[np.float32], catalogue: Catalogue) -> Worth:
    found: dict[str, list[float]] = {"f1_at_10": [], "map_at_10": [], "distance": []}
    tops, truths, alike = [], [], []
    for rows, truth in _tops(scores, lists, 0):
        if not truth:
            continue
        ranked = rows.tolist()
        found["f1_at_10"].append(f1_at_k(ranked, truth, K))
        found["map_at_10"].append(average_precision_at_k(ranked, truth, K))
        found["distance"].append(mean_distance(path_distances(catalogue.category[rows])))
        tops.append(ranked)
        truths.append(truth)
        alike.append(redundancy(vectors[rows]) if vectors.shape[1] else np.zeros(len(rows)))
    shown = np.full((len(tops), K), -1, np.int64)
    for at, ranked in enumerate(tops):
        shown[at, : len(ranked)] = ranked
    l_acc, l_disp = literal_losses(tops, truths, alike)
    offered = np.unique(lists.rows)
    figures = {name: float(np.mean(values)) for name, values in found.items()} | {
        "ndcg_at_10": _mean_ndcg(scores, lists, 0),
        "ndcg_at_10_new": _mean_ndcg(scores, lists, 1),
        "overlap": inter_user_overlap(shown) if len(tops) > 1 else 0.0,
        "coverage": coverage(exposure(shown, len(vectors))[offered]),
        "l_acc": l_acc,
        "l_disp": l_disp,
    }
    if scores.shape[1] > CLICK and lists.clicked.any():
        figures["ndcg_at_10_click"] = _mean_ndcg(scores, lists, CLICK)
    return Worth(**{name: round(value, 4) for name, value in figures.items()})


def _mean_ndcg(scores: NDArray[np.float32], lists: Lists, head: int) -> float:
    """0 where nobody bought anything of the kind."""
    each = ndcgs(scores, lists, head)
    return float(np.nanmean(each)) if np.isfinite(each).any() else 0.0


def _tops(scores: NDArray[np.float32], lists: Lists, head: int) -> Iterator[tuple[NDArray[np.int64], set[int]]]:
    """Each list's K best rows by a head, ties in their order, and what was bought of it, of what was never bought, or
    clicked.
    """
    wanted = lists.clicked if head == CLICK else lists.bought
    for start, end in zip([0, *lists.ends[:-1].tolist()], lists.ends.tolist(), strict=True):
        of = np.arange(start, end)
        if head == HEADS.index("new"):
            of = of[~lists.seen[start:end]]
        truth = set(lists.rows[of[wanted[of]]].tolist())
        yield lists.rows[of[np.argsort(-scores[of, head], kind="stable")[:K]]], truth
