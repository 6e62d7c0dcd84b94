"""Accuracy by hand, at its borders, and where definitions commonly differ; and intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import Misuse
from recsys.metrics import (
    alpha_ndcg,
    average_precision_at_k,
    f1_at_k,
    hit_at_k,
    interval,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank_at_k,
    resample_means,
    subtopic_recall,
)

ACCURACY = [
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    average_precision_at_k,
    f1_at_k,
    reciprocal_rank_at_k,
    hit_at_k,
]
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


def test_several_wishes_by_hand() -> None:
    about = {"a": {1, 2}, "b": {1}, "c": {3}}
    # b repeats a's topic: worth half; ideal is a, c, b
    gained = 2 + 0.5 / np.log2(3) + 0 / 2
    ideal = 2 + 1 / np.log2(3) + 0.5 / 2
    assert alpha_ndcg(["a", "b", "x"], about, 3) == pytest.approx(gained / ideal)
    assert alpha_ndcg(["a", "c", "b"], about, 3) == pytest.approx(1)
    assert subtopic_recall(["a", "b", "x"], about, 3) == pytest.approx(2 / 3)
    assert subtopic_recall(["x", "c"], about, 1) == 0


def test_alpha_0_counts_repeats_in_full_and_alpha_1_not_at_all() -> None:
    about = {"a": {1}, "b": {1}}
    assert alpha_ndcg(["a", "b"], about, 2, alpha=0) == alpha_ndcg(["b", "a"], about, 2, alpha=0) == 1
    assert alpha_ndcg(["a"], about, 2, alpha=1) == 1


@pytest.mark.parametrize("metric", [alpha_ndcg, subtopic_recall])
@pytest.mark.parametrize(("ranked", "about"), [(["a"], {}), (["a"], {"a": set()}), (["a", "a"], {"a": {1}})])
def test_no_subtopics_and_a_doubled_item_are_refused(metric, ranked, about) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Misuse):
        metric(ranked, about, 3)


def test_precision_and_reciprocal_rank_by_hand() -> None:
    assert precision_at_k([9, 1, 2], {1, 2, 3}, 10) == pytest.approx(2 / 10)
    assert reciprocal_rank_at_k([9, 8, 1], {1}, 3) == pytest.approx(1 / 3)
    assert reciprocal_rank_at_k([9, 8, 1], {1}, 2) == 0


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
