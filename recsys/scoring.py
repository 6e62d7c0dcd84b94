"""What a scorer is asked and what it answers: the door between the pipeline and the models.

Of each list a scorer sees the candidates' features (features.py), and the user's trail: the newest distinct items, which
a sequence tower reads beside the text vectors of the candidates. Built by `recommend` and by training, with this code.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.context import Context
from recsys.signals import DAY_S

# Columns of logits, each what it ranks by: the next purchase, repeats allowed; the next purchase of something never bought;
# the next click, view or cart. The last only where the shop's history has such events.
HEADS = ("all", "new", "click")
TRAIL = 50  # items: beyond them a purchase says little that item models and own frequencies do not


class Trail(msgspec.Struct, frozen=True):
    """What a user did last, newest first, each item once.

    rows: (H,) int64, H ≤ 50; actions: (H,) int64, the newest action with the item
    marks: (H, 2) float32, log(1 + days since) and log of how often, both ≥ 0
    """

    rows: NDArray[np.int64]
    actions: NDArray[np.int64]
    marks: NDArray[np.float32]


class Ask(msgspec.Struct, frozen=True):
    """One list to score. rows: (C,) int64, the candidates; features: (C, F) float32, columns as in features.NAMES."""

    rows: NDArray[np.int64]
    features: NDArray[np.float32]
    trail: Trail


class Scored(msgspec.Struct, frozen=True):
    """A scorer's answer. logits: (N, 2 or 3) float32, columns as HEADS, or None when no model could be asked."""

    logits: NDArray[np.float32] | None
    scorer: str
    degraded_reason: str | None = None


# Lists to score, and the text vectors of the whole catalogue, (M, D) float32; the answer's rows are the lists', stacked.
Score = Callable[[Sequence[Ask], NDArray[np.float32]], Scored]


def trail_of(context: Context) -> Trail:
    """The newest 50 distinct items of the user's purchases and touches. 30 µs.

    >>> from recsys.catalogue import Catalogue, Item
    >>> from recsys.context import Request, Shop, see
    >>> from recsys.events import Purchase
    >>> from recsys.profiles import EMPTY, apply
    >>> from recsys.signal_table import SignalTable
    >>> shop = Shop(c := Catalogue([Item(item="a", title="Mug")]), SignalTable(c))
    >>> once = apply(EMPTY, Purchase(user="u", item="a", ts_ms=1_700_000_000_000), b"aaaaaa")
    >>> twice = apply(once, Purchase(user="u", item="a", ts_ms=1_700_086_400_000), b"bbbbbb")
    >>> trail_of(see(Request("u", twice, 1_700_086_400.0), shop)).marks.tolist() == [[0.0, np.float32(np.log(2))]]
    True
    """
    rows = np.concatenate([context.touched.rows, context.bought.rows])
    age_s = np.concatenate([context.touched.age_s, context.bought.age_s])
    actions = np.concatenate([context.touched.actions, context.bought.actions])
    order = np.argsort(age_s, kind="stable")
    _, first, counts = np.unique(rows[order], return_index=True, return_counts=True)
    newest = np.argsort(first)[:TRAIL]
    at = order[first[newest]]
    marks = np.column_stack([np.log1p(age_s[at] / DAY_S), np.log(counts[newest])])
    return Trail(rows[at], actions[at].astype(np.int64), marks.astype(np.float32))
