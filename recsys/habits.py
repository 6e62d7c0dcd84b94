"""What a user's own purchases say of a candidate, of its category and of its brand: how often, how lately, when again.

Feature columns for `recsys.features`, which names them; nothing of the crowd but how long others wait.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.context import Context, basket_ages_s, bought_long_ago
from recsys.signal_table import TYPICAL_D
from recsys.signals import DAY_S

NEVER_D = 400.0  # days: longer than any interval that is learned from a year of history
OWN = (
    "own_count",
    "own_7d",
    "own_30d",
    "own_120d",
    "own_last_days",
    "own_first_days",
    "own_seen",
    "own_per_basket",
    "own_due",
    "own_due_distance",
    "own_in_basket",
)
_OF_CATEGORY = ("share", "pull", "count", "last_days", "due", "price_gap")
CATEGORY = tuple(f"{level}_{name}" for level in ("category", "subcategory") for name in _OF_CATEGORY)

Column = NDArray[Any]


class Grouped:
    """Records grouped by a key, to be looked up by candidate. records: (n,) integers; wanted: (C,), -1 for none."""

    def __init__(self, records: NDArray[Any], wanted: NDArray[Any]) -> None:
        self.distinct, self.inverse = np.unique(records, return_inverse=True)
        at = np.searchsorted(self.distinct, wanted)
        self.at = np.minimum(at, max(len(self.distinct) - 1, 0))
        found = self.distinct[self.at] == wanted if len(self.distinct) else np.zeros(len(wanted), np.bool_)
        self.found: NDArray[np.bool_] = found & (wanted >= 0)

    def total(self, weights: NDArray[Any] | None = None) -> Column:
        """Sum of weights (or count) per wanted key, 0 where there is none."""
        if not len(self.distinct):
            return np.zeros(len(self.found))
        return self._spread(np.bincount(self.inverse, weights, len(self.distinct)), 0.0)

    def extreme(self, values: NDArray[Any], largest: bool, otherwise: float) -> Column:
        """Smallest or largest value per wanted key."""
        if not len(self.distinct):
            return np.full(len(self.found), otherwise)
        out = np.full(len(self.distinct), -np.inf if largest else np.inf)
        (np.maximum if largest else np.minimum).at(out, self.inverse, values)
        return self._spread(out, otherwise)

    def _spread(self, values: NDArray[Any], otherwise: float) -> Column:
        spread: Column = np.where(self.found, values[self.at], otherwise)
        return spread


def own_habits(context: Context, rows: NDArray[np.int64]) -> list[Column]:
    """The columns OWN."""
    age_d = context.bought.age_s / DAY_S
    own = Grouped(context.bought.rows, rows)
    count = own.total()
    last_d, first_d = own.extreme(age_d, False, NEVER_D), own.extreme(age_d, True, NEVER_D)
    # One pseudo-interval, that of others who bought the item again: a single purchase says little about its rhythm.
    due = _due(count, last_d, first_d, context.shop.signals.interval_d(rows))
    return [
        np.log1p(count),
        np.sqrt(own.total(0.5 ** (age_d / 7))),
        np.sqrt(own.total(0.5 ** (age_d / 30))),
        np.sqrt(own.total(0.5 ** (age_d / 120))),
        np.log1p(np.minimum(last_d, NEVER_D)),
        np.log1p(np.minimum(first_d, NEVER_D)),
        ((count > 0) | bought_long_ago(context, rows)).astype(float),
        count / max(len(basket_ages_s(context.bought)), 1),
        due,
        np.abs(due),
        np.isin(rows, context.basket).astype(float),
    ]


def category_habits(context: Context, rows: NDArray[np.int64]) -> list[Column]:
    """The columns CATEGORY: of the second and the third level of the path; the first is too wide to tell anything."""
    catalogue, bought = context.shop.catalogue, context.bought
    age_d = bought.age_s / DAY_S
    half = 0.5 ** (age_d / 60)
    paid = catalogue.log_price[bought.rows]
    priced = ~np.isnan(paid)
    columns = []
    for level in (1, 2):
        codes = catalogue.category[:, level]
        own = Grouped(codes[bought.rows], codes[rows])
        count = own.total()
        last_d, first_d = own.extreme(age_d, False, NEVER_D), own.extreme(age_d, True, NEVER_D)
        share = share_of(codes, context, rows)
        weight = own.total(half * priced)
        usual = own.total(half * np.where(priced, paid, 0.0)) / np.maximum(weight, 1e-9)
        gap = np.where(weight > 0, np.abs(catalogue.log_price[rows] - usual), 1.0)
        columns += [
            np.sqrt(share),
            np.sqrt(share * context.shop.signals.share_of_category(rows, level, context.request.now_s)),
            np.log1p(count),
            np.log1p(np.minimum(last_d, NEVER_D)),
            _due(count, last_d, first_d, TYPICAL_D),
            np.nan_to_num(gap, nan=0.0),
        ]
    return columns


def share_of(codes: NDArray[np.int32], context: Context, rows: NDArray[np.int64]) -> Column:
    """The user's decayed share of each candidate's code (of a category or a brand), of all that was bought or touched."""
    known = np.concatenate([context.bought.rows, context.touched.rows])
    weight = np.concatenate(
        [0.5 ** (context.bought.age_s / (60 * DAY_S)), 0.3 * 0.5 ** (context.touched.age_s / (7 * DAY_S))]
    )
    share: Column = Grouped(codes[known], codes[rows]).total(weight) / max(float(weight.sum()), 1e-9)
    return share


def _due(count: Column, last_d: Column, first_d: Column, typical_d: Column | float) -> Column:
    """Log of the time since the last purchase over the usual interval; 0 for what is just due or was never bought."""
    interval_d = (first_d - last_d + typical_d) / np.maximum(count, 1)
    due: Column = np.where(count > 0, np.log((last_d + 1) / (interval_d + 1)), 0.0)
    return due
