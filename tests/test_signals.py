"""What events add to what the crowd says, by hand: pairs, interest, repeats, showings."""

import msgspec
import pytest
from msgspec.structs import replace
from shop_helpers import DAY_S, T, bought, clicked, made, remember, searched, shown

from recsys.catalogue import item_ref
from recsys.events import Cart, Event, Purchase, View
from recsys.profiles import EMPTY, KEEP_PURCHASES
from recsys.signals import LONG_S, PAIR_PARTNERS, SHORT_S, Increment, Signal, Tally, _last_bought_s, absorb, merge

A, B, C = item_ref("a"), item_ref("b"), item_ref("c")
MINUTE = 1 / 1440  # of a day


def tally(*events: Event) -> dict[str | int, Increment]:
    """Increments of one user's events, one after the other; those of all days as one."""
    counted = Tally()
    for at, event in enumerate(events):
        counted.add(event, remember(*events[:at]))
    found: dict[str | int, Increment] = {}
    for key, inc in counted.increments():
        found[key] = merge(found[key], inc) if key in found else inc
    return found


def test_no_events_add_nothing() -> None:
    assert not list(Tally().increments())


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


def test_an_event_of_a_user_without_a_past_makes_no_pairs() -> None:
    counted = Tally()
    counted.add(bought("a"), EMPTY)
    found = dict(counted.increments())
    assert list(found) == ["a"]
    assert not found["a"].partners


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


def test_events_of_a_century_fit_into_one_batch() -> None:
    first, last = (bought("a") for _ in range(2))
    first, last = replace(first, ts_ms=946_684_800_000), replace(last, ts_ms=4_102_444_800_000)
    for one, two in ((first, last), (last, first)):
        counted = tally(one, two, bought("b"))
        assert (counted["a"].short, counted["a"].buyers, counted["b"].short) == (1.0, 2, 1.0)


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
