"""Figures of one user's lists, by hand: within a list, over time, and the article's losses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import Misuse
from recsys.list_metrics import (
    calibration_js,
    calibration_kl,
    category_entropy,
    centroid_norm,
    literal_losses,
    mean_distance,
    min_distance,
    path_distances,
    redundancy,
    temporal_diversity,
    temporal_novelty,
    vector_distances,
)

# --- within a list ----------------------------------------------------------------------------------------------------


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


def test_the_symmetric_divergence_is_bounded_where_the_other_is_not() -> None:
    one, other = np.array([0.5, 0.5, 0, 0]), np.array([0, 0, 0.25, 0.75])
    assert calibration_js(one, other) == pytest.approx(np.log(2)) == calibration_js(other, one)
    # half in common: mean of KL to the middle, by hand
    left, right = np.array([1.0, 0]), np.array([0.5, 0.5])
    by_hand = (np.log(1 / 0.75) + 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)) / 2
    assert calibration_js(left, right) == pytest.approx(by_hand)


@given(st.integers(0, 2**32), st.integers(1, 9))
def test_the_centroids_length_says_the_mean_cosine(seed: int, k: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(k, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert centroid_norm(vectors) ** 2 == pytest.approx(float((1 - vector_distances(vectors)).mean()), abs=1e-6)


# --- over time --------------------------------------------------------------------------------------------------------


def test_what_was_there_last_time_is_not_new_and_what_was_there_before_is_only_different() -> None:
    weeks = [["a", "b", "c"], ["d", "e", "f"], ["a", "b", "g"]]
    assert temporal_diversity(weeks[1], weeks[2], 3) == 1
    assert temporal_novelty(weeks[:2], weeks[2], 3) == pytest.approx(1 / 3)
    assert temporal_diversity(weeks[0], weeks[0], 3) == temporal_novelty(weeks, weeks[0], 3) == 0
    assert temporal_novelty([], weeks[0], 3) == 1


def test_only_the_first_k_places_count_and_another_order_is_no_other_list() -> None:
    assert temporal_diversity(["a", "b", "x"], ["b", "a", "y"], 2) == 0
    assert temporal_diversity(["x"], ["a"], 10) == pytest.approx(0.1)
    with pytest.raises(Misuse):
        temporal_diversity(["a"], ["a", "a"], 2)


# --- the article's losses ---------------------------------------------------------------------------------------------

TWINS = np.array([[1, 0, 0, 0]] * 4, np.float32)
DIFFERENT = np.eye(4, dtype=np.float32)


def test_the_loss_of_accuracy_is_the_lists_length_less_its_hits() -> None:
    lists, bought = [["a", "b", "c", "d"], ["e", "f", "g", "h"]], [{"a"}, {"e", "h", "z"}]
    none = [np.zeros(4)] * 2
    assert literal_losses(lists, bought, none) == (((4 - 1) + (4 - 2)) / 2, 0)


def test_a_list_full_of_duplicates_scores_worse_than_a_varied_one() -> None:
    """With M a redundancy. With M a distance it would be the other way round, which is why M is documented."""
    lists, bought = [["a", "b", "c", "d"]], [{"a"}]
    doubled, varied = (literal_losses(lists, bought, [redundancy(vectors)]) for vectors in (TWINS, DIFFERENT))
    assert doubled[0] == varied[0]
    assert (doubled[1], varied[1]) == (3, 0)
    as_distance = [literal_losses(lists, bought, [1 - redundancy(vectors)])[1] for vectors in (TWINS, DIFFERENT)]
    assert as_distance == [0, 3]


def test_with_m_always_1_both_losses_are_one() -> None:
    accuracy, dispersion = literal_losses([["a", "b"]], [{"b"}], [np.ones(2)])
    assert accuracy == dispersion == 1


def test_redundancy_by_hand_and_of_a_list_of_one() -> None:
    vectors = np.array([[1, 0], [0.6, 0.8], [-1, 0]], np.float32)
    assert redundancy(vectors) == pytest.approx([0.3, 0.3, 0])  # opposites repeat nothing
    assert redundancy(vectors[:1]).tolist() == [0]


@pytest.mark.parametrize(("bought", "weights"), [([], [np.ones(1)]), ([{"a"}], []), ([{"a"}], [np.ones(2)])])
def test_losses_of_unequal_parts_are_refused(bought, weights) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Misuse):
        literal_losses([["a"]], bought, weights)
