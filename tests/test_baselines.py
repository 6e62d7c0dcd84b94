"""What ours has to beat: one battery for every baseline, then each against its definition."""

from functools import partial

import numpy as np
import pytest
from msgspec.structs import replace
from past_helpers import T, draw_past, past

from models.baselines import FAMILIES, NEIGHBOURS, Score, Scored, ease, item_neighbours, own_frequency, popularity
from models.origins import TASKS, WINDOW_S, Origin, Task, make_origin, top_k
from recsys.errors import Misuse

EVERY = pytest.mark.parametrize(
    "score",
    [pytest.param(score, id=f"{f.name} {setting}") for f in FAMILIES for setting, score in f.settings.items()],
)


def moment(seed: int = 0, min_buyers: int = 5, items: int = 40) -> Origin:
    return make_origin(draw_past(seed, items=items), T, min_buyers)[0]


def bought(origin: Origin) -> np.ndarray:  # type: ignore[type-arg]
    return (origin.counts.toarray() > 0).astype(float)


# --- the battery ------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("k", [1, 10, 200])
def test_a_list_holds_distinct_items_of_the_catalogue_and_for_new_none_bought(score: Score, task: Task, k: int) -> None:
    origin = moment(min_buyers=20)  # a catalogue of some of the items: columns are not rows
    lists = Scored("x", score).rank(origin, task, k)
    assert lists.shape == (len(origin.users), k)
    assert lists.dtype == np.int64
    past_items = origin.history.before(T)
    for user, ranked in zip(origin.users.tolist(), lists.tolist(), strict=True):
        shown = [row for row in ranked if row >= 0]
        assert ranked == shown + [-1] * (k - len(shown))
        assert len(set(shown)) == len(shown)
        assert set(shown) <= set(origin.rows.tolist())
        if task == "new":
            assert not set(shown) & set(past_items.item[past_items.user == user].tolist())


@EVERY
def test_scores_are_finite_one_for_each_user_and_item(score: Score) -> None:
    origin = moment()
    scores = score(origin)
    assert scores.shape == (len(origin.users), len(origin.rows))
    assert np.isfinite(scores).all()


@EVERY
def test_what_happens_later_changes_nothing(score: Score) -> None:
    whole = draw_past(3)
    origin, _ = make_origin(whole, T)
    later = whole.ts_s >= T
    item = np.where(later, whole.item[::-1], whole.item).astype(np.int32)
    other = make_origin(replace(whole, item=item), T)[0]
    both, at, there = np.intersect1d(origin.users, other.users, return_indices=True)
    assert len(both) > 20
    np.testing.assert_array_equal(score(origin)[at], score(other)[there])


@EVERY
def test_each_moment_is_scored_afresh_and_once_for_both_tasks(score: Score) -> None:
    calls = []

    def counted(origin: Origin) -> np.ndarray:  # type: ignore[type-arg]
        calls.append(origin)
        return score(origin)

    one, two = moment(1), moment(2)
    model = Scored("x", counted)
    lists = [model.rank(origin, task, 10) for origin in (one, two) for task in TASKS]
    assert calls == [one, two]
    alone = Scored("x", score).rank(two, "all", 10)
    assert (lists[3] == alone).all()


@EVERY
def test_names_of_users_and_items_do_not_matter(score: Score) -> None:
    """The same past with users and items numbered backwards gives the same scores, turned round."""
    one = draw_past(4, items=30)
    user, item = len(one.user_ids) - 1 - one.user, len(one.items) - 1 - one.item
    two = replace(one, user=user, item=item, user_ids=one.user_ids[::-1], items=one.items[::-1])
    a, b = (make_origin(history, T)[0] for history in (one, two))
    np.testing.assert_allclose(score(a), score(b)[::-1, ::-1], atol=1e-4)


# --- choosing the k best ----------------------------------------------------------------------------------------------


def test_equal_scores_go_by_row_and_minus_infinity_is_never_shown() -> None:
    origin = moment()
    scores = np.zeros((len(origin.users), len(origin.rows)), np.float32)
    assert (top_k(scores, origin, "all", 5) == origin.rows[:5]).all()
    scores[:, 2:] = -np.inf
    assert (top_k(scores, origin, "all", 4) == [*origin.rows[:2], -1, -1]).all()


def test_scores_that_are_not_numbers_are_refused() -> None:
    origin = moment()
    scores = np.zeros((len(origin.users), len(origin.rows)), np.float32)
    scores[0, 1] = np.nan
    with pytest.raises(Misuse, match="NaN"):
        top_k(scores, origin, "all", 5)


# --- each baseline against its definition -----------------------------------------------------------------------------


def by_hand() -> Origin:
    """User 0 buys items 0–4 long ago and 0 twice; users 1 and 2 lately. All come back."""
    rows = [(0, item, -100.0) for item in range(5)] + [(0, 0, -50.0)]
    rows += [(user, item, -10.0) for user in (1, 2) for item in (1, 2, 3, 4, 5)]
    rows += [(0, 5, 1.0), (1, 0, 1.0), (2, 0, 1.0)]
    return make_origin(past(rows, 6), T, min_buyers=1)[0]


def test_popularity_counts_users_once_and_recent_popularity_forgets() -> None:
    origin = by_hand()
    np.testing.assert_allclose(popularity(origin)[0] * 4, [1, 3, 3, 3, 3, 2])  # of three buyers, plus one
    np.testing.assert_allclose(popularity(origin, WINDOW_S)[0] * 3, [0, 2, 2, 2, 2, 2])
    assert (popularity(origin)[0] == popularity(origin)[2]).all()


def test_own_frequency_halves_with_age_and_recent_buyers_break_ties() -> None:
    origin = by_hand()
    lately = np.array([0, 2, 2, 2, 2, 2]) / 3
    np.testing.assert_allclose(own_frequency(origin, np.inf)[0], [2, 1, 1, 1, 1, 0] + lately)
    np.testing.assert_allclose(own_frequency(origin, 50)[0], [0.75, 0.25, 0.25, 0.25, 0.25, 0] + lately, rtol=1e-6)


def test_item_neighbours_are_cosines_of_weighted_buyers() -> None:
    origin = moment(5)
    x = bought(origin)
    weighted = np.log(x.shape[1] / x.sum(axis=1, keepdims=True)) * x
    unit = weighted / np.linalg.norm(weighted, axis=0)
    similar = unit.T @ unit - np.eye(x.shape[1])
    assert x.shape[1] < NEIGHBOURS
    np.testing.assert_allclose(item_neighbours(origin), x[origin.users] @ similar, atol=1e-4)


def test_each_candidate_keeps_its_nearest_neighbours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.baselines.NEIGHBOURS", 3)
    origin = moment(5)
    x = bought(origin)
    weighted = np.log(x.shape[1] / x.sum(axis=1, keepdims=True)) * x
    unit = weighted / np.linalg.norm(weighted, axis=0)
    similar = unit.T @ unit - np.eye(x.shape[1])
    for candidate in range(x.shape[1]):
        third = np.sort(similar[:, candidate])[-3]
        similar[similar[:, candidate] < third - 1e-6, candidate] = 0  # equally near ones stay together
    np.testing.assert_allclose(item_neighbours(origin), x[origin.users] @ similar, atol=1e-4)


@pytest.mark.parametrize("penalty", [5.0, 300.0])
def test_ease_is_the_ridge_regression_of_each_item_on_all_others(penalty: float) -> None:
    origin = moment(6)
    x = bought(origin)
    expected = np.zeros((len(origin.users), x.shape[1]))
    for item in range(x.shape[1]):
        others = np.delete(x, item, axis=1)
        gram = others.T @ others + penalty * np.eye(others.shape[1])
        expected[:, item] = others[origin.users] @ np.linalg.solve(gram, others.T @ x[:, item])
    np.testing.assert_allclose(ease(origin, penalty), expected, atol=1e-4)


def test_habits_are_found_by_neighbours_and_not_by_popularity() -> None:
    """The drawn users buy of one kind, every fourth item: models of the user show that kind more."""
    origin = moment(7, items=200)
    kinds = origin.history.item % 4

    def share(score: Score) -> float:
        lists = Scored("x", score).rank(origin, "new", 5)
        hits = []
        for user, ranked in zip(origin.users.tolist(), lists, strict=True):
            own = np.bincount(kinds[(origin.history.user == user) & (origin.history.ts_s < T)]).argmax()
            hits += (ranked[ranked >= 0] % 4 == own).tolist()
        return float(np.mean(hits))

    assert min(share(item_neighbours), share(partial(ease, penalty=20.0))) > share(popularity) + 0.1
