"""Several policies on one fitted scorer: what each is worth, and how it fares on the three axes of sameness.

Within a list, over time (lists six days apart, two between), across users. All policies see the same candidates and the
same scores at the same moments in the past, so what differs between two rows is the policy. Not how good the scorer is:
that is `evaluate.py`, with baselines. Called by `slatecast evaluate --diversity` and by `models/tuning.py`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from models.baselines import Scored, ease
from models.judging import (
    BASKETS,
    Accuracy,
    Interval,
    K,
    Lists,
    Moment,
    Shop,
    Variety,
    draw_baskets,
    judge_accuracy,
    paired_ratio,
    regulars,
)
from models.origins import MIN_ITEMS, Origin, Task, make_origin
from models.ours import Scorers, show
from models.train_settings import Step
from recsys.errors import Misuse
from recsys.list_metrics import temporal_diversity
from recsys.policy import Policy
from recsys.signals import DAY_S

EASE = "EASE"
EASE_PENALTY = 300.0  # as good as 1000 on two data sets; here it is only what overlap is compared with
TOP_K = "top-k"
STRENGTH = 0.3  # of each way to make a list varied, in the demonstration
REMEMBERED, REMEMBERED_H = 20, 168.0  # two lists; a default memory of a day would have forgotten them
# Days before a moment at which users are shown a list too: three within a week, after which by default an item that nobody
# touched is no candidate, so the list that is judged is the first that feels it.
VISITS_D = (6, 4, 2)
Told = dict[tuple[str, int], dict[int, bytes]]  # what users were shown, by policy and seed


class Compared(msgspec.Struct, frozen=True):
    """One policy, or a reference that has none: EASE, real baskets (which have no accuracy).

    ratio: NDCG over that of the first policy, with a paired 95 % interval; None where that finds nothing.
    overlap_of_ease: overlap between users over that of EASE's lists.
    """

    name: str
    accuracy: Accuracy | None
    variety: Variety
    ratio: float | None = None
    ratio_95: Interval | None = None
    overlap_of_ease: float | None = None


class Comparison(msgspec.Struct, frozen=True):
    """The table: the policies in their order, then EASE and real baskets. users: those judged, of all days."""

    source: str
    task: Task
    k: int
    days: list[str]
    users: int
    table: list[Compared]

    def of(self, name: str) -> Compared:
        """One row. Raises KeyError."""
        return {row.name: row for row in self.table}[name]


def ways(policy: Policy) -> dict[str, Policy]:
    """Relevance alone, each cure alone, and the policy itself; what is no cure (caps, pins) is the same in all.

    Memory is no cure alone: it is DPP with what was shown before counted as standing above.
    """
    bare = replace(policy, diversity="none", exposure_penalty=0, coverage="none", remember=0, fatigue_shown=0)
    dpp = replace(bare, diversity="dpp", strength=STRENGTH)
    return {
        TOP_K: bare,
        "MMR": replace(dpp, diversity="mmr"),
        "DPP": dpp,
        "SSD": replace(dpp, diversity="ssd"),
        "category coverage": replace(bare, coverage="root", coverage_weight=1.0),
        "DPP and memory": replace(dpp, remember=REMEMBERED, remember_h=REMEMBERED_H),
        "fatigue": replace(bare, fatigue_shown=policy.fatigue_shown or Policy().fatigue_shown),
        "exposure price": replace(bare, exposure_penalty=policy.exposure_penalty or Policy().exposure_penalty),
        "ours": policy,
    }


def compare(
    scorers: Scorers,
    policies: Mapping[str, Policy],
    origins_s: Sequence[int],
    task: Task,
    shop: Shop,
    source: str,
    min_buyers: int,
    seed: int = 0,
    over_time: bool = False,
    step: Step = lambda what, done, of: None,
) -> Comparison:
    """Lists of every policy at every origin, judged by what was bought next; ratios are to the first policy.

    origins_s: unix seconds, ascending, after whatever the scorers were asked before. over_time: show users a list at
    VISITS_D before each origin too, and tell their profiles; the scorer is then fitted at the first visit and serves all,
    as a release does. seed: of the bootstrap and of the items drawn from larger baskets. 2 to 4 ms a list, four times
    with over_time. Raises Misuse where there is nobody to ask, or a visit lies before the moment that was judged last.
    """
    apart_s = VISITS_D[0] * DAY_S if over_time else 0
    if any(after - before < apart_s for before, after in pairwise(origins_s)):
        raise Misuse(
            f"users are shown lists from {VISITS_D[0]} days before a moment on, and history is lived once: name moments so far "
            "apart"
        )
    world, history = scorers.learner.world, scorers.learner.world.history
    moments = [make_origin(history, at_s, min_buyers) for at_s in origins_s]
    places = [regulars(*moment, task) for moment in moments]
    now = {name: Lists(task, name, "", [], places) for name in (*policies, EASE)}
    before = {name: Lists(task, name, "", [], []) for name in now}
    for done, (origin, _) in enumerate(moments):
        visits = [*(_days_before(origin, days, min_buyers) for days in VISITS_D if over_time), origin]
        scorers.at(visits[0].at_s)
        told: Told = {}
        for number, visit in enumerate(visits):
            label = f"lists {done + 1} of {len(moments)}, visit {number + 1} of {len(visits)}"
            world.advance(visit.at_s)
            shown = _show_all(scorers, policies, visit, task, told, _told(step, label))
            for answers in [before] * (over_time and not number) + [now] * (visit is origin):
                for name, lists in {**shown, EASE: _ease(visit, task)}.items():
                    answers[name].lists.append(lists)
        for answer in before.values():
            answer.places.append([at for at in places[done] if visits[0].known[at] >= MIN_ITEMS])
    return Comparison(
        source,
        task,
        K,
        [origin.day for origin, _ in moments],
        sum(map(len, places)),
        _judge(now, before if over_time else None, moments, task, shop, seed),
    )


def _told(step: Step, label: str) -> Step:
    return lambda what, done, of: step(label, done, of)


def _show_all(
    scorers: Scorers, policies: Mapping[str, Policy], origin: Origin, task: Task, told: Told, step: Step
) -> dict[str, NDArray[np.int64]]:
    """Every policy's lists at the moment at which the world stands, by the scorers that were fitted last: (S, U, k).

    told: what each was told of earlier showings, and is told of these.
    """
    learner, world, answers = scorers.learner, scorers.learner.world, dict[str, NDArray[np.int64]]()
    for done, (name, policy) in enumerate(policies.items()):
        step("", done, len(policies))
        of_seeds = []
        for seed, score in enumerate(scorers.newest):
            world.shown = told.setdefault((name, seed), {})
            of_seeds.append(lists := show(world, learner.sources, score, policy, origin, task, K))
            for user, row in zip(origin.users.tolist(), lists, strict=True):
                world.show(user, _items(row))
        answers[name] = np.stack(of_seeds)
    world.shown = {}
    step("", len(policies), len(policies))
    return answers


def _ease(origin: Origin, task: Task) -> NDArray[np.int64]:
    """EASE's lists, as of one seed: (1, U, k)."""
    return Scored(EASE, partial(ease, penalty=EASE_PENALTY)).rank(origin, task, K)[None]


def _days_before(origin: Origin, days: int, min_buyers: int) -> Origin:
    """The shop of so many days before, asked by the same users."""
    earlier, _ = make_origin(origin.history, origin.at_s - days * DAY_S, min_buyers, min_items=0)
    seen = earlier.counts[origin.users].toarray() > 0
    return replace(earlier, users=origin.users, seen=seen, known=seen.sum(axis=1))


def _judge(
    now: Mapping[str, Lists],
    before: Mapping[str, Lists] | None,
    moments: Sequence[Moment],
    task: Task,
    shop: Shop,
    seed: int,
) -> list[Compared]:
    """The rows of the table."""
    rng = np.random.default_rng(seed)
    rows = list(now.values())
    accuracies, draws = judge_accuracy(rows, moments, rng)
    varieties = [shop.variety(row, moments) for row in rows]
    if before:
        varieties = [
            replace(variety, temporal_diversity=_changed(before[row.model], row))
            for row, variety in zip(rows, varieties, strict=True)
        ]
    of_ease = varieties[-1].overlap
    table = []
    for at, (row, accuracy, variety) in enumerate(zip(rows, accuracies, varieties, strict=True)):
        ratio, ends = paired_ratio(accuracies, draws, at, 0)
        table.append(
            Compared(row.model, accuracy, variety, ratio, ends, variety.overlap / of_ease if of_ease else None)
        )
    if baskets := draw_baskets(task, moments, rng):
        variety = shop.variety(baskets, moments)
        table.append(Compared(BASKETS, None, variety, overlap_of_ease=variety.overlap / of_ease if of_ease else None))
    return table


def _changed(before: Lists, now: Lists) -> float:
    """Temporal diversity: the mean over users who were known at the first visit, then over seeds and moments."""
    means = []
    for old, new, places in zip(before.lists, now.lists, before.places, strict=True):
        for old_of_seed, new_of_seed in zip(old, new, strict=True):
            pairs = [(_items(old_of_seed[at]), _items(new_of_seed[at])) for at in places]
            means.append(float(np.mean([temporal_diversity(*pair, K) for pair in pairs])) if pairs else 0.0)
    return float(np.mean(means))


def _items(row: NDArray[np.int64]) -> list[int]:
    items: list[int] = row[row >= 0].tolist()
    return items
