"""Re-ranking inside one list: one battery for every method, then what each method promises."""

import itertools
from typing import Any

import numpy as np
import pytest
import pyversity
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recsys.diversify import METHODS, diversify
from recsys.diversify.dpp import BLEND
from recsys.errors import Misuse
from recsys.metrics import mean_distance, vector_distances

EVERY = pytest.mark.parametrize("method", METHODS)
REPULSIVE = pytest.mark.parametrize("method", [method for method in METHODS if method != "none"])
SEEDS = st.integers(0, 2**32)
STRENGTHS = st.sampled_from([0.0, 0.01, 0.15, 0.5, 0.9, 1.0])


def unit(vectors: Any) -> NDArray[np.float32]:
    rows = np.asarray(vectors, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)


def draw(seed: int, n: int, dim: int = 8) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Candidates as they occur: some without a vector, some the same thing twice."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(n, dim)))
    vectors[rng.random(n) < 0.1] = 0
    return rng.normal(0, 3, n), vectors[np.where(rng.random(n) < 0.2, 0, np.arange(n))]


# --- the battery ------------------------------------------------------------------------------------------------------


@EVERY
@given(seed=SEEDS, n=st.integers(0, 30), k=st.integers(0, 40), strength=STRENGTHS)
def test_min_k_n_distinct_candidates_are_chosen_with_a_novelty_from_0_to_1(
    method: str, seed: int, n: int, k: int, strength: float
) -> None:
    choice = diversify(method, *draw(seed, n), k, strength)
    positions = choice.positions.tolist()
    assert len(positions) == len(set(positions)) == len(choice.novelty) == min(k, n)
    assert set(positions) <= set(range(n))
    assert ((choice.novelty >= 0) & (choice.novelty <= 1)).all()
    assert choice.positions.dtype == np.int64


@EVERY
@given(seed=SEEDS, strength=STRENGTHS)
def test_the_same_candidates_give_the_same_list_and_are_left_as_they_were(
    method: str, seed: int, strength: float
) -> None:
    relevance, vectors = draw(seed, 30)
    kept = relevance.copy(), vectors.copy()
    one, two = (diversify(method, relevance, vectors, 10, strength).positions.tolist() for _ in range(2))
    assert one == two
    assert (relevance == kept[0]).all()
    assert (vectors == kept[1]).all()


@EVERY
@given(seed=SEEDS, strength=STRENGTHS)
def test_a_shorter_list_is_the_beginning_of_a_longer_one(method: str, seed: int, strength: float) -> None:
    relevance, vectors = draw(seed, 20)
    assert (
        diversify(method, relevance, vectors, 5, strength).positions.tolist()
        == diversify(method, relevance, vectors, 15, strength).positions.tolist()[:5]
    )


@EVERY
@given(seed=SEEDS)
def test_strength_0_is_relevance_alone(method: str, seed: int) -> None:
    relevance, vectors = draw(seed, 20)
    assert diversify(method, relevance, vectors, 20, 0).positions.tolist() == np.argsort(-relevance).tolist()


@EVERY
@given(seed=SEEDS, strength=STRENGTHS.filter(lambda s: s < 1))
def test_the_most_relevant_comes_first(method: str, seed: int, strength: float) -> None:
    relevance, vectors = draw(seed, 20)
    assert diversify(method, relevance, vectors, 3, strength).positions[0] == np.argmax(relevance)


@EVERY
@given(seed=SEEDS, scale=st.sampled_from([1e-3, 2.0, 1e6]), offset=st.sampled_from([-50.0, 0.0, 7.0]))
def test_the_scale_of_the_scores_does_not_matter(method: str, seed: int, scale: float, offset: float) -> None:
    relevance, vectors = draw(seed, 20)
    relevance = np.round(relevance, 6)  # far from ties that another scale would round together
    one, two = (diversify(method, r, vectors, 10, 0.4).positions for r in (relevance, relevance * scale + offset))
    assert one.tolist() == two.tolist()


@EVERY
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_ties_go_to_the_candidate_given_first(method: str, strength: float) -> None:
    orthogonal = np.eye(6, dtype=np.float32)
    assert diversify(method, np.full(6, 2.5), orthogonal, 4, strength).positions.tolist() == [0, 1, 2, 3]


@EVERY
def test_items_without_a_vector_are_ranked_by_relevance_and_count_as_new(method: str) -> None:
    choice = diversify(method, np.array([1.0, 3.0, 2.0]), np.zeros((3, 4), np.float32), 3, 0.5)
    assert choice.positions.tolist() == [1, 2, 0]
    assert choice.novelty.tolist() == [1, 1, 1]


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_what_is_not_finite_is_refused(method: str, bad: float, strength: float) -> None:
    relevance, vectors = draw(0, 5)
    with pytest.raises(Misuse, match="finite"):
        diversify(method, np.append(relevance, bad), np.append(vectors, vectors[:1], axis=0), 3, strength)
    vectors[2, 3] = bad
    with pytest.raises(Misuse, match="finite"):
        diversify(method, relevance, vectors, 3, strength)


@EVERY
@pytest.mark.parametrize(("n", "k", "strength"), [(4, 3, 0.5), (5, -1, 0.5), (5, 3, 1.1), (5, 3, -0.1), (5, 3, np.nan)])
def test_shapes_and_strengths_that_mean_nothing_are_refused(method: str, n: int, k: int, strength: float) -> None:
    with pytest.raises(Misuse, match="strength from 0 to 1"):
        diversify(method, np.arange(5.0), np.eye(n, 8, dtype=np.float32), k, strength)


def test_an_unknown_method_is_named_with_those_there_are() -> None:
    with pytest.raises(Misuse, match=r"'ssd'; there are none, mmr, dpp"):
        diversify("ssd", np.ones(2), np.eye(2, dtype=np.float32), 1, 0)


@EVERY
def test_novelty_is_one_minus_the_nearest_before_it(method: str) -> None:
    vectors = unit([[1, 0], [1, 0], [3, 4], [-1, 0]])
    choice = diversify(method, np.array([4.0, 3, 2, 1]), vectors, 4, 0.0)
    np.testing.assert_allclose(choice.novelty, [1, 0, 0.4, 1], atol=1e-6)


@REPULSIVE
def test_a_twin_gives_way_to_something_else(method: str) -> None:
    vectors = unit([[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    relevance = np.array([1.0, 0.95, 0.0])
    assert diversify(method, relevance, vectors, 2, 0.05).positions.tolist() == [0, 1]
    assert diversify(method, relevance, vectors, 2, 0.6).positions.tolist() == [0, 2]


@REPULSIVE
@given(seed=SEEDS)
def test_twins_come_last_when_variety_is_all_that_counts(method: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = np.repeat(np.eye(10, dtype=np.float32), 5, axis=0)[rng.permutation(50)]
    chosen = diversify(method, rng.random(50), vectors, 10, 0.95).positions
    assert len(np.unique(vectors[chosen], axis=0)) == 10


@REPULSIVE
def test_more_strength_means_lists_that_are_further_apart(method: str) -> None:
    spread = []
    for strength in (0.0, 0.3, 0.6, 0.9):
        distances = []
        for seed in range(40):
            rng = np.random.default_rng(seed)
            relevance, vectors = rng.random(60), unit(np.abs(rng.normal(size=(60, 8))))
            chosen = vectors[diversify(method, relevance, vectors, 10, strength).positions]
            distances.append(mean_distance(vector_distances(chosen)))
        spread.append(float(np.mean(distances)))
    assert spread == sorted(spread)
    assert spread[-1] > 1.2 * spread[0]


# --- each method against its definition -------------------------------------------------------------------------------


def test_mmr_by_hand() -> None:
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [0, 0]], np.float32)
    relevance = np.array([1.0, 0.9, 0.4, 0.0])
    # s = .5, after a:  b .45 - .5·.8 = .05, c .2 - 0 = .2, d 0 - 0;  then b .05 still (.8 is more than b-c's .6), d 0
    assert diversify("mmr", relevance, vectors, 4, 0.5).positions.tolist() == [0, 2, 1, 3]
    # s = .3, after a:  b .63 - .24 = .39, c .28
    assert diversify("mmr", relevance, vectors, 4, 0.3).positions.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8])
def test_mmr_makes_the_lists_of_pyversity(strength: float) -> None:
    """Its objective is ours, on relevance that is already between 0 and 1: it does not scale."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        vectors, relevance = unit(rng.normal(size=(100, 32))), rng.random(100)
        relevance = (relevance - relevance.min()) / (relevance.max() - relevance.min())
        theirs = pyversity.diversify(vectors, relevance, k=10, strategy=pyversity.Strategy.MMR, diversity=strength)
        assert diversify("mmr", relevance, vectors, 10, strength).positions.tolist() == theirs.indices.tolist()


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dim", [3, 12])
def test_dpp_chooses_what_brute_force_over_determinants_chooses(strength: float, dim: int) -> None:
    """Lists longer than the rank of the vectors included. (pyversity's kernel is another: exp(β z), not blended.)"""
    for seed in range(15):
        relevance, vectors = draw(seed, 14, dim)
        scaled = (relevance - relevance.min()) / np.ptp(relevance)
        similarity = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
        kernel = BLEND * similarity
        np.fill_diagonal(kernel, 1.0)
        weight = np.exp((1 - strength) / (2 * strength) * scaled)
        whole = weight[:, None] * kernel * weight
        expected: list[int] = []
        for _ in range(8):
            gains = [
                -np.inf if at in expected else np.linalg.slogdet(whole[np.ix_([*expected, at], [*expected, at])])[1]
                for at in range(14)
            ]
            best = max(gains)
            expected.append(next(at for at, gain in enumerate(gains) if gain > best - 1e-6))
        assert diversify("dpp", relevance, vectors, 8, strength).positions.tolist() == expected


def test_greedy_dpp_is_near_the_best_list_of_all() -> None:
    for seed in range(5):
        vectors = unit(np.random.default_rng(seed).normal(size=(10, 6)))
        kernel = BLEND * vectors.astype(np.float64) @ vectors.T + (1 - BLEND) * np.eye(10)
        volume = {p: np.linalg.slogdet(kernel[np.ix_(p, p)])[1] for p in itertools.combinations(range(10), 4)}
        chosen = diversify("dpp", np.zeros(10), vectors, 4, 1.0).positions
        assert volume[tuple(sorted(chosen.tolist()))] >= np.quantile(list(volume.values()), 0.9)


def test_dpp_does_not_run_out_of_rank() -> None:
    """50 places out of 4 dimensions: without the blend, all residuals would be 0 after the fourth."""
    rng = np.random.default_rng(1)
    vectors, relevance = unit(rng.normal(size=(100, 4))), rng.random(100)
    chosen = diversify("dpp", relevance, vectors, 50, 0.3).positions
    assert relevance[chosen].mean() > relevance.mean() + 0.1


def test_a_tiny_strength_overflows_nothing() -> None:
    relevance, vectors = draw(3, 30)
    chosen = diversify("dpp", relevance, vectors, 10, 1e-300).positions
    assert chosen.tolist() == np.argsort(-relevance)[:10].tolist()
