"""How an item's signal takes increments up: they decay, order and batches do not show, fifty neighbours stay."""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from shop_helpers import DAY_S, T

from recsys.catalogue import item_ref
from recsys.signals import KEEP_NEIGHBOURS, LONG_S, MOST_NEIGHBOURS, SHORT_S, Increment, Signal, absorb, merge

A = item_ref("a")
MIDNIGHT = T // DAY_S * DAY_S
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
