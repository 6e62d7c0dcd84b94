"""What lists were worth at past moments: accuracy per model, variety per model, the same of real baskets.

Called by `models/evaluate.py`, which asks for the lists. The figures themselves: `recsys/metrics.py`,
`list_metrics.py` and `crowd_metrics.py` there.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.history import History
from models.origins import MIN_ITEMS, Origin, Task, Truth
from recsys.catalogue import Catalogue
from recsys.crowd_metrics import (
    coverage,
    effective_catalogue,
    exposure,
    gini,
    homogenisation,
    inter_user_overlap,
    novelty,
    tail_share,
)
from recsys.list_metrics import (
    calibration_kl,
    category_entropy,
    mean_distance,
    min_distance,
    path_distances,
    vector_distances,
)
from recsys.metrics import (
    average_precision_at_k,
    f1_at_k,
    hit_at_k,
    interval,
    ndcg_at_k,
    recall_at_k,
    resample_means,
)

K = 10
LEVEL = 1  # of the category path, for entropy and calibration: below the department, above the shelf
BASKETS = "real baskets"
BANDS = (
    (0, 0),
    (1, MIN_ITEMS - 1),
    (MIN_ITEMS, 19),
    (20, 99),
    (100, np.inf),
)  # distinct items; below 5 in no other figure
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
    """How varied the lists are within (distances, entropy), towards the user (calibration), over time, between users.

    category_low, category_high: between them four of five lists have their category_distance.
    Distances of text are None where no vectors were given, temporal_diversity where nobody made earlier lists.
    """

    category_distance: float
    category_low: float
    category_high: float
    category_minimum: float
    category_entropy: float
    text_distance: float | None = None
    text_minimum: float | None = None
    calibration_kl: float
    novelty: float
    coverage: float
    gini: float
    overlap: float
    homogenisation: float
    effective_catalogue: float
    tail_share: float
    temporal_diversity: float | None = None


class Band(msgspec.Struct, frozen=True):
    """Ours and the best baseline for users who know so many distinct items of the catalogue. users: of all origins.

    best: the baseline that is best for these users. ratio: None where it finds nothing.
    """

    task: Task
    items: str
    users: int
    ndcg: float
    best: str
    ndcg_best: float
    ratio: float | None
    ratio_95: Interval | None


class Lists(msgspec.Struct, frozen=True):
    """What one model answered at one task, per origin.

    lists: (S, U, k) rows of items, -1 padded, for S seeds and all of Origin.users; places: of them, those whom figures
    speak of.
    """

    task: Task
    model: str
    setting: str
    lists: list[NDArray[np.int64]]
    places: list[list[int]]


def regulars(origin: Origin, truth: Truth, task: Task) -> list[int]:
    """The places of users with something to find who know enough for a taste."""
    return [place for place in truth.places(task) if origin.known[place] >= MIN_ITEMS]


def judge_accuracy(
    rows: Sequence[Lists], moments: Sequence[Moment], rng: np.random.Generator
) -> tuple[list[Accuracy], NDArray[np.float64]]:
    """Each model's accuracy, and (draws, models) NDCG of resampled users: the same users for all models in a draw."""
    means, draws = [], []
    for at, (_, truth) in enumerate(moments):
        figures = np.array([_figures(row.lists[at], truth, row.task, row.places[at]) for row in rows])
        means.append(figures.mean(axis=1))
        draws.append(resample_means(figures[:, :, 0].T, rng))
    drawn = np.mean(draws, axis=0)
    mean = np.mean(means, axis=0)
    accuracies = [Accuracy(ndcg, interval(drawn[:, model]), *rest) for model, (ndcg, *rest) in enumerate(mean.tolist())]
    return accuracies, drawn


def paired_ratio(
    accuracies: Sequence[Accuracy], draws: NDArray[np.float64], at: int, to: int
) -> tuple[float, Interval] | tuple[None, None]:
    """NDCG of one model over that of another; paired, since a draw has the same users for both."""
    if not accuracies[to].ndcg:
        return None, None
    drawn = draws[draws[:, to] > 0]  # a draw in which the other hits nothing has no ratio
    return accuracies[at].ndcg / accuracies[to].ndcg, interval(drawn[:, at] / drawn[:, to])


def judge_bands(
    ours: Lists, baselines: Sequence[Lists], moments: Sequence[Moment], rng: np.random.Generator
) -> list[Band]:
    """Ours against the best baseline by what is known of a user; means over users, then over origins that have some."""
    found = []
    for low, high in BANDS:
        means, draws, users = [], [], 0
        for at, (origin, truth) in enumerate(moments):
            of_band = (origin.known >= low) & (origin.known <= high)
            places = [place for place in truth.places(ours.task) if of_band[place]]
            if places:
                figures = [_figures(row.lists[at], truth, row.task, places)[:, 0] for row in (*baselines, ours)]
                means.append(np.mean(figures, axis=1))
                draws.append(resample_means(np.array(figures).T, rng))
                users += len(places)
        if users:
            (*of_baselines, ndcg), drawn = np.mean(means, axis=0).tolist(), np.mean(draws, axis=0)
            best = int(np.argmax(of_baselines))
            drawn = drawn[drawn[:, best] > 0]
            ratio, ends = None, None
            if of_baselines[best]:
                ratio, ends = ndcg / of_baselines[best], interval(drawn[:, -1] / drawn[:, best])
            name = f"{low}+" if high == np.inf else f"{low}–{high}" if high > low else f"{low}"
            model, ndcg_best = baselines[best].model, of_baselines[best]
            found.append(Band(ours.task, name, users, ndcg, model, ndcg_best, ratio, ends))
    return found


def _figures(lists: NDArray[np.int64], truth: Truth, task: Task, places: Sequence[int]) -> NDArray[np.float64]:
    """(places, figures in the order of Accuracy, without the interval): means over the seeds of lists (S, U, k)."""
    metrics = (ndcg_at_k, recall_at_k, average_precision_at_k, f1_at_k, hit_at_k)
    found = np.zeros((len(places), len(metrics)))
    for ranked in lists[:, list(places)]:
        for at, (row, place) in enumerate(zip(ranked.tolist(), places, strict=True)):
            shown = [item for item in row if item >= 0]
            found[at] += [metric(shown, truth.of(task)[place], K) for metric in metrics]
    return found / len(lists)


def sum_ndcg(answer: Lists, truth: Truth) -> float:
    """NDCG at the first moment, summed over users: enough to choose a setting by."""
    return float(_figures(answer.lists[0], truth, answer.task, answer.places[0])[:, 0].sum())


def draw_baskets(task: Task, moments: Sequence[Moment], rng: np.random.Generator) -> Lists | None:
    """Ten items, drawn at random, of each real basket that has ten; None if a moment has not two such baskets."""
    answer = Lists(task, BASKETS, f"{K} items of larger ones", [], [])
    for origin, truth in moments:
        large = [place for place, items in enumerate(truth.of(task)) if len(items) >= K]
        large = [place for place in large if origin.known[place] >= MIN_ITEMS]
        if len(large) < 2:  # overlap is between users
            return None
        drawn = np.full((1, len(origin.users), K), -1)
        for place in large:
            drawn[0, place] = rng.permutation(sorted(truth.of(task)[place]))[:K]
        answer.lists.append(drawn)
        answer.places.append(large)
    return answer


class Shop:
    """What variety is measured by: category paths, text vectors."""

    def __init__(self, history: History, vectors: NDArray[np.float32] | None) -> None:
        self._paths = Catalogue(history.items).category[: len(history.items)]
        self._codes = np.unique(self._paths[:, LEVEL], return_inverse=True)[1]
        self._vectors = vectors

    def variety(self, answer: Lists, moments: Sequence[Moment]) -> Variety:
        """Means over lists, then over seeds and origins."""
        at_each = [
            self._at(lists[places], places, origin)
            for of_seeds, places, (origin, _) in zip(answer.lists, answer.places, moments, strict=True)
            for lists in of_seeds
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
        low, high = np.quantile(each["category_distance"], [0.1, 0.9])
        return {name: float(np.mean(values)) for name, values in each.items()} | {
            "category_low": float(low),
            "category_high": float(high),
            "novelty": novelty(lists, buyers, shoppers),
            "coverage": coverage(counts[origin.rows]),
            "gini": gini(counts[origin.rows]),
            "overlap": inter_user_overlap(lists),
            "homogenisation": homogenisation(lists),
            "effective_catalogue": effective_catalogue(counts),
            "tail_share": tail_share(counts[origin.rows], buyers[origin.rows]),
        }
