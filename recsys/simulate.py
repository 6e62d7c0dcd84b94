"""Clicks, views, carts and searches that could have led to real purchases. Labelled, so nobody takes them for real.

No open data set has both real clicks and item texts; so the demo and the tests put made-up browsing around real
baskets. Every event made here has an id that begins with `sim-`. Figures about ranking quality are computed on the
purchases only. Called by the demo, the benchmarks and tests.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from recsys.catalogue import Catalogue
from recsys.events import TS_MIN_MS, Cart, Click, Event, Purchase, Search, View

PREFIX = "sim-"

# Rates per purchase. None is measured (no source has them); chosen so that a basket gets about as many simulated
# events as it has lines, which shows lists reacting to clicks without drowning the purchases.
P_CLICK = 0.4  # the rest is bought from habit, from a list of one's own, or in the shop: no click at all
P_VIEW = 0.5  # of the clicks, the page stays open long enough to count as a view
P_CART = 0.6  # of the clicks, the item goes through the cart; the others buy at once
P_SIBLING = 0.5  # of the clicks, one other item of the same category was looked at first, and left
P_SEARCH = 0.1  # of the clicks begin with typing

# When, before the purchase: minutes, because a basket is filled within one visit.
FIRST_S, LAST_S = 900.0, 60.0  # a visit's clicks lie within the quarter of an hour before paying
SIBLING_S = 20.0  # the one not taken was looked at up to so long before
VIEW_S, CART_S = 3.0, 30.0  # after the click; CART_S < LAST_S keeps the cart before the purchase
SEARCH_S = 30.0  # before the first click that it led to

QUERY_WORDS = 2  # people type short queries: the first words of a title name the thing, sizes and makers follow
_WORD = re.compile(r"[^\W\d_]{2,}")  # letters of any script


def simulate_around(purchases: Sequence[Purchase], catalogue: Catalogue, rng: np.random.Generator) -> list[Event]:
    """What one user may have done in the minutes before a basket was paid, in the order of time.

    purchases: one basket, or several; each purchase stands for itself. Equal purchases, catalogue and state of `rng`
    give equal events. Items that the catalogue does not know are clicked, but have no siblings and no words.
    Cost: 6 µs a purchase, and once per version of the catalogue sorting its categories.

    >>> basket = [Purchase(user="u", item="a", ts_ms=1_700_000_000_000, session="s")]
    >>> events = simulate_around(basket, Catalogue(), np.random.default_rng(2))
    >>> [type(event).__name__ for event in events], all(is_simulated(event) for event in events)
    (['Click', 'View'], True)
    """
    order, start, end = _categories(catalogue, catalogue.version)
    events: list[Event] = []
    for purchase, chance, place in zip(
        purchases, rng.random((len(purchases), 5)).tolist(), rng.random((len(purchases), 4)).tolist(), strict=True
    ):
        clicks, views, carts, looks, searches = chance
        if clicks >= P_CLICK:
            continue
        row = catalogue.row(purchase.item)
        session = purchase.session or f"{PREFIX}{_name(purchase.user, str(purchase.ts_ms))}"
        click_ms = purchase.ts_ms - _ms(LAST_S + place[0] * (FIRST_S - LAST_S))
        events.append(_touch(Click, purchase, purchase.item, session, click_ms))
        if views < P_VIEW:
            events.append(_touch(View, purchase, purchase.item, session, click_ms + _ms(VIEW_S)))
        if carts < P_CART:
            events.append(
                _touch(Cart, purchase, purchase.item, session, click_ms + _ms(VIEW_S + place[1] * (CART_S - VIEW_S)))
            )
        if row < 0:
            continue
        first_ms = click_ms
        if looks < P_SIBLING and end[row] - start[row] > 1:
            sibling = order[start[row] + int(place[2] * (end[row] - start[row]))]
            if sibling != row:
                first_ms = click_ms - _ms(1 + place[3] * (SIBLING_S - 1))
                events.append(_touch(Click, purchase, catalogue.items[sibling].item, session, first_ms))
        words = _WORD.findall(catalogue.items[row].title.partition(",")[0])[:QUERY_WORDS]
        if searches < P_SEARCH and words:
            events.append(
                _search(purchase, " ".join(words).lower(), session, first_ms - _ms(SEARCH_S * (1 - place[3] / 2)))
            )
    return sorted((e for e in events if e.ts_ms >= TS_MIN_MS), key=lambda event: (event.ts_ms, event.id))


def is_simulated(event: Event) -> bool:
    """Whether an event was made here."""
    return event.id.startswith(PREFIX)


@lru_cache(maxsize=1)  # one catalogue is in use at a time; its version changes with every item
def _categories(catalogue: Catalogue, version: int) -> tuple[list[int], list[int], list[int]]:
    """Rows sorted by finest category, and for each row where its category begins and ends in that order."""
    codes: NDArray[np.int32] = catalogue.category[: len(catalogue)]
    finest = np.where(codes[:, 2] >= 0, codes[:, 2], np.where(codes[:, 1] >= 0, codes[:, 1], codes[:, 0]))
    order = np.argsort(finest, kind="stable")
    start = np.searchsorted(finest[order], finest, side="left")
    end = np.searchsorted(finest[order], finest, side="right")
    start[finest < 0] = end[finest < 0] = 0  # no category, no siblings
    return order.tolist(), start.tolist(), end.tolist()


def _touch(
    kind: type[Click] | type[View] | type[Cart], purchase: Purchase, item: str, session: str, ts_ms: int
) -> Click | View | Cart:
    name = _name(kind.__name__, purchase.user, session, item, str(ts_ms))
    return kind(id=PREFIX + name, user=purchase.user, item=item, session=session, ts_ms=ts_ms)


def _search(purchase: Purchase, query: str, session: str, ts_ms: int) -> Search:
    name = _name("Search", purchase.user, session, query, str(ts_ms))
    return Search(id=PREFIX + name, user=purchase.user, query=query, session=session, ts_ms=ts_ms)


def _name(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
