"""Signals of all items as arrays: rows that come and change, neighbours, what trends, and what was shown."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shop_helpers import T, bought, clicked, crowd, live, names, plain, shown

from recsys.catalogue import Item, item_ref
from recsys.signal_table import SignalTable, neighbour_scores
from recsys.signals import Signal

MINUTE = 1 / 1440  # of a day


def test_the_table_grows_with_the_catalogue_and_keeps_what_it_knew() -> None:
    catalogue = plain(1000)
    table = SignalTable(catalogue)
    table.update(7, Signal(T, ((item_ref("i8"), 2.0),), 3.0, 4.0, 5.0, 6, 1))
    for n in range(1000, 2500):
        catalogue.upsert(Item(item=f"i{n}", title="late"))
    table.grow()
    assert (table.neighbours[7, 0], table.weights[7, 0], table.buyers[7]) == (8, 2.0, 6)
    table.update(2400, Signal(T, ((item_ref("i2499"), 1.0), (item_ref("i3"), 0.5)), 9.0))
    rows = np.arange(2500)
    assert table.neighbours[2400, :3].tolist() == [2499, 3, -1]
    assert table.trending(T, 5).tolist() == [2400, 7]
    assert table.decayed("long", rows, T).sum() == 4.0
    found, scores = neighbour_scores(table, np.array([7, 2400]), np.ones(2))
    assert found.tolist() == [3, 8, 2499]
    assert scores == pytest.approx([0.5, 2 / np.sqrt(7), 1.0])


def test_an_update_makes_room_for_its_row_itself() -> None:
    catalogue = plain(0)
    table = SignalTable(catalogue)
    for n in range(1500):
        table.update(catalogue.upsert(Item(item=f"i{n}", title="x")), Signal(T, short=1.0))
    assert table.short[:1500].sum() == 1500
    assert table.version == 1500


def test_what_an_items_record_does_not_say_its_events_do() -> None:
    catalogue = plain(3)
    table = SignalTable(catalogue)
    catalogue.upsert(Item(item="i1", title="x", price=8.0, first_ts_ms=T * 1000 - 5000))
    for row in (0, 1):
        table.update(row, Signal(T, first_s=T - 60, priced=(T, 2.0)))
    assert catalogue.first_s[:3].tolist() == pytest.approx([T - 60, T - 5, np.nan], nan_ok=True)
    assert np.exp(catalogue.log_price[:3]) == pytest.approx([2, 8, np.nan], nan_ok=True)
    catalogue.upsert(Item(item="i1", title="x"))  # the record is silent now
    assert (catalogue.first_s[1], catalogue.log_price[1]) == (T - 60, np.float32(np.log(2)))
    table.update(0, Signal())  # a tombstone
    assert np.isnan(catalogue.first_s[0])
    assert np.isnan(catalogue.log_price[0])


def test_a_newer_state_replaces_all_of_the_older() -> None:
    table = SignalTable(plain(4))
    table.update(0, Signal(T, tuple((item_ref(f"i{n}"), 1.0) for n in (1, 2, 3))))
    table.update(0, Signal(T, ((item_ref("i3"), 1.0),)))
    assert neighbour_scores(table, np.array([0]), np.ones(1))[0].tolist() == [3]


def test_a_neighbour_that_the_catalogue_does_not_know_is_left_out() -> None:
    table = SignalTable(plain(3))
    table.update(0, Signal(T, ((123456, 9.0), (item_ref("i2"), 1.0))))
    assert neighbour_scores(table, np.array([0]), np.ones(1))[0].tolist() == [2]


def test_neighbours_of_several_items_add_up_and_popular_ones_are_damped() -> None:
    table = SignalTable(plain(4))
    for row, pairs, buyers in ((0, {3: 2.0}, 3), (1, {3: 1.0, 2: 4.0}, 0), (2, {}, 8), (3, {}, 15)):
        table.update(row, Signal(T, tuple((item_ref(f"i{n}"), w) for n, w in pairs.items()), buyers=buyers))
    found, scores = neighbour_scores(table, np.array([0, 1]), np.array([1.0, 0.5]))
    assert found.tolist() == [2, 3]
    assert scores == pytest.approx([0.5 * 4 / (1 * 3), 2 / (2 * 4) + 0.5 * 1 / (1 * 4)])


def test_no_items_have_no_neighbours() -> None:
    found, scores = neighbour_scores(SignalTable(plain(4)), np.empty(0, np.int64), np.empty(0))
    assert (len(found), len(scores)) == (0, 0)


def test_what_trends_is_what_different_users_want_lately() -> None:
    events = [clicked("i0", 1 + n * MINUTE, "bot") for n in range(200, 0, -1)]
    events += [clicked("i1", 1 - n / 100, f"u{n}") for n in range(4)]
    events += [bought("i2", 60 - n / 100, f"v{n}") for n in range(9)]  # eight half-lives ago
    shop, _ = live(plain(6), sorted(events, key=lambda event: event.ts_ms))
    assert names(shop.catalogue, shop.signals.trending(T, 9)) == ["i1", "i0", "i2"]
    assert names(shop.catalogue, shop.signals.trending(T, 1)) == ["i1"]


def test_nothing_trends_that_nobody_wants_or_that_is_not_to_be_had() -> None:
    catalogue = plain(3)
    catalogue.remove("i1")
    shop, _ = live(catalogue, [bought("i1"), bought("i2")])
    assert shop.signals.trending(T, 9).tolist() == [2]


def test_trending_is_renewed_with_the_minute() -> None:
    table = SignalTable(plain(3))
    table.update(0, Signal(T, short=1.0))
    assert table.trending(T, 9).tolist() == [0]
    table.update(1, Signal(T, short=2.0))
    assert table.trending(T + 60, 9).tolist() == [1, 0]


def test_the_share_of_all_that_was_shown() -> None:
    shop, _ = live(plain(4), [shown(["i0"] * 7 + ["i1"])])
    assert shop.signals.shown_share(np.arange(4), T) == pytest.approx([7 / 8, 1 / 8, 0, 0])


def test_a_single_showing_in_a_shop_that_showed_nothing_is_a_small_share() -> None:
    shop, _ = live(plain(1000), [shown(["i0"])])
    assert shop.signals.shown_share(np.array([0]), T) == pytest.approx([1 / 100])
    nothing, _ = live(plain(0))
    assert nothing.signals.shown_share(np.empty(0, np.int64), T).tolist() == []


def test_lists_counted_as_shown_are_as_impressions_that_came_back() -> None:
    past = [shown(["i0"], 14), bought("i1", 30)]
    counted, _ = live(plain(4), past)
    counted.signals.count_shown(np.array([0, 1, 0]), T)
    told, _ = live(plain(4), [*past, shown(["i0", "i1", "i0"])])
    rows = np.arange(4)
    assert counted.signals.shown_share(rows, T) == pytest.approx(told.signals.shown_share(rows, T))


@given(st.integers(0, 50), st.sampled_from([1, 7, 1000]))
@settings(deadline=None, max_examples=10)
def test_the_size_of_a_batch_does_not_show(seed: int, batch: int) -> None:
    events = crowd(seed)
    one, _ = live(plain(40), events)
    other, _ = live(plain(40), events, batch)
    for name in ("ts_s", "short", "long", "exposure", "buyers", "repeats"):
        np.testing.assert_allclose(getattr(one.signals, name), getattr(other.signals, name), rtol=1e-12)
    np.testing.assert_array_equal(one.signals.neighbours, other.signals.neighbours)
    np.testing.assert_array_equal(one.signals.weights, other.signals.weights)
