"""Figures by hand, against brute force, and where definitions commonly differ."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import Misuse
from recsys.metrics import (
    average_precision_at_k,
    calibration_kl,
    category_entropy,
    coverage,
    exposure,
    f1_at_k,
    gini,
    hit_at_k,
    inter_user_overlap,
    interval,
    mean_distance,
    min_distance,
    ndcg_at_k,
    novelty,
    path_distances,
    recall_at_k,
    resample_means,
    vector_distances,
)

ACCURACY = [ndcg_at_k, recall_at_k, average_precision_at_k, f1_at_k, hit_at_k]
LISTS = st.lists(st.integers(0, 30), max_size=15, unique=True)
TRUTHS = st.sets(st.integers(0, 30), min_size=1, max_size=15)


# --- right ------------------------------------------------------------------------------------------------------------


def test_ndcg_by_hand_with_the_ideal_of_a_short_truth() -> None:
    # hits at places 2 and 4; the truth has 2, so the ideal is places 1 and 2, not all of k
    gained = 1 / np.log2(3) + 1 / np.log2(5)
    assert ndcg_at_k([9, 1, 8, 2, 7], {1, 2}, 5) == pytest.approx(gained / (1 + 1 / np.log2(3)))
    # a truth longer than k: the ideal is k places
    assert ndcg_at_k([1, 2], {1, 2, 3, 4}, 2) == 1.0


def test_average_precision_by_hand_is_divided_by_the_places_that_could_hit() -> None:
    assert average_precision_at_k([9, 1, 8, 2], {1, 2}, 4) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert average_precision_at_k([1, 2], {1, 2, 3, 4}, 2) == 1.0


def test_f1_by_hand_and_a_short_list_counts_as_k() -> None:
    assert f1_at_k([1, 2, 9, 8], {1, 2, 3, 4}, 4) == pytest.approx(0.5)
    assert f1_at_k([1], {1, 2}, 10) == pytest.approx(2 / 12)


@pytest.mark.parametrize("metric", ACCURACY)
@given(ranked=LISTS, truth=TRUTHS, k=st.integers(1, 20))
def test_every_accuracy_is_between_0_and_1_and_0_only_without_a_hit(metric, ranked, truth, k) -> None:  # type: ignore[no-untyped-def]
    value = metric(ranked, truth, k)
    assert 0 <= value <= 1 + 1e-12
    assert (value > 0) == bool(truth & set(ranked[:k]))


@pytest.mark.parametrize("metric", ACCURACY)
@given(ranked=LISTS.filter(len), truth=TRUTHS, k=st.integers(1, 20))
def test_what_stands_beyond_k_does_not_count(metric, ranked, truth, k) -> None:  # type: ignore[no-untyped-def]
    assert metric(ranked, truth, k) == metric(ranked[:k], truth, k)


@given(truth=TRUTHS, k=st.integers(1, 20), rest=LISTS)
def test_a_perfect_list_has_ndcg_and_average_precision_1_whatever_follows(truth, k, rest) -> None:  # type: ignore[no-untyped-def]
    perfect = [*truth, *(item for item in rest if item not in truth)]
    assert ndcg_at_k(perfect, truth, k) == pytest.approx(1)
    assert average_precision_at_k(perfect, truth, k) == pytest.approx(1)


def test_a_hit_one_place_higher_is_worth_more() -> None:
    for metric in (ndcg_at_k, average_precision_at_k):
        values = [metric([*range(100, 100 + at), 1, *range(200, 209 - at)], {1, 2}, 10) for at in range(10)]
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == 10


@pytest.mark.parametrize("metric", ACCURACY)
@pytest.mark.parametrize(("ranked", "truth", "k"), [([1], set(), 3), ([1, 1], {1}, 3), ([1], {1}, 0)])
def test_no_truth_a_doubled_item_and_k_0_are_refused(metric, ranked, truth, k) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Misuse):
        metric(ranked, truth, k)


# --- varied within ----------------------------------------------------------------------------------------------------


def test_distances_of_a_list_by_hand() -> None:
    vectors = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
    distances = vector_distances(vectors)  # pairs: .4, 1, .2
    assert mean_distance(distances) == pytest.approx(1.6 / 3)
    assert min_distance(distances) == pytest.approx(0.2)
    assert mean_distance(distances[:1, :1]) == min_distance(distances[:0, :0]) == 0


def test_category_paths_share_their_upper_levels() -> None:
    paths = np.array([[1, 2, 3], [1, 2, 4], [1, 2, -1], [5, 6, 7], [-1, -1, -1]], np.int32)
    distances = path_distances(paths)
    np.testing.assert_allclose(distances[0], [0, 1 / 3, 1 / 3, 1, 1])
    assert distances[4].tolist() == [1] * 5  # nothing is known about it, not even that it is like itself


def test_entropy_of_categories() -> None:
    assert category_entropy(np.array([3, 3, 3], np.int32)) == 0
    assert np.exp(category_entropy(np.arange(10, dtype=np.int32))) == pytest.approx(10)
    assert category_entropy(np.array([], np.int32)) == 0


def test_calibration_is_0_for_the_users_own_mix_and_grows_away_from_it() -> None:
    mix = np.array([0.6, 0.3, 0.1, 0])
    values = [calibration_kl(mix, (1 - t) * mix + t * np.array([0, 0, 0, 1.0])) for t in (0, 0.3, 0.6, 1)]
    assert values[0] == pytest.approx(0)
    assert values == sorted(values)
    assert values[-1] == pytest.approx(np.log(100))


# --- different between users ------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(1, 8))
def test_overlap_by_counting_items_is_overlap_by_comparing_pairs(seed: int, users: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    lists = np.array([rng.permutation(15)[:k] for _ in range(users)])
    lists[rng.random(lists.shape) < 0.1] = -1
    pairs = [len((set(a) & set(b)) - {-1}) / k for a, b in combinations(lists.tolist(), 2)]
    assert inter_user_overlap(lists) == pytest.approx(np.mean(pairs))


def test_overlap_of_the_same_and_of_strangers() -> None:
    assert inter_user_overlap(np.tile(np.arange(10), (7, 1))) == pytest.approx(1)
    assert inter_user_overlap(np.arange(70).reshape(7, 10)) == 0
    assert inter_user_overlap(np.arange(10)[None]) == 0


def test_exposure_coverage_and_gini_by_hand() -> None:
    shown = exposure(np.array([[0, 1], [0, 2], [0, -1]]), 5)
    assert shown.tolist() == [3, 1, 1, 0, 0]
    assert coverage(shown) == pytest.approx(0.6)
    # ascending 0 0 1 1 3, weights -4 -2 0 2 4: (2 + 12) / (5 · 4)
    assert gini(shown) == pytest.approx(0.7)
    assert gini(np.zeros(5, np.int64)) == gini(np.array([4])) == 0


def test_novelty_by_hand_and_an_item_nobody_bought_counts_as_bought_once() -> None:
    lists = np.array([[0, 1], [2, -1]])
    assert novelty(lists, np.array([16, 4, 0]), 16) == pytest.approx((0 + 2 + 4) / 3)
    assert novelty(np.full((2, 2), -1), np.array([1]), 16) == 0


# --- how sure ---------------------------------------------------------------------------------------------------------


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        low, high = interval(resample_means(rng.exponential(size=(100, 1)), rng, 400)[:, 0])
        covered += low <= 1 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_a_paired_comparison_is_surer_than_two_separate_ones() -> None:
    rng = np.random.default_rng(0)
    users = rng.gamma(2, size=(500, 1))  # users differ much more than the two methods
    both = resample_means(np.hstack([users, 1.1 * users]), rng)
    low, high = interval(both[:, 1] / both[:, 0])
    assert low == pytest.approx(1.1)
    assert high == pytest.approx(1.1)
    low, high = interval(both[:, 1])
    assert high - low > 0.1


def test_the_same_seed_gives_the_same_interval_and_no_users_none() -> None:
    values = np.random.default_rng(1).random((50, 2))
    one, two = (resample_means(values, np.random.default_rng(7)) for _ in range(2))
    assert (one == two).all()
    with pytest.raises(Misuse):
        resample_means(np.empty((0, 1)), np.random.default_rng(0))
