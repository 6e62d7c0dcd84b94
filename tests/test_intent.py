"""What this visit points to: the pull of live touches and of a search, by hand, and when there is none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shop_helpers import (
    T,
    bought,
    clicked,
    crowd,
    live,
    look,
    made,
    names,
    plain,
    remember,
    searched,
    shown,
    stock,
    unit,
)

from recsys.catalogue import Catalogue, item_ref
from recsys.context import Context, Shop
from recsys.events import TS_MIN_MS, Cart, Event, View
from recsys.intent import FADE, SESSION_S, TOUCHES, follow_visit, live_touches, ties
from recsys.signal_table import SignalTable
from recsys.signals import Signal

MINUTE = 1 / 1440  # of a day
ROWS = np.arange(5)


def session_pull(context: Context, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
    visit = follow_visit(context, rows)
    return None if visit is None else visit.pull


def shop_of_five() -> Shop:
    """i0 goes with i1 twice as often as with i2, and reads half like i3; i4 is its opposite."""
    catalogue = Catalogue(plain(5).items, dim=2)
    catalogue.vectors[:5] = unit([(1, 0), (0, 1), (0, 1), (1, 3**0.5), (-1, 0)])
    signals = SignalTable(catalogue)
    signals.update(0, Signal(T, ((item_ref("i1"), 4.0), (item_ref("i2"), 2.0))))
    return Shop(catalogue, signals)


@pytest.mark.parametrize(
    "events",
    [
        (),
        (bought("i0", MINUTE),),
        (searched("mug", MINUTE),),  # its vector comes with the request, or not at all
        (shown(["i0"], MINUTE),),
        (clicked("i0", 31 * MINUTE),),
        (clicked("gone", MINUTE),),
        (clicked("i0", 2 * MINUTE), bought("i0", MINUTE)),
        (clicked("i0", MINUTE), bought("i0", MINUTE)),
    ],
)
def test_without_a_live_touch_or_a_search_there_is_no_pull(events: tuple[Event, ...]) -> None:
    assert session_pull(look(shop_of_five(), remember(*events)), ROWS) is None


@pytest.mark.parametrize("kind", [View, Cart])
def test_any_touch_pulls_what_belongs_to_it_but_not_itself(kind: type[View | Cart]) -> None:
    pull = session_pull(look(shop_of_five(), remember(made(kind, "i0", MINUTE))), ROWS)
    assert pull == pytest.approx([0, 1, 0.5, 0.5, 0])


def test_the_closest_of_several_touches_counts_and_the_newest_most() -> None:
    context = look(shop_of_five(), remember(clicked("i0", 2 * MINUTE), clicked("i2", MINUTE)))
    assert session_pull(context, ROWS) == pytest.approx([0, 1, 0, 3**0.5 / 2, 0], abs=1e-6)
    context = look(shop_of_five(), remember(clicked("i0", MINUTE), clicked("i4", 0)))
    assert session_pull(context, ROWS) == pytest.approx([0, FADE, FADE / 2, FADE / 2, 0], abs=1e-6)


def test_a_search_pulls_what_answers_it_even_what_was_seen() -> None:
    shop = shop_of_five()
    query = shop.catalogue.vectors[0]
    assert session_pull(look(shop, vector=query), ROWS) == pytest.approx([1, 0, 0, 0.5, 0])
    context = look(shop, remember(clicked("i0", MINUTE)), query)
    assert session_pull(context, ROWS) == pytest.approx([1, 1, 0.5, 0.5, 0])


def test_a_visit_knows_what_pulled_each_item_a_touch_or_the_query() -> None:
    shop = shop_of_five()
    profile = remember(clicked("i0", MINUTE), clicked("i2", 0))
    touched = follow_visit(look(shop, profile), ROWS)
    assert touched is not None
    assert touched.because[[1, 3]].tolist() == [2, 2]  # read like the newer, which is closer than the company of i0
    asked = follow_visit(look(shop, profile, shop.catalogue.vectors[3]), ROWS)
    assert asked is not None
    assert asked.because[[1, 3]].tolist() == [2, -1]
    assert asked.pull[[1, 3]] == pytest.approx([1, 1])


def test_a_visit_lasts_half_an_hour() -> None:
    context = look(shop_of_five(), remember(clicked("i0", SESSION_S / 86_400), clicked("i1", (SESSION_S - 1) / 86_400)))
    assert names(context.shop.catalogue, live_touches(context)) == ["i1"]


def test_live_touches_are_distinct_newest_first_and_a_later_look_revives_what_was_bought() -> None:
    events = [clicked(f"i{n}", (9 - n) * MINUTE) for n in (0, 1, 2, 0)]
    revived = [clicked("i3", 5 * MINUTE), bought("i3", 4 * MINUTE), clicked("i3", 3 * MINUTE), bought("i2", 90)]
    context = look(shop_of_five(), remember(*events, *revived))
    assert names(context.shop.catalogue, live_touches(context)) == ["i3", "i2", "i1", "i0"]


def test_ties_are_relative_to_the_strongest_neighbour_or_cosines_and_fade() -> None:
    found = ties(look(shop_of_five()), np.array([0, 3]), ROWS)
    half, root = 0.5, 3**0.5 / 2
    assert found == pytest.approx(
        np.array([[1, 1, 0.5, 0.5, -1], FADE * np.array([half, root, root, 1, -half])]), abs=1e-6
    )
    assert ties(look(shop_of_five()), np.array([0]), np.array([2, 4])) == pytest.approx(np.array([[0.5, -1]]))


def test_a_neighbour_of_which_decay_has_left_nothing_pulls_nothing() -> None:
    """A device whose clock had fallen back to 2000 clicked two items; somebody clicks one of them today."""
    then = (T - TS_MIN_MS / 1000) / 86_400 - 1
    shop, _ = live(plain(5), [clicked("i0", then), clicked("i1", then - MINUTE), clicked("i0", 1, "another")])
    assert (session_pull(look(shop, remember(clicked("i0"))), ROWS) == 0).all()  # type: ignore[union-attr]


def test_nothing_to_show_is_pulled_by_nothing() -> None:
    context = look(shop_of_five(), remember(clicked("i0", MINUTE)))
    assert session_pull(context, np.empty(0, np.int64)).shape == (0,)  # type: ignore[union-attr]


def test_only_the_newest_touches_of_a_visit_count() -> None:
    context = look(live(plain(9))[0], remember(*(clicked(f"i{n}", n * MINUTE) for n in range(9))))
    assert live_touches(context).tolist() == list(range(TOUCHES))


@given(st.integers(0, 30), st.integers(0, 40), st.booleans())
@settings(deadline=None, max_examples=20)
def test_a_pull_is_a_number_from_0_to_1(seed: int, minutes: int, asks: bool) -> None:
    catalogue = stock(40, seed=seed)
    shop, profiles = live(catalogue, crowd(seed), batch=100)
    profile = remember(*(clicked(f"i{n}", (minutes + n) * MINUTE) for n in range(12)))
    pull = session_pull(look(shop, profile, catalogue.vectors[7] if asks else None), np.arange(40))
    assert (pull is None) == (minutes >= 30 and not asks)
    if pull is not None:
        assert ((pull >= 0) & (pull <= 1)).all()
