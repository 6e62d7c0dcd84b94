"""`slatecast evaluate`: ours against what it has to beat, on real purchases, at moments in the past.

Strict and global in time: at each origin every model sees events before it and nothing else, ranks the whole catalogue
(no sampled negatives), and is judged by the next session. Baselines choose their settings at a moment whose window ends
before the first origin; the best baseline that ours is compared with is the best on the origins themselves, which
favours the baseline. Accuracy never stands without variety beside it, nor variety without that of real baskets.
What a moment is: `models/origins.py`. What the figures mean: `recsys/*metrics.py`. Called by the command line.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.baselines import FAMILIES, Family, Scored
from models.history import History
from models.judging import (
    BASKETS,
    Accuracy,
    Band,
    Interval,
    K,
    Lists,
    Moment,
    Shop,
    Variety,
    draw_baskets,
    judge_accuracy,
    judge_bands,
    paired_ratio,
    regulars,
    sum_ndcg,
)
from models.origins import MIN_BUYERS, TASKS, WINDOW_S, Origin, Recommender, Task, make_origin, nobody_to_ask
from recsys.errors import Misuse

Step = Callable[[str, int, int], None]  # (what, done, of)


class Line(msgspec.Struct, frozen=True):
    """One model at one task. Real baskets have no accuracy: they are what is to be found.

    ratio: NDCG over that of the task's best baseline, with a paired 95 % interval; None where that finds nothing.
    """

    task: Task
    model: str
    setting: str
    accuracy: Accuracy | None
    variety: Variety
    ratio: float | None = None
    ratio_95: Interval | None = None


class Asked(msgspec.Struct, frozen=True):
    """One origin: its day, the catalogue's size, users with something to find who know MIN_ITEMS of it."""

    day: str
    items: int
    users_new: int
    users_all: int


class Variant(msgspec.Struct, frozen=True):
    """NDCG of another setting of ours over that of the first, the same users, with a paired 95 % interval."""

    task: Task
    setting: str
    ratio: float | None
    ratio_95: Interval | None


class Evaluation(msgspec.Struct, frozen=True):
    """The table and what it comes to. Ratios are None where ours was not judged.

    ratio_*: NDCG of ours over that of the best baseline of the task, with a paired 95 % interval.
    overlap_ratio: overlap between users, ours over EASE's, the larger of both tasks. bands: both by what a user knows.
    """

    source: str
    k: int
    min_buyers: int
    tuned_at: str | None  # the day at which baselines chose their settings; None: too early, they took the first
    origins: list[Asked]
    table: list[Line]
    best_new: str
    best_all: str
    ratio_new: float | None = None
    ratio_new_95: Interval | None = None
    ratio_all: float | None = None
    ratio_all_95: Interval | None = None
    overlap_ratio: float | None = None
    bands: list[Band] = []
    variants: list[Variant] = []


def evaluate(
    history: History,
    source: str,
    origins_s: Sequence[int],
    ours: Mapping[str, Recommender] | None = None,
    min_buyers: int = MIN_BUYERS,
    vectors: NDArray[np.float32] | None = None,
    seed: int = 0,
    step: Step = lambda what, done, of: None,
) -> Evaluation:
    """Judge the baselines, and ours if given, at every origin.

    origins_s: unix seconds, ascending. ours: by setting; the first is what ratios and bands speak of, others are variants
    of it. vectors: (items, D) unit rows for text distances. seed: of the bootstrap and of the items drawn from larger
    baskets. Raises Misuse where an origin has nobody to ask.
    20 s for 260,000 events and 2,700 items, 2 min for 1.4 million and 6,000, without ours.
    """
    moments = []
    for done, at_s in enumerate(origins_s):
        origin, truth = make_origin(history, at_s, min_buyers, min_items=0)
        if not regulars(origin, truth, "new"):  # newcomers only
            raise nobody_to_ask(at_s, len(origin.rows), min_buyers)
        moments.append((origin, truth))
        step("origins", done + 1, len(origins_s))
    tuning = _earlier(history, origins_s[0] - WINDOW_S, min_buyers)
    answers: list[Lists] = []
    for done, family in enumerate(FAMILIES):
        answers += _ask_family(family, tuning, moments)
        step("baselines", done + 1, len(FAMILIES))
    ours = ours or {}
    answers += _ask(ours, TASKS, moments, lambda done: step("asking ours", done, len(moments)))

    rng = np.random.default_rng(seed)
    shop = Shop(history, vectors)
    table: list[Line] = []
    found: dict[str, str | float | Interval | None] = {}
    overlaps: list[float] = []
    bands: list[Band] = []
    variants: list[Variant] = []
    for done, task in enumerate(TASKS):
        rows = [answer for answer in answers if answer.task == task]
        accuracies, draws = judge_accuracy(rows, moments, rng)
        varieties = [shop.variety(row, moments) for row in rows]
        first = len(rows) - len(ours)  # of ours; before it are the baselines
        best = max(range(first), key=lambda at: accuracies[at].ndcg)
        found[f"best_{task}"] = rows[best].model
        lines = [
            Line(task, row.model, row.setting, accuracy, variety, *paired_ratio(accuracies, draws, at, best))
            for at, (row, accuracy, variety) in enumerate(zip(rows, accuracies, varieties, strict=True))
        ]
        table += lines
        if baskets := draw_baskets(task, moments, rng):
            table.append(Line(task, BASKETS, baskets.setting, None, shop.variety(baskets, moments)))
        if ours:
            found |= {f"ratio_{task}": lines[first].ratio, f"ratio_{task}_95": lines[first].ratio_95}
            ease = next(at for at in range(first) if rows[at].model == "EASE")
            if varieties[ease].overlap > 0:
                overlaps.append(varieties[first].overlap / varieties[ease].overlap)
            bands += judge_bands(rows[first], rows[:first], moments, rng)
            variants += [
                Variant(task, rows[at].setting, *paired_ratio(accuracies, draws, at, first))
                for at in range(first + 1, len(rows))
            ]
        step("judging", done + 1, len(TASKS))
    return msgspec.convert(
        {
            "source": source,
            "k": K,
            "min_buyers": min_buyers,
            "tuned_at": tuning[0].day if tuning else None,
            "origins": [
                Asked(origin.day, len(origin.rows), *(len(regulars(origin, truth, task)) for task in TASKS))
                for origin, truth in moments
            ],
            "table": table,
            "overlap_ratio": max(overlaps, default=None),
            "bands": bands,
            "variants": variants,
            **found,
        },
        Evaluation,
    )


# --- asking -----------------------------------------------------------------------------------------------------------


def _earlier(history: History, at_s: int, min_buyers: int) -> Moment | None:
    """The moment at which baselines choose, if there is anybody to ask at it."""
    try:
        return make_origin(history, at_s, min_buyers)
    except Misuse:  # the first origin lies near the beginning of the data; the result says so
        return None


def _ask_family(family: Family, tuning: Moment | None, moments: Sequence[Moment]) -> list[Lists]:
    """The family's lists, each task with the setting that was best at the earlier moment."""
    chosen = dict.fromkeys(family.tasks, next(iter(family.settings)))
    if tuning and len(family.settings) > 1:
        worth: dict[tuple[Task, str], float] = {}
        for setting, score in family.settings.items():
            for answer in _ask({setting: Scored(family.name, score)}, family.tasks, [tuning]):
                worth[answer.task, setting] = sum_ndcg(answer, tuning[1])
        chosen = {task: max(family.settings, key=lambda setting: worth[task, setting]) for task in family.tasks}
    return [
        answer
        for setting, score in family.settings.items()
        if (tasks := [task for task in family.tasks if chosen[task] == setting])
        for answer in _ask({setting: Scored(family.name, score)}, tasks, moments)
    ]


def _ask(
    models: Mapping[str, Recommender],
    tasks: Sequence[Task],
    moments: Sequence[Moment],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Lists]:
    """The lists of models, by their settings; checked.

    Moment by moment, and at each of them every model: those that live through history together cannot go back in it.
    """
    answers = {
        (setting, task): Lists(task, model.name, setting, [], [regulars(*at, task) for at in moments])
        for setting, model in models.items()
        for task in tasks
    }
    for done, (origin, _) in enumerate(moments):
        for (setting, task), answer in answers.items():
            ranked = models[setting].rank(origin, task, K)
            lists = ranked[None] if ranked.ndim == 2 else ranked
            for of_seed in lists:
                _check(of_seed, origin, answer)
            answer.lists.append(lists)
        progress(done + 1)
    return list(answers.values())


def _check(lists: NDArray[np.int64], origin: Origin, answer: Lists) -> None:
    """A list that breaks the rules would win by it; a recommender that makes one has a bug."""
    shown = lists >= 0
    column = np.searchsorted(origin.rows, lists).clip(max=len(origin.rows) - 1)
    ordered = np.sort(np.where(shown, lists, -1 - np.arange(K)), axis=1)
    wrong = (
        lists.shape != (len(origin.users), K)
        or (shown & (origin.rows[column] != lists)).any()
        or (np.diff(ordered, axis=1) == 0).any()
        or (answer.task == "new" and (shown & np.take_along_axis(origin.seen, column, axis=1)).any())
    )
    if wrong:
        raise ValueError(
            f"{answer.model} at {origin.day}, task {answer.task}: a list of another shape than "
            f"{(len(origin.users), K)}, or with an item twice, outside the catalogue or bought before"
        )
