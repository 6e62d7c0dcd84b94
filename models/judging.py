"""What lists were worth at past moments: accuracy per model, variety per model, the same of real baskets.

Called by `models/evaluate.py`, which asks for the lists. The figures themselves: `recsys/metrics.py`.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.history import History
from models.origins import MIN_ITEMS, Origin, Task, Truth
from recsys.catalogue import Catalogue
from recsys.metrics import (
    average_precision_at_k,
    calibration_kl,
    category_entropy,
    coverage,
    exposure,
    f1_at_k,
    gini,
    hit_at_k,
    inter_user_overlap,
    interval,
    mean_distance,
    min_distance,
    ndcg_at_k,
    novelty,
    path_distances,
    recall_at_k,
    resample_means,
    vector_distances,
)

K = 10
LEVEL = 1  # of the category path, for entropy and calibration: below the department, above the shelf
BASKETS = "real baskets"
BANDS = ((MIN_ITEMS, 19), (20, 99), (100, np.inf))  # distinct items; who knows fewer is not asked
Interval = tuple[float, float]  # 95 %
Moment = tuple[Origin, Truth]


class Accuracy(msgspec.Struct, frozen=True):
    """Means over users, then over origins."""

    ndcg: float
    ndcg_95: Interval
    recall: float
    average_precision: float
    f1: float
    hit_rate: float


class Variety(msgspec.Struct, frozen=True, kw_only=True):
    """How varied the lists are within (distances, entropy), towards the user (calibration) and between users.

    Distances of text are None where no vectors were given.
    """

    category_distance: float
    category_minimum: float
    category_entropy: float
    text_distance: float | None = None
    text_minimum: float | None = None
    calibration_kl: float
    novelty: float
    coverage: float
    gini: float
    overlap: float


class Band(msgspec.Struct, frozen=True):
    """Ours and the best baseline for users who know so many distinct items of the catalogue. users: of all origins.

    ratio: None where the baseline finds nothing.
    """

    task: Task
    items: str
    users: int
    ndcg: float
    ndcg_best: float
    ratio: float | None
    ratio_95: Interval | None


class Lists(msgspec.Struct, frozen=True):
    """What one model answered at one task, per origin.

    lists: (P, k) rows of items, -1 padded; places: the P users with something to find, as places in Origin.users.
    """

    task: Task
    model: str
    setting: str
    lists: list[NDArray[np.int64]]
    places: list[list[int]]


def judge_accuracy(
    rows: Sequence[Lists], task: Task, moments: Sequence[Moment], rng: np.random.Generator
) -> tuple[list[Accuracy], NDArray[np.float64]]:
    """Each model's accuracy, and (draws, models) NDCG of resampled users: the same users for all models in a draw."""
    means, draws = [], []
    for at, (_, truth) in enumerate(moments):
        hidden = _hidden(truth, task)
        figures = np.array([[_figures(*pair) for pair in zip(r.lists[at].tolist(), hidden, strict=True)] for r in rows])
        means.append(figures.mean(axis=1))
        draws.append(resample_means(figures[:, :, 0].T, rng))
    drawn = np.mean(draws, axis=0)
    mean = np.mean(means, axis=0)
    accuracies = [Accuracy(ndcg, interval(drawn[:, model]), *rest) for model, (ndcg, *rest) in enumerate(mean.tolist())]
    return accuracies, drawn


def judge_bands(ours: Lists, best: Lists, moments: Sequence[Moment], rng: np.random.Generator) -> list[Band]:
    """Ours against the best baseline by what is known of a user; means over users, then over origins that have some."""
    found = []
    for low, high in BANDS:
        means, draws, users = [], [], 0
        for at, (origin, truth) in enumerate(moments):
            known = origin.seen[ours.places[at]].sum(axis=1)
            chosen = np.flatnonzero((known >= low) & (known <= high)).tolist()
            if chosen:
                hidden, pair = _hidden(truth, ours.task), (ours.lists[at], best.lists[at])
                figures = np.array([[_figures(of[n].tolist(), hidden[n])[0] for of in pair] for n in chosen])
                means.append(figures.mean(axis=0))
                draws.append(resample_means(figures, rng))
                users += len(chosen)
        if users:
            (ndcg, ndcg_best), drawn = np.mean(means, axis=0).tolist(), np.mean(draws, axis=0)
            drawn = drawn[drawn[:, 1] > 0]
            ratio, ends = (ndcg / ndcg_best, interval(drawn[:, 0] / drawn[:, 1])) if ndcg_best else (None, None)
            name = f"{low}–{high}" if np.isfinite(high) else f"{low}+"
            found.append(Band(ours.task, name, users, ndcg, ndcg_best, ratio, ends))
    return found


def _figures(ranked: list[int], truth: set[int]) -> tuple[float, ...]:
    """One user's figures, in the order of Accuracy, without the interval."""
    shown = [row for row in ranked if row >= 0]
    metrics = (ndcg_at_k, recall_at_k, average_precision_at_k, f1_at_k, hit_at_k)
    return tuple(metric(shown, truth, K) for metric in metrics)


def sum_ndcg(answer: Lists, truth: Truth) -> float:
    """NDCG at the first moment, summed over users: enough to choose a setting by."""
    return sum(_figures(*pair)[0] for pair in zip(answer.lists[0].tolist(), _hidden(truth, answer.task), strict=True))


def _hidden(truth: Truth, task: Task) -> list[set[int]]:
    return [items for items in truth.of(task) if items]


def draw_baskets(task: Task, moments: Sequence[Moment], rng: np.random.Generator) -> Lists | None:
    """Ten items, drawn at random, of each real basket that has ten; None if a moment has not two such baskets."""
    answer = Lists(task, BASKETS, f"{K} items of larger ones", [], [])
    for _, truth in moments:
        large = [place for place, items in enumerate(truth.of(task)) if len(items) >= K]
        if len(large) < 2:  # overlap is between users
            return None
        answer.lists.append(np.array([rng.permutation(sorted(truth.of(task)[place]))[:K] for place in large]))
        answer.places.append(large)
    return answer


class Shop:
    """What variety is measured by: category paths, text vectors."""

    def __init__(self, history: History, vectors: NDArray[np.float32] | None) -> None:
        self._paths = Catalogue(history.items).category[: len(history.items)]
        self._codes = np.unique(self._paths[:, LEVEL], return_inverse=True)[1]
        self._vectors = vectors

    def variety(self, answer: Lists, moments: Sequence[Moment]) -> Variety:
        """Means over lists, then over origins."""
        at_each = [
            self._at(lists, places, origin)
            for lists, places, (origin, _) in zip(answer.lists, answer.places, moments, strict=True)
        ]
        return Variety(**{name: float(np.mean([one[name] for one in at_each])) for name in at_each[0]})

    def _at(self, lists: NDArray[np.int64], places: list[int], origin: Origin) -> dict[str, float]:
        """The figures of one origin's lists, by their names in Variety."""
        kinds = int(self._codes.max()) + 1
        each: dict[str, list[float]] = {}
        for ranked, place in zip(lists, places, strict=True):
            rows = ranked[ranked >= 0]
            by_path = path_distances(self._paths[rows])
            figures = {
                "category_distance": mean_distance(by_path),
                "category_minimum": min_distance(by_path),
                "category_entropy": category_entropy(self._codes[rows]),
            }
            if self._vectors is not None:
                by_text = vector_distances(self._vectors[rows])
                figures |= {"text_distance": mean_distance(by_text), "text_minimum": min_distance(by_text)}
            past = np.bincount(self._codes[origin.rows[origin.seen[place]]], minlength=kinds)
            shown = np.bincount(self._codes[rows], minlength=kinds)
            figures["calibration_kl"] = calibration_kl(past / past.sum(), shown / max(1, shown.sum()))
            for name, value in figures.items():
                each.setdefault(name, []).append(value)
        counts = exposure(lists, len(self._codes))
        buyers = np.zeros(len(self._codes), np.int64)
        buyers[origin.rows] = np.diff(origin.counts.tocsc().indptr)
        shoppers = int((np.diff(origin.counts.indptr) > 0).sum())
        return {name: float(np.mean(values)) for name, values in each.items()} | {
            "novelty": novelty(lists, buyers, shoppers),
            "coverage": coverage(counts[origin.rows]),
            "gini": gini(counts[origin.rows]),
            "overlap": inter_user_overlap(lists),
        }
