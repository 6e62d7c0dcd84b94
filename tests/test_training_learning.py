"""What is learned from a past and from lists made by hand: a habit, a head's own, nothing of what never moves."""

import msgspec
import numpy as np
import pytest
from shop_helpers import unit_rows
from training_helpers import SMALL, listed, one_thread, rounds, silent

from models.examples import SILENT, join, measure
from models.list_worth import before, judge_scores
from models.network_training import fit
from models.scorer import Network
from models.training import Fitted, Learner
from recsys.catalogue import Catalogue, Item
from recsys.errors import Misuse
from recsys.features import NAMES

__all__ = ["one_thread"]  # the fixture

# --- from a past ------------------------------------------------------------------------------------------------------


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


def test_the_same_seed_learns_the_same_weights_and_another_does_not(learner: Learner) -> None:
    history = rounds()
    again = Learner(history, unit_rows(len(history.items)), SMALL, silent)
    again.live_until(int(history.ts_s[-1]) + 1)
    for name in ("weight", "bias", "mean", "std"):
        np.testing.assert_array_equal(getattr(again.fit().network, name), getattr(learner.fit().network, name))
    lists = join([learner.newest, learner.newest])
    other, _ = fit(lists, msgspec.structs.replace(SMALL, seed=1), silent)
    assert (other.weight != fit(lists, SMALL, silent)[0].weight).any()


def test_what_never_moved_in_history_moves_no_score_when_it_does_live(learner: Learner) -> None:
    network, newest = learner.fit().network, learner.newest.features
    assert network.deep
    shown = NAMES.index("shown")
    assert not newest[:, shown].any()  # a history of purchases: nobody was shown anything
    live = newest.copy()
    live[:, shown] = np.log1p(5)
    np.testing.assert_allclose(network.score(live), network.score(newest), atol=1e-5)


def test_a_network_that_was_ended_too_soon_leaves_its_place_to_the_linear_one(learner: Learner) -> None:
    """Time was up before its first step, whose rate then is nothing: all its candidates are equal."""
    fitted = learner.fit(hold_out=1, settings=msgspec.structs.replace(SMALL, minutes=1e-6))
    worth = learner.judge(fitted)
    assert fitted.descent.ended == "minutes"
    assert worth["scorer"] == worth["linear"]
    assert worth["scorer"].ndcg_at_10 > 0.7


def test_lists_in_which_everything_was_bought_teach_nothing_and_that_is_said(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    week = learner.newest
    monkeypatch.setattr(learner, "_weeks", [msgspec.structs.replace(week, bought=np.ones_like(week.bought))] * 2)
    monkeypatch.setattr(learner, "_strangers", [])
    with pytest.raises(Misuse, match="nothing to tell apart"):
        learner.fit()


# --- from lists made by hand ------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("value", [np.log1p(200), np.log1p(400), np.log(30)])
def test_a_column_of_one_value_is_silent_however_many_rows_it_has(value: float) -> None:
    mean, spread = measure(np.full((300_000, 1), value, np.float32))
    assert (mean[0], spread[0]) == (np.float32(value), np.float32(SILENT))


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
