"""Figures of all users' lists, by hand and against brute force."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.crowd_metrics import (
    coverage,
    effective_catalogue,
    exposure,
    gini,
    homogenisation,
    inter_user_overlap,
    novelty,
    popularity_complement,
    tail_share,
    user_item_information,
)


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


def test_the_effective_catalogue_is_as_large_as_the_showings_are_even() -> None:
    assert effective_catalogue(np.array([4] * 7 + [0] * 3)) == pytest.approx(7)
    assert effective_catalogue(np.array([9, 0, 0])) == pytest.approx(1)
    assert effective_catalogue(np.zeros(3, np.int64)) == 0
    share = np.array([0.5, 0.25, 0.25])
    assert effective_catalogue(np.array([2, 1, 1])) == pytest.approx(np.exp(-(share @ np.log(share))))


def test_tail_share_and_popularity_complement_by_hand() -> None:
    buyers, shown = np.array([3, 50, 3, 9, 1]), np.array([1, 4, 0, 3, 2])
    assert tail_share(shown, buyers) == pytest.approx(0.6)  # the head is the second alone
    assert tail_share(shown, buyers, head=0.4) == pytest.approx(0.3)
    assert tail_share(np.zeros(5, np.int64), buyers) == 0
    assert popularity_complement(np.array([[1, 3], [4, -1]]), buyers, 100) == pytest.approx((0.5 + 0.91 + 0.99) / 3)
    assert popularity_complement(np.full((2, 2), -1), buyers, 100) == 0


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 8))
def test_information_is_that_of_the_joint_table(seed: int, users: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    lists = np.array([rng.permutation(15)[:k] for _ in range(users)])
    lists[rng.random(lists.shape) < 0.1] = -1
    kept = [[item for item in row if item >= 0] for row in lists.tolist()]
    kept = [row for row in kept if row]
    joint = np.zeros((len(kept), 15))
    for user, row in enumerate(kept):
        joint[user, row] = 1 / len(row) / len(kept)
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    there = joint > 0
    by_table = float((joint[there] * np.log(joint[there] / apart[there])).sum())
    assert user_item_information(lists) == pytest.approx(by_table, abs=1e-9)
    assert 0 <= homogenisation(lists) <= 1


def test_homogenisation_of_the_same_of_strangers_and_of_groups() -> None:
    assert homogenisation(np.tile(np.arange(10), (7, 1))) == pytest.approx(1)
    assert homogenisation(np.arange(70).reshape(7, 10)) == pytest.approx(np.log(10) / np.log(70))
    groups = np.repeat(np.arange(100).reshape(10, 10), 10, axis=0)  # ten groups of ten users
    assert inter_user_overlap(groups) == pytest.approx(9 / 99)
    assert homogenisation(groups) == pytest.approx(np.log(10) / np.log(100))
    assert homogenisation(np.full((3, 2), -1)) == homogenisation(np.zeros((3, 1), np.int64)) == 1
