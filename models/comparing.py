"""Several policies on one fitted scorer: what each is worth, and how it fares on the three axes of sameness.

Within a list, over time (lists a week apart), across users. All policies see the same candidates and the same scores at
the same moments in the past, so what differs between two rows is the policy. Not how good the scorer is: that is
`evaluate.py`, with baselines. Called by `slatecast evaluate --diversity` and by `models/tuning.py`.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from models.baselines import Scored, ease
from models.examples import WEEK_S
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
from recsys.list_metrics import temporal_diversity
from recsys.policy import Policy

EASE = "EASE"
EASE_PENALTY = 300.0  # as good as 1000 on two data sets; here it is only what overlap is compared with
TOP_K = "top-k"
STRENGTH = 0.3  # of each way to make a list varied, in the demonstration


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
    """Relevance alone, each cure alone, and the policy itself; what is no cure (caps, pins) is the same in all."""
    bare = replace(policy, diversity="none", exposure_penalty=0, coverage="none")
    return {
        TOP_K: bare,
        "MMR": replace(bare, diversity="mmr", strength=STRENGTH),
        "DPP": replace(bare, diversity="dpp", strength=STRENGTH),
        "SSD": replace(bare, diversity="ssd", strength=STRENGTH),
        "category coverage": replace(bare, coverage="root", coverage_weight=1.0),
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

    origins_s: unix seconds, ascending, after whatever the scorers were asked before. over_time: make lists of a week
    before each origin too; the scorer is then fitted at that earlier moment and serves both, as a release does. No
    showing is told to profiles, so `remember` and fatigue have nothing to go by. seed: of the bootstrap and of the items
    drawn from larger baskets. 2 to 4 ms a list, twice with over_time. Raises Misuse where there is nobody to ask.
    """
    history = scorers.learner.world.history
    moments = [make_origin(history, at_s, min_buyers) for at_s in origins_s]
    places = [regulars(*moment, task) for moment in moments]
    now = {name: Lists(task, name, "", [], places) for name in (*policies, EASE)}
    before = {name: Lists(task, name, "", [], []) for name in now}
    for done, (origin, _) in enumerate(moments):
        label = f"lists {done + 1} of {len(moments)}"
        if over_time:
            earlier = _week_before(origin, min_buyers)
            scorers.at(earlier.at_s)
            _make(scorers, policies, earlier, before, _told(step, f"{label}, a week before"))
            scorers.learner.world.advance(origin.at_s)
            for name in before:
                before[name].places.append([at for at in places[done] if earlier.known[at] >= MIN_ITEMS])
        else:
            scorers.at(origin.at_s)
        _make(scorers, policies, origin, now, _told(step, label))
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


def _make(
    scorers: Scorers, policies: Mapping[str, Policy], origin: Origin, answers: Mapping[str, Lists], step: Step
) -> None:
    """Every policy's lists at the moment at which the world stands, by the scorers that were fitted last."""
    learner, task = scorers.learner, answers[EASE].task
    for done, (name, policy) in enumerate(policies.items()):
        step("", done, len(policies))
        each = [show(learner.world, learner.sources, score, policy, origin, task, K) for score in scorers.newest]
        answers[name].lists.append(np.stack(each))
    reference = Scored(EASE, partial(ease, penalty=EASE_PENALTY))
    answers[EASE].lists.append(reference.rank(origin, task, K)[None])
    step("", len(policies), len(policies))


def _week_before(origin: Origin, min_buyers: int) -> Origin:
    """The shop of a week before, asked by the same users."""
    earlier, _ = make_origin(origin.history, origin.at_s - WEEK_S, min_buyers, min_items=0)
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
    """Temporal diversity: the mean over users who were known a week before, then over seeds and moments."""
    means = []
    for old, new, places in zip(before.lists, now.lists, before.places, strict=True):
        for old_of_seed, new_of_seed in zip(old, new, strict=True):
            pairs = [(_items(old_of_seed[at]), _items(new_of_seed[at])) for at in places]
            means.append(float(np.mean([temporal_diversity(*pair, K) for pair in pairs])) if pairs else 0.0)
    return float(np.mean(means))


def _items(row: NDArray[np.int64]) -> list[int]:
    items: list[int] = row[row >= 0].tolist()
    return items
