"""Training: what it may see, what it learns, what it writes; and that serving answers what was trained."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from past_helpers import DAY_S, T, draw_past, past
from safetensors.numpy import load_file, save_file
from shop_helpers import unit_rows

from models.evaluate import evaluate
from models.examples import EMPTY, LABEL_WINDOW_S, SILENT, WEEK_S, Lists, join, make_lists, measure, next_sessions
from models.export import default_weights, export_tower
from models.history import COLUMNS, History
from models.item_vectors import build_text
from models.list_worth import before, judge_scores
from models.network_training import fit
from models.origins import make_origin
from models.ours import Ours, Scorers
from models.registry import Release, champion, open_release, publish
from models.scorer import Network
from models.sequence_tower import TRAIL_PADDED, pad_trails
from models.serving import NoModels, ReleaseModels, open_models
from models.train_settings import TrainSettings
from models.training import Fitted, Learner, train
from models.world import World
from recsys.candidates import default_sources
from recsys.catalogue import Catalogue, Item, item_text, text_hash
from recsys.errors import Misuse, ModelRejected, Unavailable
from recsys.features import NAMES
from recsys.policy import Policy
from recsys.profiles import VIEW
from recsys.scoring import Ask, Scored, Trail

SOURCES = default_sources(Policy())
# Small and quick: a habit as plain as that of `rounds` is seen in a few hundred lists.
SMALL = TrainSettings(cuts=5, batch=8, epochs=8, warm_up_days=42, tower_width=0)
TOWERED = msgspec.structs.replace(SMALL, tower_width=16, tower_layers=1, tower_epochs=1)
NOTHING = Trail(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 2), np.float32))
NO_VECTORS = np.zeros((0, 0), np.float32)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On busy cores two threads wait for each other at every tiny step: 70 to 200 s instead of 28, measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def silent(what: str, done: int, of: int) -> None:
    """Progress that nobody watches."""


def rounds(users: int = 20, weeks: int = 18) -> History:
    """Everybody goes round six favourites, one a week: what comes next is what was not bought for longest."""
    rng = np.random.default_rng(0)
    favourites = [rng.permutation(30)[:6] for _ in range(users)]
    rows = [
        (user, int(favourites[user][week % 6]), 7.0 * (week - weeks) + 0.5 + user / 100)
        for week in range(weeks)
        for user in range(users)
    ]
    return past(rows, items=30)


def make(history: History, cut_s: int, until_s: int, per_cut: int = 1000, seed: int = 0) -> Lists:
    rng = np.random.default_rng(seed)
    return make_lists(World(history, unit_rows(len(history.items))), cut_s, until_s, SOURCES, Policy(), per_cut, rng)


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


def together(one: History, other: History) -> History:
    """Two pasts of the same items as one."""
    columns = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in COLUMNS}
    history = msgspec.structs.replace(one, **columns, user_ids=max(one.user_ids, other.user_ids, key=len))
    return history.take(np.argsort(history.ts_s, kind="stable"))


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


@pytest.fixture(scope="module")
def drawn() -> History:
    return draw_past(0)


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


def test_lists_are_joined_end_to_end() -> None:
    some = listed(np.ones((3, len(NAMES)), np.float32), np.array([1, 0, 1], bool), np.zeros(3, bool), np.array([1, 3]))
    both = join([some, some])
    assert both.trails["marks"].shape == (4, TRAIL_PADDED, 2)
    assert both.ends.tolist() == [1, 3, 4, 6]
    assert both.bought.tolist() == [True, False, True] * 2
    assert EMPTY.features.shape == (0, len(NAMES))


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learner() -> Learner:
    history = rounds()
    learner = Learner(history, unit_rows(len(history.items)), SMALL, silent)
    learner.live_until(int(history.ts_s[-1]) + 1)
    return learner


def test_a_habit_is_learned_that_own_frequency_and_chance_do_not_know(learner: Learner) -> None:
    worth = learner.judge(learner.fit(hold_out=1))
    learned, frequency = worth["scorer"].ndcg_at_10, worth["own frequency"].ndcg_at_10
    chance = [learner.judge(random_linear(seed))["scorer"].ndcg_at_10 for seed in range(20)]
    # What is due was bought least lately: own frequency puts it behind the other five favourites.
    assert frequency == pytest.approx(1 / np.log2(7), abs=0.03)
    assert learned > 0.9
    assert np.mean(chance) < 0.5


def random_linear(seed: int) -> Fitted:
    weight = np.random.default_rng(seed).normal(size=(len(NAMES), 2)).astype(np.float32)
    ones = np.ones(len(NAMES), np.float32)
    return alone(Network(weight, np.zeros(2, np.float32), 0 * ones, ones))


def alone(network: Network) -> Fitted:
    """No tower beside it."""
    return Fitted(network, network, None)


def listed(
    features: NDArray[np.float32], bought: NDArray[np.bool_], seen: NDArray[np.bool_], ends: NDArray[np.int64]
) -> Lists:
    """Lists of users who have no past."""
    rows, clicked = np.arange(len(features)), np.zeros(len(features), np.bool_)
    return Lists(rows, features, bought, clicked, seen, ends, pad_trails([NOTHING] * len(ends)), 0 * ends)


def test_the_same_seed_learns_the_same_weights_and_another_does_not(learner: Learner) -> None:
    history = rounds()
    again = Learner(history, unit_rows(len(history.items)), SMALL, silent)
    again.live_until(int(history.ts_s[-1]) + 1)
    for name in ("weight", "bias", "mean", "std"):
        np.testing.assert_array_equal(getattr(again.fit().network, name), getattr(learner.fit().network, name))
    lists = join([learner.newest, learner.newest])
    other, _ = fit(lists, msgspec.structs.replace(SMALL, seed=1), silent)
    assert (other.weight != fit(lists, SMALL, silent)[0].weight).any()


def test_the_head_for_new_items_learns_from_what_was_never_bought() -> None:
    rng = np.random.default_rng(0)
    features = np.zeros((4000, len(NAMES)), np.float32)
    features[:, :3] = rng.normal(size=(4000, 3))
    seen = np.tile([True, False], 2000)
    # Among known items feature 0 decides, among unknown ones feature 1; both are bought as often.
    worth = np.where(seen, features[:, 0], features[:, 1]).reshape(200, 10, 2)
    bought = (worth == worth.max(axis=1, keepdims=True)).reshape(-1)
    lists = listed(features, bought, seen, np.arange(20, 4001, 20))
    linear = msgspec.structs.replace(SMALL, hidden=(), learning_rate=5e-2, weight_decay=1e-2)
    weight = fit(lists, linear, silent)[0].weight
    assert weight[0, 0] > 0.3
    assert weight[1, 1] > 0.3
    assert abs(weight[0, 1]) < weight[1, 1] / 3
    assert np.abs(weight[2]).max() < 0.1


def test_the_head_for_clicks_learns_from_what_is_clicked_and_is_not_there_without() -> None:
    rng = np.random.default_rng(0)
    features = np.zeros((4000, len(NAMES)), np.float32)
    features[:, :3] = rng.normal(size=(4000, 3))
    worth = features.reshape(200, 20, -1)
    bought, clicked = ((worth[..., at] == worth[..., at].max(axis=1, keepdims=True)).reshape(-1) for at in (0, 1))
    bought[:2000] = False  # half of them only look
    lists = listed(features, bought, np.zeros(4000, bool), np.arange(20, 4001, 20))
    linear = msgspec.structs.replace(SMALL, hidden=(), learning_rate=5e-2, weight_decay=1e-2)
    assert fit(lists, linear, silent)[0].weight.shape == (len(NAMES), 2)
    network, _ = fit(msgspec.structs.replace(lists, clicked=clicked), linear, silent)
    assert network.weight.shape == (len(NAMES), 3)
    assert network.weight[0, 0] > 3 * abs(network.weight[1, 0]), "who buys goes by the first"
    assert network.weight[1, 2] > 3 * abs(network.weight[0, 2]), "who clicks goes by the second"


def test_a_constant_feature_and_an_outlier_leave_weights_finite() -> None:
    features = np.random.default_rng(0).normal(size=(60, len(NAMES))).astype(np.float32)
    features[:, 4], features[7, 5] = 1.0, 1e9
    bought = np.tile([True, False, False], 20)
    linear, _ = fit(listed(features, bought, ~bought, np.arange(3, 61, 3)), SMALL, silent)
    assert np.isfinite(linear.weight).all()
    assert (linear.std > 0).all()


def test_a_scorers_worth_by_hand() -> None:
    features = np.zeros((5, len(NAMES)), np.float32)
    features[:, NAMES.index("own_120d")] = [3, 2, 1, 5, 9]
    bought, seen = np.array([0, 0, 1, 1, 0], bool), np.array([1, 1, 1, 0, 0], bool)
    lists = msgspec.structs.replace(listed(features, bought, seen, np.array([3, 5])), rows=np.array([0, 1, 2, 0, 3]))
    catalogue = Catalogue([Item(item=f"i{n}", title="", category=f"a>{n % 2}") for n in range(4)])
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    found = judge_scores(
        {"frequency": before(lists), "best": np.tile(bought, (2, 1)).T.astype(np.float32)}, lists, vectors, catalogue
    )
    assert found["frequency"].ndcg_at_10 == round((1 / np.log2(4) + 1 / np.log2(3)) / 2, 4)
    best = found["best"]
    assert (best.ndcg_at_10, best.map_at_10, best.ndcg_at_10_new) == (1, 1, 1)
    assert best.f1_at_10 == round((2 / 11 + 2 / 11) / 2, 4)  # one hit in ten places, of one to find
    assert best.coverage == 1
    assert best.l_acc == 1.5  # two of three shown in vain, one of two
    assert best.l_disp == round((2 * 0.5 + 0) / 2, 4)  # i0 and i1 are twins, and i2 is another


@pytest.mark.parametrize(("weeks", "warm_up_days"), [(1, 56), (9, 56), (4, 28), (24, 400)])
def test_too_little_history_is_said_with_what_would_do(weeks: int, warm_up_days: int) -> None:
    history = rounds(weeks=weeks)
    settings = msgspec.structs.replace(SMALL, warm_up_days=warm_up_days)
    learner = Learner(history, unit_rows(len(history.items)), settings, silent)
    with pytest.raises(Misuse, match="load more history, or lower warm_up_days"):
        learner.live_until(int(history.ts_s[-1]) + 1)


def test_a_history_no_longer_than_the_warm_up_is_too_little() -> None:
    history = past([(user, user % 9, user - 40.0) for user in range(40)], items=9)
    learner = Learner(history, unit_rows(len(history.items)), SMALL, silent)
    with pytest.raises(Misuse, match="40 days of history gave 0 weeks"):
        learner.live_until(T)


def test_lists_are_cut_weekly_after_the_warm_up_and_the_newest_are_kept() -> None:
    history, told = rounds(), []
    learner = Learner(history, unit_rows(len(history.items)), SMALL, lambda *step: told.append(step))
    end_s = int(history.ts_s[-1]) + 1
    learner.live_until(end_s - 5 * WEEK_S)
    assert learner.world.now_s == end_s - 5 * WEEK_S
    assert told[-1] == ("lists of past weeks", SMALL.cuts, SMALL.cuts)
    before = learner.newest
    learner.live_until(end_s)
    assert len(learner._weeks) == SMALL.cuts
    assert not any(week is before for week in learner._weeks)


def test_what_is_judged_labels_no_list_that_is_learned_from() -> None:
    """One who stays away for weeks has the same next session in the lists of all cuts since the last."""
    rows = [(user, item, float(day)) for user in range(8) for item in (0, 1, user) for day in range(-126, 0, 7)]
    away = [(8, item, float(day)) for item in (2, 3) for day in (-120, -90, -60, -30, -3)]
    history = past([*rows, *away], items=9)
    learner = Learner(history, unit_rows(9), SMALL, silent)
    learner.live_until(T)
    newest, older = learner.newest, np.concatenate([part.label_s for part in learner._weeks[:-1]])
    assert older.max() == newest.label_s.max() == T - 3 * DAY_S
    learned, judged = learner.split(1)
    assert judged is newest
    assert learned.label_s.max() < judged.label_s.min()
    assert len(learned.ends) == len(learned.trails["trail"]) == np.sum(older < judged.label_s.min())
    assert learned.ends[-1] == len(learned.rows) == len(learned.features) == len(learned.bought)
    learner._weeks[:-1] = [newest] * (learner.weeks - 1)
    with pytest.raises(Misuse, match="no user came back before the week that is held out"):
        learner.split(1)


def test_what_is_bought_in_the_week_that_is_judged_labels_no_older_list_though_its_user_looked_later() -> None:
    """One who buys before all others of that week, and looks last: neither the least nor the greatest time of a list is its
    week's beginning.
    """
    buys = [(user, item, day - 2.0) for user in range(8) for item in (0, 1, user) for day in range(-126, 7, 7)]
    late = [(8, item, float(day)) for item in (2, 3) for day in (-90, -60, -30, -5)]
    looks = [(8, 2, day) for day in (-13.5, -1.0)]
    history = together(past([*buys, *late], items=9), past(looks, items=9, action=VIEW))
    learner = Learner(history, unit_rows(9), SMALL, silent)
    learner.live_until(T)
    learned, judged = learner.split(1)
    assert judged.label_s.max() == T - DAY_S
    assert learned.label_s.max() < T - WEEK_S


@pytest.mark.parametrize("value", [np.log1p(200), np.log1p(400), np.log(30)])
def test_a_column_of_one_value_is_silent_however_many_rows_it_has(value: float) -> None:
    mean, spread = measure(np.full((300_000, 1), value, np.float32))
    assert (mean[0], spread[0]) == (np.float32(value), np.float32(SILENT))


def test_what_never_moved_in_history_moves_no_score_when_it_does_live(learner: Learner) -> None:
    network, newest = learner.fit().network, learner.newest.features
    assert network.deep
    shown = NAMES.index("shown")
    assert not newest[:, shown].any()  # a history of purchases: nobody was shown anything
    live = newest.copy()
    live[:, shown] = np.log1p(5)
    np.testing.assert_allclose(network.score(live), network.score(newest), atol=1e-5)


# --- our own lists in the protocol ------------------------------------------------------------------------------------


def test_our_lists_keep_the_protocols_rules_at_every_origin(drawn: History) -> None:
    settings = msgspec.structs.replace(SMALL, warm_up_days=14, epochs=1)
    ours = Ours(Scorers(drawn, unit_rows(len(drawn.items)), Policy(), settings, silent, seeds=2), Policy())
    for at_s in (T, T + 14 * DAY_S):
        origin, truth = make_origin(drawn, at_s)
        of_seeds = ours.rank(origin, "all", 10)
        assert of_seeds.shape == (2, len(origin.users), 10)
        assert (of_seeds[0] != of_seeds[1]).any()
        every, (fresh, _) = of_seeds[0], ours.rank(origin, "new", 10)
        np.testing.assert_array_equal(ours.rank(origin, "new", 10)[0], fresh)
        for place, lists in enumerate(zip(every.tolist(), fresh.tolist(), strict=True)):
            for rows in lists:
                shown = [row for row in rows if row >= 0]
                assert shown == rows[: len(shown)]
                assert len(set(shown)) == len(shown)
                assert set(shown) <= set(origin.rows.tolist())
            assert not origin.seen[place, np.searchsorted(origin.rows, [row for row in lists[1] if row >= 0])].any()
        hits = [bool(set(rows) & hidden) for rows, hidden in zip(every.tolist(), truth.all, strict=True)]
        assert np.mean(hits) > 0.5


def test_variants_of_one_scorer_are_asked_moment_by_moment_so_none_knows_a_later_one(drawn: History) -> None:
    settings = msgspec.structs.replace(SMALL, warm_up_days=14, epochs=1)
    scorers = Scorers(drawn, unit_rows(len(drawn.items)), Policy(), settings, silent)
    twins = {name: Ours(scorers, Policy()) for name in ("", "the same")}
    result = evaluate(drawn, "drawn", [T, T + 14 * DAY_S], twins)
    found = [(line.task, line.accuracy, line.variety) for line in result.table if line.model == "slatecast"]
    assert found[0] == found[1]
    assert found[2] == found[3]
    with pytest.raises(ValueError, match="cannot go back"):
        scorers.at(T)


def test_a_budget_of_time_leaves_out_older_weeks_and_keeps_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    history, passed = rounds(), iter(range(0, 10**6, 10))
    monkeypatch.setattr("models.training.time.monotonic", lambda: float(next(passed)))  # each look costs ten seconds
    cuts = []
    for minutes in (0.0, 1.0):
        learner = Learner(history, unit_rows(30), msgspec.structs.replace(SMALL, minutes=minutes), silent)
        learner.live_until(int(history.ts_s[-1]) + 1)
        cuts.append([week.rows.tolist() for week in learner._weeks])
    assert len(cuts[1]) < len(cuts[0]) == SMALL.cuts
    assert cuts[1][-1] == cuts[0][-1]


def interrupting(fits: int) -> tuple[list[int], Callable[[str, int, int], None]]:
    """One entry per fit that has begun, and a listener that presses Ctrl-C in the fifth step of that one."""
    begun: list[int] = []

    def step(what: str, done: int, of: int) -> None:
        if what == "fitting the scorer":
            begun.extend([1] * (done == 1))
            if len(begun) == fits and done == 5:
                raise KeyboardInterrupt

    return begun, step


@pytest.mark.parametrize(("fits_begun", "least"), [(1, 0.3), (2, 0.3), (4, 0.9)])
def test_ctrl_c_leaves_a_release_of_what_was_learned_so_far(
    trained: tuple[Path, Release], tmp_path: Path, fits_begun: int, least: float
) -> None:
    """In the linear fit, in the network's, and in that of what would serve: then what was judged serves."""
    shutil.copytree(trained[0] / "towers", tmp_path / "towers")
    begun, step = interrupting(fits_begun)
    found = train(rounds(), tmp_path, "rounds", 1_700_000_000_000, SMALL, None, step)
    assert found.ended == "stopped"
    assert len(begun) == fits_begun
    assert champion(tmp_path) == found.release.folder
    assert found.worth["scorer"].ndcg_at_10 > least


def test_ctrl_c_while_patience_seeks_the_last_step_ends_training_too(
    trained: tuple[Path, Release], tmp_path: Path
) -> None:
    shutil.copytree(trained[0] / "towers", tmp_path / "towers")
    begun, step = interrupting(4)  # linear and network are judged; both again, to see how far to go
    patient = msgspec.structs.replace(SMALL, patience=50)
    found = train(rounds(), tmp_path, "rounds", 1_700_000_000_000, patient, None, step)
    assert (found.ended, len(begun)) == ("stopped", 4)
    assert found.worth["scorer"].ndcg_at_10 > 0.9


def test_ctrl_c_before_a_step_of_what_would_serve_leaves_what_was_judged(
    trained: tuple[Path, Release], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large shop the lists of all weeks are measured for seconds before it."""
    shutil.copytree(trained[0] / "towers", tmp_path / "towers")
    measured: list[int] = []

    def press(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        measured.append(len(features))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(features)

    monkeypatch.setattr("models.network_training.measure", press)
    found = train(rounds(), tmp_path, "rounds", 1_700_000_000_000, SMALL, None, silent)
    assert found.ended == "stopped"
    assert champion(tmp_path) == found.release.folder


def test_a_network_that_was_ended_too_soon_leaves_its_place_to_the_linear_one(learner: Learner) -> None:
    """Time was up before its first step, whose rate then is nothing: all its candidates are equal."""
    fitted = learner.fit(hold_out=1, settings=msgspec.structs.replace(SMALL, minutes=1e-6))
    worth = learner.judge(fitted)
    assert fitted.descent.ended == "minutes"
    assert worth["scorer"] == worth["linear"]
    assert worth["scorer"].ndcg_at_10 > 0.7


def test_a_full_disk_is_one_line_and_leaves_no_release(trained: tuple[Path, Release], tmp_path: Path) -> None:
    shutil.copytree(trained[0] / "towers", tmp_path / "towers")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(what: str, done: int, of: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1])) if what == "fitting the scorer" else None

    try:
        with pytest.raises((Unavailable, OSError), match="cannot be written|File too large"):
            train(rounds(), tmp_path, "rounds", 1_700_000_000_000, SMALL, None, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert champion(tmp_path) is None
    assert list((tmp_path / "releases").iterdir()) == []


def test_lists_in_which_everything_was_bought_teach_nothing_and_that_is_said(learner: Learner) -> None:
    week = learner.newest
    learner._weeks.append(msgspec.structs.replace(week, bought=np.ones_like(week.bought)))
    weeks, learner._weeks = learner._weeks, [learner._weeks[-1]] * 2
    with pytest.raises(Misuse, match="nothing to tell apart"):
        learner.fit()
    learner._weeks = weeks[:-1]


# --- a release --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Release]:
    """A folder with a release made by `train`; the tower is exported once a home, as for the demo."""
    tower = export_tower(default_weights(), home / "towers")
    own = tmp_path_factory.mktemp("home")
    shutil.copytree(tower, own / "towers" / tower.name)
    return own, train(rounds(), own, "rounds", 1_700_000_000_000, TOWERED, None, silent).release


@pytest.fixture
def redraft(trained: tuple[Path, Release], tmp_path: Path) -> Callable[[], Path]:
    """The files of the release, to make another of."""

    def draft() -> Path:
        return Path(shutil.copytree(trained[1].folder, tmp_path / "draft", copy_function=os.link))

    return draft


def test_train_makes_a_champion_that_says_what_it_is(trained: tuple[Path, Release]) -> None:
    home, release = trained
    assert champion(home) == release.folder
    manifest = open_release(release.folder).manifest
    assert manifest.features == NAMES
    assert manifest.data == "rounds"
    assert manifest.data_until_ts_ms == (int(rounds().ts_s[-1]) + 1) * 1000
    assert manifest.metrics["ndcg_at_10"] > 0.9 > manifest.metrics["ndcg_at_10_own_frequency"]
    assert not list((home / "releases").glob("draft-*"))


def test_a_release_answers_what_was_learned(trained: tuple[Path, Release]) -> None:
    home, release = trained
    history, models = rounds(), open_models(release.folder)
    side = build_text(home, [item_text(item) for item in history.items])
    learner = Learner(history, side.vectors, TOWERED, silent)
    learner.live_until(int(history.ts_s[-1]) + 1)
    lists = learner.newest
    asks = asks_of(lists)
    scored = models.score(asks, side.vectors)
    assert (scored.scorer, scored.degraded_reason) == ("sequence", None)
    np.testing.assert_allclose(scored.logits, learner.fit().score(lists, side.vectors), rtol=1e-4, atol=1e-4)
    assert models.release == release.id
    assert models.dim == side.vectors.shape[1]
    np.testing.assert_array_equal(models.vector(text_hash(item_text(history.items[3]))), side.vectors[3])


def asks_of(lists: Lists) -> list[Ask]:
    """Training lists as serving would ask them."""
    starts = [0, *lists.ends[:-1].tolist()]
    lengths = (lists.trails["trail"] >= 0).sum(axis=1).tolist()
    return [
        Ask(
            lists.rows[start:end],
            lists.features[start:end],
            Trail(*(lists.trails[name][at, :length] for name in ("trail", "actions", "marks"))),
        )
        for at, (start, end, length) in enumerate(zip(starts, lists.ends.tolist(), lengths, strict=True))
    ]


def test_a_release_for_other_features_is_refused(
    trained: tuple[Path, Release], redraft: Callable[[], Path], tmp_path: Path
) -> None:
    manifest = msgspec.structs.replace(trained[1].manifest, features=("other", *NAMES[1:]))
    release = publish(tmp_path, redraft(), manifest)
    with pytest.raises(ModelRejected, match=r"trained on other features \(other, own_count\); train again"):
        open_models(release.folder)


@pytest.mark.parametrize(("name", "array"), [("whitening", "matrix"), ("whitening", "mean"), ("vectors", "vectors")])
def test_a_release_whose_parts_do_not_belong_together_is_refused(
    trained: tuple[Path, Release], redraft: Callable[[], Path], tmp_path: Path, name: str, array: str
) -> None:
    draft = redraft()
    file = draft / f"{name}.safetensors"
    arrays = load_file(file)
    file.unlink()  # a link to the trained one
    save_file({**arrays, array: arrays[array][:-1]}, file)
    with pytest.raises(ModelRejected, match="are of different trainings; train again"):
        open_models(publish(tmp_path, draft, trained[1].manifest).folder)


def test_a_scorer_that_breaks_is_named_in_the_answer_said_once_and_the_next_makes_the_list(
    trained: tuple[Path, Release], redraft: Callable[[], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draft = redraft()
    (draft / "scorer.onnx").unlink()  # a link to the trained one
    huge = np.full((len(NAMES), 2), 3e38, np.float32)
    ones = np.ones(len(NAMES), np.float32)
    (draft / "scorer.onnx").write_bytes(Network(huge, np.zeros(2, np.float32), 0 * ones, ones)._graph())
    models = ReleaseModels(publish(tmp_path, draft, trained[1].manifest))
    vectors = np.zeros((30, models.dim), np.float32)
    for _ in range(2):
        scored = models.score([Ask(np.arange(4), np.ones((4, len(NAMES)), np.float32), NOTHING)], vectors)
        assert scored.scorer == "linear"
        assert scored.logits is not None
        assert np.isfinite(scored.logits).all()
        assert scored.degraded_reason is not None
        assert "not finite" in scored.degraded_reason
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2  # the tower's, the network's
    bad = [Ask(np.arange(1), np.full((1, len(NAMES)), np.nan, np.float32), NOTHING)]
    assert models.score(bad, vectors).logits is None


def test_without_a_release_lists_are_made_by_rank_fusion() -> None:
    models = NoModels()
    assert models.score([Ask(np.arange(3), np.zeros((3, len(NAMES)), np.float32), NOTHING)], NO_VECTORS) == Scored(
        None, "rank_fusion", "no release: run `slatecast train`"
    )
    assert models.embed(["mug", "pan"]).shape == (2, 0)
    assert models.vector("0" * 32) is None


def test_a_folder_that_is_no_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="slatecast train"):
        open_models(tmp_path / "none")


@pytest.mark.parametrize("module", ["streams.ranker", "models.serving", "recsys.pipeline"])
def test_serving_starts_without_torch_and_transformers(module: str) -> None:
    heavy = "{'torch', 'transformers', 'onnx', 'scipy', 'faust'}"
    code = f"import sys, {module}; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
