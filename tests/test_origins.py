"""The protocol: who is asked at a moment, what can be found then, and what counts as found."""

import msgspec
import numpy as np
import pytest
from evaluate_helpers import habits
from past_helpers import DAY_S, T, past

from models.history import COLUMNS
from models.origins import MIN_ITEMS, WINDOW_S, default_origins, make_origin, parse_origins
from recsys.errors import Misuse
from recsys.profiles import VIEW


def test_the_catalogue_is_what_enough_different_users_had_bought_before() -> None:
    rows = habits(4) + [(user, 7, -19.0) for user in range(3)] + [(3, 7, 1.0)]
    rows += [(0, 5, -3.0), (0, 5, -2.0), (1, 5, -1.0), (2, 5, 0.0), (0, 6, -1.0)]
    origin, _ = make_origin(past(rows, 8), T, min_buyers=3)
    assert origin.rows.tolist() == [0, 1, 2, 3, 4, 7]  # item 5: three buyers, but the third buys at T
    assert make_origin(past(rows, 8), T, min_buyers=2)[0].rows.tolist() == [0, 1, 2, 3, 4, 5, 7]


def test_counts_and_masks_are_as_of_the_moment() -> None:
    rows = [*habits(2), (0, 5, -3.0), (0, 5, -2.0), (1, 5, 0.0)]
    origin, _ = make_origin(past(rows, 6), T, min_buyers=1)
    assert origin.users.tolist() == [1]
    assert origin.counts.toarray().tolist() == [[1, 1, 1, 1, 1, 2], [1, 1, 1, 1, 1, 0]]
    assert origin.seen.tolist() == [[True] * 5 + [False]]
    assert (origin.ts_s < T).all()
    assert origin.day == "2011-03-14"


def test_only_users_with_enough_distinct_items_are_asked() -> None:
    assert MIN_ITEMS == 5
    rows = habits(2) + [(2, item % 4, -9.0 - item) for item in range(9)] + [(user, 5, 1.0) for user in range(3)]
    rows += [(0, 5, -30.0)]
    _, truth = make_origin(history := past(rows, 6), T, min_buyers=1)
    assert make_origin(history, T, min_buyers=1)[0].users.tolist() == [0, 1]
    assert truth.all == [{5}, {5}]


def test_the_truth_is_the_first_session_that_can_be_hit() -> None:
    rows = [*habits(2), (1, 5, -5.0)]
    rows += [(0, 7, 1.0)]  # nobody had bought 7: it cannot be found
    rows += [(0, 0, 2.0), (0, 1, 2.0), (0, 0, 2.0), (0, 7, 2.0)]  # repeats
    rows += [(0, 5, 3.0), (0, 0, 3.0), (0, 2, 4.0)]
    origin, truth = make_origin(past(rows, 8), T, min_buyers=1)
    assert origin.users.tolist() == [0]
    assert truth.all == [{0, 1}]
    assert truth.new == [{5}]  # the first session with something he had not bought, without the repeat in it


def test_a_session_at_the_moment_counts_and_one_four_weeks_later_does_not() -> None:
    rows = habits(3) + [(0, 0, 0.0), (1, 0, 27.99), (2, 0, 28.0), (0, 5, -1.0), (1, 5, 0.5)]
    origin, truth = make_origin(past(rows, 6), T, min_buyers=1)
    assert origin.users.tolist() == [0, 1]
    assert truth.all == [{0}, {5}]
    assert truth.places("new") == [1]


def test_views_are_no_purchases() -> None:
    bought, viewed = past([*habits(2), (0, 5, -1.0), (1, 5, 1.0)], 8), past([(0, 6, -9.0), (1, 7, 0.5)], 8, VIEW)
    columns = {name: np.concatenate([getattr(bought, name), getattr(viewed, name)]) for name in COLUMNS}
    order = np.argsort(columns["ts_s"], kind="stable")
    both = msgspec.structs.replace(bought, **{name: column[order] for name, column in columns.items()})
    origin, truth = make_origin(both, T, min_buyers=1)
    assert origin.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert truth.all == [{5}]


def test_a_moment_with_nobody_to_ask_says_what_to_do() -> None:
    with pytest.raises(Misuse, match=r"2011-03-14 there is nobody to ask.*--min-buyers"):
        make_origin(past(habits(2), 5), T, min_buyers=1)


def test_default_moments_are_four_weeks_apart_and_the_last_window_ends_with_the_data() -> None:
    history = past([(0, 0, -100.0), (0, 0, 40.5)], 1)
    origins = default_origins(history)
    assert np.diff(origins).tolist() == [WINDOW_S, WINDOW_S]
    assert origins[-1] == T + 12 * DAY_S


@pytest.mark.parametrize("text", ["2011-13-01", "yesterday", "2011-08-19;2011-09-02", ""])
def test_moments_that_are_no_dates_are_refused(text: str) -> None:
    with pytest.raises(Misuse, match="2011-08-19,2011-09-02"):
        parse_origins(text)
