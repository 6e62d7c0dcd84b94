"""Item models: closed forms against brute force, what they may see, and that following them is a matrix product."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from past_helpers import DAY_S, T, draw_past
from shop_helpers import draw_item_models, plain

from models.history import History
from models.item_files import load_item_models, save_item_models
from models.item_models import KEEP, MONTH_S, MONTHS, UNIT, fit_item_models
from recsys.catalogue import Catalogue, Item, item_ref
from recsys.item_models import ItemModel, ItemModels
from recsys.profiles import PURCHASE

PENALTY = 20.0


@pytest.fixture(scope="module")
def history() -> History:
    """Four months of forty users on thirty items."""
    return draw_past(seed=1, users=40, items=30, days=120)


def dense(models: ItemModels, name: str) -> NDArray[np.float64]:
    """A model as a matrix over its own items."""
    model, count = models.models[name], len(models.refs)
    matrix = np.zeros((count, count))
    for row in range(count):
        said = slice(model.starts[row], model.starts[row + 1])
        matrix[row, model.columns[said]] = model.weights[said]
    return matrix


def owned(history: History, models: ItemModels, begin_s: int, end_s: int) -> NDArray[np.float64]:
    """(users, items) 1 where something was bought, the slow way."""
    column = {ref: at for at, ref in enumerate(models.refs.tolist())}
    found = np.zeros((len(history.user_ids), len(column)))
    for user, item, ts_s, action in zip(history.user, history.item, history.ts_s, history.action, strict=True):
        at = column.get(item_ref(history.items[item].item))
        if action == PURCHASE and begin_s <= ts_s < end_s and at is not None:
            found[user, at] = 1
    return found


def test_ease_is_its_closed_form_with_a_zero_diagonal(history: History) -> None:
    models = fit_item_models(history, T, 30, PENALTY)
    x = owned(history, models, 0, T)
    inverse = np.linalg.inv(x.T @ x + PENALTY * np.eye(x.shape[1]))
    expected = np.eye(x.shape[1]) - inverse / np.diag(inverse)
    np.testing.assert_allclose(dense(models, "ease"), expected, atol=1e-4)
    assert np.abs(np.diag(dense(models, "ease"))).max() == 0


def test_lately_is_ease_of_what_users_had_with_the_newer_weighing_more(history: History) -> None:
    models = fit_item_models(history, T, 30, PENALTY)
    column = {ref: at for at, ref in enumerate(models.refs.tolist())}
    x = np.zeros((len(history.user_ids), len(column)))
    for user, item, ts_s, action in zip(history.user, history.item, history.ts_s, history.action, strict=True):
        at = column.get(item_ref(history.items[item].item))
        if action == PURCHASE and ts_s < T and at is not None:
            x[user, at] += 0.5 ** ((T - ts_s) / (60 * DAY_S))
    x = np.sqrt(x) / np.linalg.norm(np.sqrt(x), axis=1, keepdims=True).clip(min=1e-9)
    inverse = np.linalg.inv(x.T @ x + PENALTY / UNIT * np.eye(x.shape[1]))
    expected = np.eye(x.shape[1]) - inverse / np.diag(inverse)
    np.testing.assert_allclose(dense(models, "lately"), expected, atol=1e-4)


def test_the_ridges_go_from_what_users_had_to_what_they_bought_in_the_month_after(history: History) -> None:
    models = fit_item_models(history, T, 30, PENALTY)
    gram, again, fresh = 0.0, 0.0, 0.0
    for back, weight in MONTHS:
        begin_s = T - back * MONTH_S
        had, bought = owned(history, models, 0, begin_s), owned(history, models, begin_s, begin_s + MONTH_S)
        had = had * (bought.sum(axis=1, keepdims=True) > 0)  # who bought nothing may have left the shop
        gram = gram + weight * had.T @ had
        again = again + weight * had.T @ bought
        fresh = fresh + weight * had.T @ (bought * (had == 0))
    gram = gram + PENALTY * np.eye(len(models.refs))
    np.testing.assert_allclose(dense(models, "again"), np.linalg.solve(gram, again), atol=1e-4)
    np.testing.assert_allclose(dense(models, "fresh"), np.linalg.solve(gram, fresh), atol=1e-4)


def test_a_model_of_a_moment_knows_nothing_of_what_came_after(history: History) -> None:
    at_s = T - 20 * DAY_S
    one, other = fit_item_models(history, at_s, 30, PENALTY), fit_item_models(history.before(at_s), at_s, 30, PENALTY)
    assert one.refs.tolist() == other.refs.tolist()
    for name in one.models:
        np.testing.assert_array_equal(dense(one, name), dense(other, name))
    assert (dense(one, "ease") != dense(fit_item_models(history, T, 30, PENALTY), "ease")).any()


def test_only_the_items_with_most_buyers_are_learned(history: History) -> None:
    few = fit_item_models(history, T, 10, PENALTY)
    assert len(few.refs) == 10
    everything = fit_item_models(history, T, 30, PENALTY)
    buyers = owned(history, everything, 0, T).sum(axis=0)
    least = min(buyers[everything.refs.tolist().index(ref)] for ref in few.refs.tolist())
    assert sorted(buyers, reverse=True)[9] == least


def test_a_history_without_purchases_gives_no_models(history: History) -> None:
    nothing = fit_item_models(history, int(history.ts_s[0]), 30, PENALTY)
    assert (len(nothing.refs), nothing.models) == (0, {})


def test_of_a_large_catalogue_the_heaviest_weights_are_kept() -> None:
    history = draw_past(seed=2, users=200, items=2 * KEEP, days=100)
    models = fit_item_models(history, T, 2 * KEEP, PENALTY)
    x = owned(history, models, 0, T)
    inverse = np.linalg.inv(x.T @ x + PENALTY * np.eye(x.shape[1]))
    whole = np.eye(x.shape[1]) - inverse / np.diag(inverse)
    kept = dense(models, "ease")
    assert ((kept != 0).sum(axis=1) <= KEEP).all()
    for row in range(0, len(kept), 37):
        left_out = np.abs(whole[row][kept[row] == 0])
        assert left_out.max() <= np.abs(kept[row][kept[row] != 0]).min() + 1e-5


# --- following ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 30), st.lists(st.integers(0, 59), unique=True, max_size=60))
@settings(deadline=None, max_examples=30)
def test_following_is_a_matrix_product(seed: int, having: list[int]) -> None:
    catalogue = plain(60)
    models = draw_item_models(catalogue, seed)
    rows = np.array(having, np.int64)
    emphasis = np.random.default_rng(seed).random(len(rows))
    for name in models.models:
        expected = emphasis @ dense(models, name)[rows] if len(rows) else np.zeros(60)
        np.testing.assert_allclose(models.follow(name, rows, emphasis, catalogue), expected, atol=1e-6)


def test_models_find_their_items_wherever_the_catalogue_has_them() -> None:
    models = draw_item_models(plain(20), 3)
    expected = dense(models, "ease")
    shuffled = Catalogue([Item(item="new", title="new")] + plain(20).items[::-1][:15])
    names = [item.item for item in shuffled.items]
    scores = models.follow("ease", np.array([0, 1]), np.ones(2), shuffled)
    known = [int(name[1:]) for name in names[1:]]
    np.testing.assert_allclose(scores[1:], expected[known[0], known], atol=1e-6)
    assert scores[0] == 0, "nothing is said of an item that came later, nor by it"
    shuffled.upsert(Item(item="i0", title="back"))
    grown = models.follow("ease", np.array([1]), np.ones(1), shuffled)
    assert grown[-1] == pytest.approx(expected[known[0], 0])


def test_the_strongest_reason_is_the_item_that_speaks_most_for_the_target() -> None:
    catalogue = plain(60)
    models = draw_item_models(catalogue, 4)
    matrix, rows = dense(models, "again"), np.arange(10)
    for target in range(20, 40):
        found = models.strongest("again", rows, target, catalogue)
        most = matrix[rows, target].max()
        assert (found == -1) if most <= 0 else (matrix[found, target] == most)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    models = draw_item_models(plain(20), 5)
    save_item_models(models, tmp_path)
    again = load_item_models(tmp_path)
    assert again.refs.tolist() == models.refs.tolist()
    for name in models.models:
        np.testing.assert_array_equal(dense(again, name), dense(models, name))
    save_item_models(ItemModels(), tmp_path)
    assert load_item_models(tmp_path).models == {}


def test_a_model_may_say_nothing_at_all() -> None:
    empty = ItemModel(np.zeros(4, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    catalogue = plain(3)
    models = ItemModels(np.array([item_ref(f"i{n}") for n in range(3)], np.uint64), {"ease": empty})
    assert models.follow("ease", np.arange(3), np.ones(3), catalogue).tolist() == [0, 0, 0]
    assert models.strongest("ease", np.arange(3), 0, catalogue) == -1
