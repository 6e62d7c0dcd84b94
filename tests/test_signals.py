"""What the crowd says, by hand: pairs, interest, decay, the fifty heaviest neighbours, and all of it as arrays."""

from collections.abc import Sequence
from functools import reduce

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from shop_helpers import DAY_S, T, bought, clicked, crowd, live, made, names, plain, remember, searched, shown

from recsys.catalogue import Item, item_ref
from recsys.events import Cart, Event, Purchase, View
from recsys.profiles import EMPTY, KEEP_PURCHASES
from recsys.signal_table import SignalTable, neighbour_scores
from recsys.signals import (
    KEEP_NEIGHBOURS,
    LONG_S,
    MOST_NEIGHBOURS,
    PAIR_PARTNERS,
    SHORT_S,
    Increment,
    Signal,
    Tally,
    _last_bought_s,
    absorb,
    merge,
)

A, B, C = item_ref("a"), item_ref("b"), item_ref("c")
MINUTE = 1 / 1440  # of a day
MIDNIGHT = T // DAY_S * DAY_S


def tally(*events: Event) -> dict[str | int, Increment]:
    """Increments of one user's events, one after the other; those of all days as one."""
    counted = Tally()
    for at, event in enumerate(events):
        counted.add(event, remember(*events[:at]))
    found: dict[str | int, Increment] = {}
    for key, inc in counted.increments():
        found[key] = merge(found[key], inc) if key in found else inc
    return found


# --- what events add --------------------------------------------------------------------------------------------------


def test_a_basket_of_three_makes_three_pairs_each_seen_from_both_ends() -> None:
    found = tally(bought("a"), bought("b"), bought("c"))
    assert dict(found["c"].partners) == {A: 1.0, B: 1.0}
    assert dict(found["b"].partners) == {A: 1.0}
    assert dict(found[A].partners) == {B: 1.0, C: 1.0}
    assert dict(found[B].partners) == {C: 1.0}
    assert not found["a"].partners


def test_a_pair_weighs_the_product_of_the_surest_actions() -> None:
    found = tally(made(View, "a", 3 * MINUTE), made(Cart, "a", 2 * MINUTE), clicked("b", MINUTE))
    assert found["b"].partners == ((A, pytest.approx(0.3 * 0.6)),)


def test_an_item_is_no_partner_of_itself() -> None:
    assert not any(inc.partners for inc in tally(clicked("a", MINUTE), bought("a")).values())


@pytest.mark.parametrize(("days", "together"), [(1.0, True), (1.00002, False), (-1.0, True), (-1.00002, False)])
def test_what_is_touched_within_a_day_belongs_together_late_or_not(days: float, together: bool) -> None:
    found = tally(bought("a", days_ago=5), bought("b", days_ago=5 - days))
    assert bool(found["b"].partners) is together


def test_a_late_event_meets_those_of_its_own_day() -> None:
    found = tally(bought("a", days_ago=5), bought("x", days_ago=1), bought("b", days_ago=5))
    assert dict(found["b"].partners) == {A: 1.0}


def test_a_wholesalers_basket_pairs_each_line_with_the_newest_few() -> None:
    basket = [bought(f"i{n}", days_ago=(100 - n) * MINUTE) for n in range(100)]
    found = tally(*basket)
    assert [ref for ref, _ in found["i99"].partners] == [item_ref(f"i{n}") for n in range(98, 98 - PAIR_PARTNERS, -1)]


def test_a_users_thousand_clicks_of_a_day_are_one_interest() -> None:
    found = tally(*(clicked("a", days_ago=n / 100) for n in range(90, 0, -1)))
    assert (found["a"].buyers, found["a"].long) == (0, pytest.approx(0.3, rel=0.02))  # of the first, a day ago


def test_interest_counts_once_a_day_however_many_items_lie_between() -> None:
    found = tally(*(clicked(f"i{n % 25}", days_ago=(100 - n) * MINUTE) for n in range(100)))
    assert [found[f"i{n}"].long for n in range(25)] == pytest.approx([0.3] * 25, rel=0.01)
    lines = [made(Purchase, f"i{n % 30}", id=str(n)) for n in range(60)]  # each item on two lines of one receipt
    found = tally(*lines)
    assert {(found[f"i{n}"].buyers, found[f"i{n}"].repeats, found[f"i{n}"].long) for n in range(30)} == {(1, 0, 1.0)}


def test_a_click_and_the_purchase_after_it_are_one_purchase() -> None:
    found = tally(made(View, "a", 2 * MINUTE), clicked("a", MINUTE), bought("a"), clicked("a"))
    assert (found["a"].long, found["a"].buyers, found["a"].repeats) == (pytest.approx(1.0, rel=1e-4), 1, 0)


def test_who_comes_back_another_day_is_interested_again_and_a_repeat() -> None:
    found = tally(bought("a", days_ago=9), bought("a", days_ago=2), bought("a", days_ago=2 - MINUTE))
    seven_days = (2 - MINUTE - 9) * DAY_S
    assert found["a"].long == pytest.approx(0.5 ** (-seven_days / LONG_S) + 1, rel=1e-4)
    assert found["a"].short == pytest.approx(0.5 ** (-seven_days / SHORT_S) + 1, rel=1e-4)
    assert (found["a"].buyers, found["a"].repeats) == (2, 1)
    assert found["a"].gap_d == 7
    assert found["a"].fresh_long == pytest.approx(0.5 ** (-seven_days / LONG_S), rel=1e-4)


def test_a_repeat_of_what_was_bought_before_the_purchases_that_are_kept_is_no_first_purchase() -> None:
    counted = Tally()
    counted.add(bought("a"), remember(bought("a", 400), *(bought("b", 2 + n / 100) for n in range(KEEP_PURCHASES))))
    ((_, inc),) = counted.increments()
    assert (inc.buyers, inc.repeats, inc.fresh_long, inc.gap_d) == (1, 0, 0, 0)


def test_a_key_that_only_looks_like_the_items_across_two_records_is_no_purchase() -> None:
    key = item_ref("a").to_bytes(6)
    # The key straddles the end of one record and the beginning of the next.
    log = bytes(8) + key[:2] + key[2:] + bytes(6)
    assert _last_bought_s(log, key) is None
    assert _last_bought_s(bytes(3) + b"\x07" + key + log, key) == 7


def test_showings_are_counted_each_and_searches_not_at_all() -> None:
    found = tally(shown(["a", "b"], 1), shown(["a"]), searched("a"))
    assert {key: inc.exposure for key, inc in found.items()} == {"a": 1 + 0.5 ** (1 / 7), "b": 1}
    assert not any(inc.long or inc.short or inc.partners for inc in found.values())


def test_an_increment_stands_at_the_newest_event_on_its_item() -> None:
    found = tally(bought("a", 2), bought("b", 1), bought("a", 4))
    assert (found["a"].ts_s, found["b"].ts_s) == (T - 2 * DAY_S, T - DAY_S)
    assert found["a"].long == pytest.approx(1 + 0.5 ** (2 / 56))


def test_an_increment_written_before_there_was_a_fast_figure_is_still_read() -> None:
    old = msgspec.msgpack.encode((T, ((A, 2.0),), 3.0, 4, 1, 5))
    signal = absorb(Signal(), msgspec.msgpack.decode(old, type=Increment))
    assert signal == Signal(T, ((A, 2.0),), 3.0, 3.0, 5.0, 4, 1)


def test_a_batch_over_midnight_makes_an_increment_of_each_day_the_earlier_first() -> None:
    counted = Tally()
    for days_ago in (0, 1, 0):
        counted.add(bought("b", days_ago, user=f"u{days_ago}"), EMPTY)
    assert [(key, inc.ts_s, inc.buyers) for key, inc in counted.increments()] == [("b", T - DAY_S, 1), ("b", T, 2)]


def test_a_batch_makes_one_increment_a_key_however_many_users_are_in_it() -> None:
    counted = Tally()
    for user in range(30):
        counted.add(bought("b", user=f"u{user}"), remember(bought("a", MINUTE, user=f"u{user}")))
    found = list(counted.increments())
    assert [key for key, _ in found] == ["b", A]
    assert found[0][1] == Increment(T, ((A, 30.0),), 30.0, 30, short=30.0, fresh_long=30.0, fresh_short=30.0, first_s=T)
    assert found[1][1] == Increment(T, ((B, 30.0),), short=0.0)


def test_an_items_first_event_says_when_it_came_and_its_first_price_stays() -> None:
    prices = ((2, None), (1, 5.0), (0, 6.0))
    found = tally(shown(["a"], 9), *(replace(bought("a", days_ago), price=price) for days_ago, price in prices))
    assert (found["a"].first_s, found["a"].priced) == (T - 2 * DAY_S, (T - DAY_S, 5.0))
    assert (found[A].first_s if A in found else 0) == 0  # a partner is no event on it
    state = absorb(absorb(Signal(), found["a"]), Increment(T, first_s=T - 3 * DAY_S))  # a late one came first
    assert (state.first_s, state.priced) == (T - 3 * DAY_S, (T - DAY_S, 5.0))


def test_an_item_that_was_met_before_its_first_day_was_kept_is_not_new_today() -> None:
    today = Increment(T, long=1.0, first_s=T)
    assert absorb(Signal(T - DAY_S, long=3.0), today).first_s == 0
    assert absorb(Signal(T - DAY_S, exposure=3.0), today).first_s == T  # shown only


def test_no_events_add_nothing() -> None:
    assert not list(Tally().increments())


# --- states -----------------------------------------------------------------------------------------------------------


INCREMENTS = st.builds(
    Increment,
    st.just(T) | st.integers(T - 30 * DAY_S, T),
    st.dictionaries(st.integers(1, 20), st.floats(0.01, 5), max_size=4).map(lambda found: tuple(found.items())),
    st.floats(0, 5),
    st.integers(0, 3),
    st.integers(0, 3),
    st.floats(0, 9),
    st.none() | st.floats(0, 5),
    st.floats(0, 5),
    st.floats(0, 5),
    st.floats(0, 90),
    st.integers(T - 30 * DAY_S, T),
    st.none() | st.tuples(st.integers(T - 3, T), st.sampled_from([1.0, 2.0])),
).map(lambda inc: inc if inc.long > 1e-9 else replace(inc, long=0.0, first_s=0))


def same(one: Signal, two: Signal) -> None:
    for name in ("ts_s", "buyers", "repeats", "first_s", "priced"):
        assert getattr(one, name) == getattr(two, name)
    for name in ("short", "long", "exposure", "fresh_short", "fresh_long", "gap_d"):
        assert getattr(one, name) == pytest.approx(getattr(two, name))
    assert dict(one.neighbours) == pytest.approx(dict(two.neighbours))


def fold(increments: Sequence[Increment], signal: Signal = Signal()) -> Signal:  # noqa: B008 - frozen
    for inc in increments:
        signal = absorb(signal, inc)
    return signal


def test_figures_halve_after_their_half_life() -> None:
    inc = Increment(T, ((A, 8.0),), long=8.0, buyers=3, repeats=1, exposure=8)
    later = absorb(absorb(Signal(), inc), Increment(T + SHORT_S))
    assert (later.short, later.exposure) == (4.0, 4.0)
    assert later.long == pytest.approx(8 * 0.5 ** (1 / 8))
    assert (later.buyers, later.repeats, later.ts_s) == (3, 1, T + SHORT_S)
    latest = absorb(later, Increment(T + LONG_S))
    assert (latest.short, latest.long, latest.neighbours) == (8 / 2**8, pytest.approx(4.0), ((A, pytest.approx(4.0)),))


def test_a_late_increment_counts_with_what_decay_has_left_of_it() -> None:
    late = absorb(Signal(ts_s=T), Increment(T - SHORT_S, ((A, 1.0),), long=1.0, buyers=1, exposure=2))
    assert (late.ts_s, late.short, late.exposure, late.buyers) == (T, 0.5, 1.0, 1)
    assert late.neighbours == ((A, pytest.approx(0.5 ** (1 / 8))),)


@given(st.lists(INCREMENTS, max_size=6).flatmap(lambda found: st.tuples(st.just(found), st.permutations(found))))
def test_the_order_in_which_increments_arrive_does_not_show(pair: tuple[list[Increment], list[Increment]]) -> None:
    same(fold(pair[0]), fold(pair[1]))


@given(INCREMENTS, st.lists(INCREMENTS, min_size=1, max_size=6))
def test_increments_merged_first_are_the_same(before: Increment, batch: list[Increment]) -> None:
    same(fold([reduce(merge, batch)], fold([before])), fold(batch, fold([before])))


@given(INCREMENTS, INCREMENTS)
def test_merging_does_not_ask_which_is_first(one: Increment, two: Increment) -> None:
    forth, back = merge(one, two), merge(two, one)
    assert dict(forth.partners) == dict(back.partners)
    assert replace(forth, partners=()) == replace(back, partners=())


def test_the_heaviest_neighbours_are_kept_ties_by_name() -> None:
    partners = tuple((ref, float(ref % 40)) for ref in range(1, 200))
    by_weight = [ref for ref, _ in sorted(partners, key=lambda pair: (-pair[1], pair[0]))]
    today = absorb(Signal(), Increment(MIDNIGHT, partners))
    assert dict(today.neighbours) == dict(partners)
    tomorrow = absorb(today, Increment(MIDNIGHT + DAY_S))
    assert [ref for ref, _ in tomorrow.neighbours] == by_weight[:KEEP_NEIGHBOURS]


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 5, 40]))
def test_which_neighbours_are_forgotten_does_not_depend_on_batches(seed: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    days = [
        [Increment(MIDNIGHT + day * DAY_S + at * 60, ((int(rng.integers(120)), 1.0),)) for at in range(80)]
        for day in range(4)
    ]
    one_by_one = fold([inc for day in days for inc in day])
    batches = [reduce(merge, day[at : at + batch]) for day in days for at in range(0, len(day), batch)]
    in_batches, after = fold(batches), Increment(MIDNIGHT + 4 * DAY_S)
    assert len(one_by_one.neighbours) > KEEP_NEIGHBOURS
    same(absorb(one_by_one, after), absorb(in_batches, after))


def test_a_day_of_too_many_neighbours_forgets_the_lightest_at_once() -> None:
    partners = tuple((ref, float(ref)) for ref in range(1, MOST_NEIGHBOURS + 100))
    assert absorb(Signal(), Increment(T, partners)).neighbours == partners[: -MOST_NEIGHBOURS - 1 : -1]


def test_a_newcomer_has_a_day_to_become_a_neighbour() -> None:
    known = absorb(Signal(), Increment(MIDNIGHT - 1, tuple((ref, 3.0) for ref in range(1, KEEP_NEIGHBOURS + 1))))
    one_by_one = fold([Increment(MIDNIGHT + hour * 3600, ((99, 1.0),)) for hour in range(4)], known)
    assert dict(one_by_one.neighbours)[99] == pytest.approx(4.0, rel=0.01)
    assert 99 in dict(absorb(one_by_one, Increment(MIDNIGHT + DAY_S)).neighbours)


# --- as arrays --------------------------------------------------------------------------------------------------------


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


def test_an_update_makes_room_for_its_row_itself() -> None:
    catalogue = plain(0)
    table = SignalTable(catalogue)
    for n in range(1500):
        table.update(catalogue.upsert(Item(item=f"i{n}", title="x")), Signal(T, short=1.0))
    assert table.short[:1500].sum() == 1500
    assert table.version == 1500


def test_a_neighbour_that_the_catalogue_does_not_know_is_left_out() -> None:
    table = SignalTable(plain(3))
    table.update(0, Signal(T, ((123456, 9.0), (item_ref("i2"), 1.0))))
    assert neighbour_scores(table, np.array([0]), np.ones(1))[0].tolist() == [2]


def test_a_newer_state_replaces_all_of_the_older() -> None:
    table = SignalTable(plain(4))
    table.update(0, Signal(T, tuple((item_ref(f"i{n}"), 1.0) for n in (1, 2, 3))))
    table.update(0, Signal(T, ((item_ref("i3"), 1.0),)))
    assert neighbour_scores(table, np.array([0]), np.ones(1))[0].tolist() == [3]


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


def test_events_of_a_century_fit_into_one_batch() -> None:
    first, last = (bought("a") for _ in range(2))
    first, last = replace(first, ts_ms=946_684_800_000), replace(last, ts_ms=4_102_444_800_000)
    for one, two in ((first, last), (last, first)):
        counted = tally(one, two, bought("b"))
        assert (counted["a"].short, counted["a"].buyers, counted["b"].short) == (1.0, 2, 1.0)


def test_an_event_of_a_user_without_a_past_makes_no_pairs() -> None:
    counted = Tally()
    counted.add(bought("a"), EMPTY)
    found = dict(counted.increments())
    assert list(found) == ["a"]
    assert not found["a"].partners
