"""Browsing made up around real baskets: labelled, in time, repeatable."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.catalogue import Catalogue, Item
from recsys.events import (
    TS_MIN_MS,
    Cart,
    Click,
    Event,
    Impression,
    OnItem,
    Purchase,
    Search,
    View,
    decode_event,
    encode_event,
)
from recsys.simulate import (
    FIRST_S,
    P_CART,
    P_CLICK,
    P_SEARCH,
    P_SIBLING,
    P_VIEW,
    SEARCH_S,
    SIBLING_S,
    is_simulated,
    simulate_around,
)

T = 1_700_000_000_000
CATALOGUE = Catalogue(
    Item(item=f"i{n}", title=f"Thing number{'abc'[n % 3]}, {n} oz", category=f"home > room{n % 10}") for n in range(100)
)


def basket(size: int, session: str | None = "s1") -> list[Purchase]:
    return [Purchase(user="u1", item=f"i{n % 100}", ts_ms=T, session=session) for n in range(size)]


def simulate(purchases: list[Purchase], seed: int = 0, catalogue: Catalogue = CATALOGUE) -> list[Event]:
    return simulate_around(purchases, catalogue, np.random.default_rng(seed))


def test_the_same_seed_gives_the_same_events_and_another_seed_others() -> None:
    assert simulate(basket(50)) == simulate(basket(50))
    assert simulate(basket(50)) != simulate(basket(50), seed=1)


@given(st.integers(0, 2**32), st.sampled_from(["s1", "s" * 128, None]))
def test_every_event_is_labelled_within_minutes_before_the_purchase_and_valid(seed: int, session: str | None) -> None:
    events = simulate(basket(20, session), seed)
    assert [e.ts_ms for e in events] == sorted(e.ts_ms for e in events)
    assert len({e.id for e in events}) == len(events)
    for event in events:
        assert is_simulated(event)
        assert event.session
        assert session is None or event.session == session
        assert T - (FIRST_S + SIBLING_S + SEARCH_S) * 1000 <= event.ts_ms < T
        assert not isinstance(event, Purchase | Impression)
        assert decode_event(encode_event(event)) == event


def test_the_rates_are_what_the_constants_say() -> None:
    n = 20_000
    events = simulate(basket(n))
    clicked = n * P_CLICK
    for kind, wanted in (View, P_VIEW), (Cart, P_CART), (Search, P_SEARCH):
        assert abs(sum(isinstance(e, kind) for e in events) / clicked - wanted) < 0.02
    # a sibling drawn at random from the ten of a category is the item itself once in ten
    clicks = sum(isinstance(e, Click) for e in events)
    assert abs(clicks / clicked - (1 + P_SIBLING * 0.9)) < 0.02


def test_a_sibling_has_the_category_of_the_bought_item() -> None:
    for seed in range(50):
        events = simulate([Purchase(user="u1", item="i7", ts_ms=T, session="s1")], seed)
        items = {e.item for e in events if isinstance(e, OnItem)}
        assert all(int(item[1:]) % 10 == 7 for item in items)
        assert not items or "i7" in items


def test_a_search_has_the_first_words_of_a_bought_title() -> None:
    queries = {e.query for e in simulate(basket(1000)) if isinstance(e, Search)}
    assert queries == {"thing numbera", "thing numberb", "thing numberc"}


def test_items_without_category_title_or_entry_in_the_catalogue_are_clicked_all_the_same() -> None:
    bare = Catalogue([Item(item="i0", title=""), Item(item="i1", title="12")])
    bought = [Purchase(user="u1", item=f"i{n % 3}", ts_ms=T, session="s1") for n in range(100)]
    events = simulate(bought, catalogue=bare)
    assert {e.item for e in events if isinstance(e, Click)} == {"i0", "i1", "i2"}
    assert not any(isinstance(e, Search) for e in events)


def test_a_catalogue_that_grows_is_seen() -> None:
    growing = Catalogue([Item(item="i0", title="A", category="c")])
    assert {e.item for s in range(30) for e in simulate(basket(1), s, growing) if isinstance(e, OnItem)} == {"i0"}
    growing.upsert(Item(item="new", title="B", category="c"))
    assert {e.item for s in range(30) for e in simulate(basket(1), s, growing) if isinstance(e, OnItem)} == {
        "i0",
        "new",
    }


def test_nothing_happens_before_the_year_2000_or_around_no_purchase() -> None:
    assert simulate([]) == []
    early = [Purchase(user="u", item="i1", ts_ms=TS_MIN_MS + 1000, session="s")] * 50
    assert simulate(early) == []
