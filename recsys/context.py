"""What the stages share about one request: the user's profile as rows of the catalogue, at one moment.

Computed once per slate, read by sources, filters, features and explanations. Items that the catalogue does not know
are left out here, so no later stage meets row -1.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.catalogue import Catalogue
from recsys.item_models import HALF_LIFE_S, ItemModels, weigh_lately
from recsys.profiles import Profile, owns, read_log
from recsys.signal_table import SignalTable
from recsys.signals import DAY_S, WEIGHT

RECENT = 20  # items that stand for what the user wants now (notes: mean of the last 20 titles)
BASKET_GAP_S = 6 * 3600  # purchases closer than this are one basket


class Shop(msgspec.Struct, frozen=True):
    """What every request reads: the catalogue, the crowd's signals, and what was learned of items."""

    catalogue: Catalogue
    signals: SignalTable
    item_models: ItemModels = msgspec.field(default_factory=ItemModels)


class Request(msgspec.Struct, frozen=True):
    """One list to make. query_vector: (D,) float32 unit, of the newest search if it is part of this moment.

    slate: id of the list to be, which decides what it explores; empty: user and moment decide.
    """

    user: str
    profile: Profile
    now_s: float
    query: str = ""
    query_vector: NDArray[np.float32] | None = None
    slate: str = ""


class Touched(msgspec.Struct, frozen=True):
    """Records of one log, newest first. rows: (n,) int64, age_s: (n,) float64 ≥ 0, actions: (n,) uint8."""

    rows: NDArray[np.int64]
    age_s: NDArray[np.float64]
    actions: NDArray[np.uint8]


class Context(msgspec.Struct, frozen=True):
    """A request, seen through the catalogue.

    bought, touched, shown: the logs, newest first
    recent: (≤ 20,) distinct rows, newest first, of purchases and touches; emphasis: (≤ 20,) float64 in (0, 1], by
    surety of the action, halved every ten items
    basket: rows of the newest basket or session (all within 6 h of the newest event)
    learned: what item models say of the whole catalogue, by name: (N,) float64; empty without models
    """

    request: Request
    shop: Shop
    bought: Touched
    touched: Touched
    shown: Touched
    recent: NDArray[np.int64]
    emphasis: NDArray[np.float64]
    basket: NDArray[np.int64]
    learned: dict[str, NDArray[np.float64]]


def see(request: Request, shop: Shop) -> Context:
    """The context of a request. About 100 µs for a full profile, and .6 ms more where there are item models.

    >>> from recsys.catalogue import Item
    >>> from recsys.events import Purchase
    >>> from recsys.profiles import EMPTY, apply
    >>> shop = Shop(c := Catalogue([Item(item="a", title="Mug")]), SignalTable(c))
    >>> p = apply(EMPTY, Purchase(user="u", item="a", ts_ms=1_700_000_000_000), b"aaaaaa")
    >>> see(Request("u", p, 1_700_000_060.0), shop).bought.age_s.tolist()
    [60.0]
    """
    bought = _touched(request.profile.purchases, False, request, shop.catalogue)
    touched = _touched(request.profile.touches, True, request, shop.catalogue)
    shown = _touched(request.profile.shown, False, request, shop.catalogue)
    rows = np.concatenate([touched.rows, bought.rows])
    age_s = np.concatenate([touched.age_s, bought.age_s])
    surety = np.concatenate([_SURETY[touched.actions], _SURETY[bought.actions]])
    order = np.argsort(age_s, kind="stable")
    first = np.sort(np.unique(rows[order], return_index=True)[1])[:RECENT]  # newest record of each distinct item
    newest = order[first]
    freshness = 0.5 ** (np.arange(len(first)) / 10)  # by rank, not by age: after a holiday the last basket still counts
    basket = newest[age_s[newest] <= age_s[order[0]] + BASKET_GAP_S] if len(order) else newest
    return Context(
        request,
        shop,
        bought,
        touched,
        shown,
        rows[newest],
        np.maximum(surety[newest], 0.3) * freshness,
        rows[basket],
        _learn(shop, rows, age_s, rows[basket]),
    )


def _learn(
    shop: Shop, rows: NDArray[np.int64], age_s: NDArray[np.float64], basket: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """EASE on everything the user has, on the last basket; what goes with what is had lately; what came next for others."""
    models, catalogue = shop.item_models, shop.catalogue
    if not models.models:
        return {}
    has, inverse = np.unique(rows, return_inverse=True)
    decayed = np.bincount(inverse, 0.5 ** (age_s / HALF_LIFE_S), len(has)).astype(np.float64)
    alike = np.ones(len(has))
    return {
        "ease": models.follow("ease", has, alike, catalogue),
        "ease_basket": models.follow("ease", basket, np.ones(len(basket)), catalogue),
        "lately": models.follow("lately", has, weigh_lately(decayed), catalogue),
        "again": models.follow("again", has, alike, catalogue),
        "fresh": models.follow("fresh", has, alike, catalogue),
    }


_SURETY = np.array([WEIGHT[action] for action in range(4)])


def _touched(packed: bytes, touch: bool, request: Request, catalogue: Catalogue) -> Touched:
    log = read_log(packed, touch)
    rows = catalogue.rows(log.refs)[::-1]
    known = rows >= 0
    age_s = np.maximum(request.now_s - log.ts_s[::-1], 0.0)
    return Touched(rows[known], age_s[known], log.actions[::-1][known])


def own_counts(context: Context, half_life_s: float = 60 * DAY_S) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What the user buys again and again: distinct bought rows with their decayed count, unordered."""
    rows, inverse = np.unique(context.bought.rows, return_inverse=True)
    return rows, np.bincount(inverse, 0.5 ** (context.bought.age_s / half_life_s), len(rows)).astype(np.float64)


def ever_bought(context: Context, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the user bought these items at any time, also before what the profile keeps: (C,) bool."""
    known: NDArray[np.bool_] = np.isin(rows, context.bought.rows)
    return known | bought_long_ago(context, rows)


def bought_long_ago(context: Context, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether some purchase of these items is older than those that the profile keeps: (C,) bool."""
    return owns(context.request.profile.owned, context.shop.catalogue.refs[rows])


def basket_ages_s(bought: Touched) -> NDArray[np.float64]:
    """How long ago each of the user's baskets was, newest first, to 6 h: (n,) float64 seconds."""
    ages_s: NDArray[np.float64] = np.unique(np.floor(bought.age_s / BASKET_GAP_S)) * BASKET_GAP_S
    return ages_s
