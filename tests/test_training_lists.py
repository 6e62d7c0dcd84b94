"""The lists that training learns from: their labels, and that nothing of the future shows in them."""

import msgspec
import numpy as np
from numpy.typing import NDArray
from past_helpers import DAY_S, T, past
from shop_helpers import unit_rows
from training_helpers import SOURCES, drawn, listed, make, together

from models.examples import EMPTY, LABEL_WINDOW_S, Lists, join, make_lists, make_strangers, next_sessions
from models.history import History
from models.sequence_tower import TRAIL_PADDED
from models.world import World
from recsys.features import NAMES
from recsys.policy import Policy
from recsys.profiles import VIEW

__all__ = ["drawn"]  # the fixture

# --- labels -----------------------------------------------------------------------------------------------------------


def labels(rows: list[tuple[int, int, float]], at_days: float = 0, until_days: float = 100) -> dict[int, list[int]]:
    found = next_sessions(past(rows, items=9), round(T + at_days * DAY_S), round(T + until_days * DAY_S))
    return {user: session.items.tolist() for user, session in found.items()}


def test_labels_are_the_distinct_items_of_the_next_session() -> None:
    rows = [(0, 1, -1), (0, 3, 2), (0, 2, 2), (0, 3, 2), (0, 4, 5), (1, 5, 0), (2, 6, -0.01)]
    assert labels(rows) == {0: [2, 3], 1: [5]}


def test_a_user_who_stays_away_for_four_weeks_says_nothing() -> None:
    window_d = LABEL_WINDOW_S / DAY_S
    assert labels([(0, 1, window_d - 0.001), (1, 2, window_d)]) == {0: [1]}


def test_a_purchase_at_the_end_of_what_may_be_used_is_no_label() -> None:
    assert labels([(0, 1, 3), (1, 2, 2.999)], until_days=3) == {1: [2]}
    assert labels([(0, 1, 3)], until_days=0) == {}


def test_a_view_is_no_label() -> None:
    assert next_sessions(past([(0, 1, 1)], items=2, action=VIEW), T, T + 9 * DAY_S) == {}


def test_a_look_is_a_label_of_the_head_for_clicks_and_its_user_takes_no_buyers_place() -> None:
    looks = [(user, user, day) for user in range(6) for day in (-9, -2, 3)]
    buys = [(user, 8, day) for user in (6, 7) for day in (-9, -2, 3)]
    both = past(looks, items=9, action=VIEW), past(buys, items=9)
    lists = make(together(*both), T, T + 20 * DAY_S, per_cut=2)
    starts = [0, *lists.ends[:-1].tolist()]
    spans = list(zip(starts, lists.ends.tolist(), strict=True))
    assert [bool(lists.bought[start:end].any()) for start, end in spans] == [True, True, False, False]
    assert [bool(lists.clicked[start:end].any()) for start, end in spans] == [False, False, True, True]
    assert lists.heads == 3


# --- lists ------------------------------------------------------------------------------------------------------------


def test_a_list_holds_what_was_bought_next_and_says_what_was_known(drawn: History) -> None:
    lists = make(drawn, T, T + 20 * DAY_S)
    assert lists.features.shape == (lists.ends[-1], len(NAMES))
    assert len(lists.bought) == len(lists.seen) == lists.ends[-1]
    assert np.isfinite(lists.features).all()
    assert len(lists.ends) > 20
    starts = [0, *lists.ends[:-1].tolist()]
    assert all(lists.bought[start:end].any() for start, end in zip(starts, lists.ends.tolist(), strict=True))
    np.testing.assert_array_equal(lists.seen, lists.features[:, NAMES.index("own_count")] > 0)


def test_what_happens_at_or_after_the_end_does_not_show_in_the_lists(drawn: History) -> None:
    until_s = T + 10 * DAY_S
    known = drawn.before(until_s)
    elsewhere = msgspec.structs.replace(drawn, item=np.where(drawn.ts_s >= until_s, 0, drawn.item).astype(np.int32))
    for other in (known, elsewhere):
        for one, same in zip(columns(make(drawn, T, until_s)), columns(make(other, T, until_s)), strict=True):
            np.testing.assert_array_equal(one, same)


def test_what_happens_at_or_after_the_cut_shows_in_the_labels_only(drawn: History) -> None:
    shuffled = drawn.item.copy()
    shuffled[drawn.ts_s >= T] = np.random.default_rng(0).permutation(shuffled[drawn.ts_s >= T])
    one, other = make(drawn, T, T + 20 * DAY_S), make(msgspec.structs.replace(drawn, item=shuffled), T, T + 20 * DAY_S)
    rows = {tuple(row) for row in one.features.tolist()}
    common = [tuple(row) in rows for row in other.features.tolist()]
    assert np.mean(common) > 0.5  # of the users that have a list in both pasts
    assert one.bought.tolist() != other.bought.tolist()


def columns(lists: Lists) -> list[NDArray[np.generic]]:
    return [lists.features, lists.bought, lists.seen, lists.ends]


def test_a_moment_gives_as_many_lists_as_asked_drawn_by_the_seed(drawn: History) -> None:
    few, again, others = (make(drawn, T, T + 20 * DAY_S, per_cut=7, seed=seed) for seed in (0, 0, 1))
    assert 0 < len(few.ends) <= 7
    np.testing.assert_array_equal(few.features, again.features)
    assert few.features.shape != others.features.shape or (few.features != others.features).any()


def test_a_moment_after_which_nobody_buys_what_is_known_gives_no_lists() -> None:
    history = past([(0, 0, -9), (1, 1, 9)], items=2)  # user 0 has no future, and item 1 no past
    assert columns(make(history, T, T + 20 * DAY_S))[3].tolist() == []


def test_who_comes_for_the_first_time_gives_a_list_too() -> None:
    history = past([(0, 0, -9), (1, 0, 9)], items=2)
    lists = make(history, T, T + 20 * DAY_S)
    assert (lists.rows.tolist(), lists.bought.tolist(), lists.seen.tolist()) == ([0], [True], [False])


def strangers(known: int, newcomers: int) -> tuple[Lists, Lists]:
    """Lists of a moment, and those made for nobody known beside them; users buy alike."""
    rows = [(user, user % 3, -9) for user in range(known)] + [(user, user % 3, 3) for user in range(known + newcomers)]
    world = World(past(rows, items=3), unit_rows(3))
    rng, until_s = np.random.default_rng(0), T + 20 * DAY_S
    lists = make_lists(world, T, until_s, SOURCES, Policy(), 1000, rng)
    return lists, make_strangers(world, lists, until_s, SOURCES, Policy(), rng)


def test_where_nearly_all_are_known_one_list_in_twenty_is_made_for_nobody_known() -> None:
    lists, made = strangers(known=59, newcomers=1)
    assert (len(lists.ends), len(made.ends)) == (60, 2)
    for name in ("user_purchases", "own_seen", "own_count", "ease"):
        assert not made.features[:, NAMES.index(name)].any(), name
    assert not made.trails["marks"].any()
    assert made.bought.reshape(2, -1).sum(axis=1).tolist() == [1, 1], "the labels are those of users who have a past"
    assert (made.label_s == T + 3 * DAY_S).all()


def test_where_enough_come_for_the_first_time_no_list_is_made_up() -> None:
    assert len(strangers(known=57, newcomers=3)[1].ends) == 0


def test_lists_are_joined_end_to_end() -> None:
    some = listed(np.ones((3, len(NAMES)), np.float32), np.array([1, 0, 1], bool), np.zeros(3, bool), np.array([1, 3]))
    both = join([some, some])
    assert both.trails["marks"].shape == (4, TRAIL_PADDED, 2)
    assert both.ends.tolist() == [1, 3, 4, 6]
    assert both.bought.tolist() == [True, False, True] * 2
    assert join([EMPTY, some, EMPTY]).ends.tolist() == [1, 3]
    assert EMPTY.features.shape == (0, len(NAMES))
