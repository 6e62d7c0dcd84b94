"""Why an item is in a list, in words. Called by the pipeline for the chosen items only.

The reason is the evidence of the source that spoke loudest for the item (lowest rank), ties in the sources' order; or
the live visit, where that pulled the item in.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from recsys.candidates import ABSENT, Candidates
from recsys.context import Context
from recsys.intent import Visit
from recsys.signals import DAY_S

STRONG_PULL = 0.5  # of 1: from here on it is the visit that put the item there


def explain(context: Context, candidates: Candidates, at: int, visit: Visit | None) -> tuple[str, str]:
    """Source and reason of the candidate at a position. visit: what is going on, if anything is."""
    # Browsing is no reason while any other source has one.
    ranks = [
        rank + ABSENT // 2 * (name == "browse")
        for rank, name in zip(candidates.ranks[:, at], candidates.names, strict=True)
    ]
    source = candidates.names[int(np.argmin(ranks))]
    if visit is not None and visit.pull[at] >= STRONG_PULL:
        because = int(visit.because[at])
        return source, _search(context, -1) if because < 0 else f"you just looked at {_title(context, because)}"
    return source, _REASON[source](context, int(candidates.rows[at]))


def _bought(context: Context, row: int) -> str:
    ages = context.bought.age_s[context.bought.rows == row]
    days = int(ages.min() // DAY_S)
    when = "today" if days == 0 else "yesterday" if days == 1 else f"{days} days ago"
    times = "once" if len(ages) == 1 else f"{len(ages)} times"
    return f"you bought it {times}, last {when}"


def _together(context: Context, row: int) -> str:
    signals = context.shop.signals
    pull = (signals.weights[context.recent] * (signals.neighbours[context.recent] == row)).sum(axis=1)
    return f"often goes with {_title(context, int(context.recent[np.argmax(pull * context.emphasis)]))}"


def _similar(context: Context, row: int) -> str:
    vectors = context.shop.catalogue.vectors
    nearest = int(np.argmax(vectors[context.recent] @ vectors[row]))
    return f"similar to {_title(context, int(context.recent[nearest]))}"


def _search(context: Context, row: int) -> str:
    return f'answers your search "{context.request.query}"'


def _trending(context: Context, row: int) -> str:
    return "many shoppers want it this week"


def _follows(model: str, context: Context, row: int) -> str:
    because = context.shop.item_models.strongest(model, context.recent, row, context.shop.catalogue)
    return f"goes with {_title(context, because)}" if because >= 0 else "goes with what you have"


def _new(context: Context, row: int) -> str:
    category = context.shop.catalogue.items[row].category.rpartition(" > ")[2]
    return f"new in {category}" if category else "new in the shop"


def _browse(context: Context, row: int) -> str:
    category = context.shop.catalogue.items[row].category.rpartition(" > ")[2]
    return f"found in {category}" if category else "found in the shop"


def _title(context: Context, row: int) -> str:
    return context.shop.catalogue.items[row].title


_REASON: dict[str, Callable[[Context, int], str]] = {
    "buy_again": _bought,
    "co_visitation": _together,
    "ease": partial(_follows, "ease"),
    "ease_unseen": partial(_follows, "ease"),
    "lately_unseen": partial(_follows, "lately"),
    "again": partial(_follows, "again"),
    "fresh_unseen": partial(_follows, "fresh"),
    "similar_text": _similar,
    "search_intent": _search,
    "search_words": _search,
    "trending": _trending,
    "new_items": _new,
    "browse": _browse,
}
