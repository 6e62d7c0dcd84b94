"""The price of exposure: an order by hand, and what must hold for all relevances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.exposure import HALF, MOST, price_exposure

LISTS = st.lists(st.tuples(st.floats(-60, 60), st.floats(0, 1)), min_size=1, max_size=30)


def test_what_is_sure_stays_and_what_is_a_little_likely_for_all_makes_way() -> None:
    relevance = np.array([6.0, 2.0, 1.9])
    shown = np.array([0.5, 0.5, 0.0])
    after = relevance - price_exposure(relevance, shown, 1.0)
    assert np.argsort(-after).tolist() == [0, 2, 1]


@given(LISTS, st.floats(0, 100))
def test_the_price_is_finite_and_never_a_reward(rows: list[tuple[float, float]], weight: float) -> None:
    relevance, shown = np.array(rows).T
    price = price_exposure(relevance, shown, weight)
    assert np.isfinite(price).all()
    assert ((price >= 0) & (price <= MOST)).all()
    assert (price[shown == 0] == 0).all()


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 0.2)), min_size=1, max_size=30))
def test_the_order_is_that_of_the_probabilities_less_the_showings(rows: list[tuple[float, float]]) -> None:
    relevance, shown = np.array(rows).T
    share = np.exp(relevance) / np.exp(relevance).sum()
    worth = share / (share + HALF) - shown
    after = relevance - price_exposure(relevance, shown, 1.0)
    for one, other in zip(np.argsort(-worth)[:-1], np.argsort(-worth)[1:], strict=True):
        if worth[[one, other]].min() > 0.001:  # below FLOOR and beyond MOST the price is another
            assert after[one] >= after[other] - 1e-9


def test_no_candidates_pay_nothing() -> None:
    assert price_exposure(np.empty(0), np.empty(0), 0.1).tolist() == []


@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_the_more_it_was_shown_the_more_it_pays(weight: float) -> None:
    relevance = np.zeros(6)
    price = price_exposure(relevance, np.arange(6) / 6, weight)
    assert (np.diff(price) > 0).all()
