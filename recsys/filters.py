"""Which candidates may not be shown, each reason counted. Called by the pipeline between gathering and scoring."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.candidates import Candidates
from recsys.context import Context, ever_bought
from recsys.policy import Policy

FATIGUE_S = 7 * 86_400


class Kept(msgspec.Struct, frozen=True):
    """What passed, and how many did not, by reason."""

    candidates: Candidates
    dropped: dict[str, int]


def filter_candidates(context: Context, candidates: Candidates, policy: Policy) -> Kept:
    """Drop what may not be shown: unavailable, bought (ever or just now, by policy), shown too often in vain.

    A candidate that several reasons would drop is counted under the first.
    """
    rows = candidates.rows
    available = context.shop.catalogue.available[rows]
    bought = context.bought
    recently = bought.rows[bought.age_s < policy.cooldown_h * 3600]
    reasons = {
        "unavailable": ~available,
        "bought": ever_bought(context, rows) if policy.repeats == "new" else np.isin(rows, recently),
        "fatigued": _fatigued(context, rows, policy.fatigue_shown),
    }
    keep = np.ones(len(rows), np.bool_)
    dropped = {}
    for reason, mask in reasons.items():
        dropped[reason] = int(np.sum(mask & keep))
        keep &= ~mask
    return Kept(candidates.keep(keep), dropped)


def _fatigued(context: Context, rows: NDArray[np.int64], limit: int) -> NDArray[np.bool_]:
    """Shown `limit` times within a week, not touched in it and never bought.

    A habit is not a wish of this week: who was shown the usual thing three times will still buy it when it is due. With
    habits among the tired a list for the next basket lost 39 % of its NDCG, without them .2 % (docs/diversity.md).
    """
    if not limit or not len(context.shown.rows):
        return np.zeros(len(rows), np.bool_)
    week = context.shown.rows[context.shown.age_s < FATIGUE_S]
    seen, times = np.unique(week, return_counts=True)
    touched = context.touched.rows[context.touched.age_s < FATIGUE_S]
    wanted = np.isin(seen, touched) | ever_bought(context, seen)
    tired: NDArray[np.bool_] = np.isin(rows, seen[(times >= limit) & ~wanted])
    return tired
