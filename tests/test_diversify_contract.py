"""Re-ranking: one battery for every method, and for every method with a window, topics, and what was shown before."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recsys.diversify import COVERAGES, METHODS, AtMost, Diversity, Limits, Shown, Topics, diversify
from recsys.diversify.reasons import nearness
from recsys.errors import Misuse
from recsys.list_metrics import mean_distance, vector_distances

EVERY = pytest.mark.parametrize("method", METHODS)
REPULSIVE = pytest.mark.parametrize("method", [method for method in METHODS if method != "none"])
SEEDS = st.integers(0, 2**32)
STRENGTHS = st.sampled_from([0.0, 0.01, 0.15, 0.5, 0.9, 1.0])


def unit(vectors: Any) -> NDArray[np.float32]:
    rows = np.asarray(vectors, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.float32(1e-9))


def draw(seed: int, n: int, dim: int = 8) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Candidates as they occur: some without a vector, some the same thing twice."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(n, dim)))
    vectors[rng.random(n) < 0.1] = 0
    return rng.normal(0, 3, n), vectors[np.where(rng.random(n) < 0.2, 0, np.arange(n))]


def extras(seed: int, n: int, dim: int = 8) -> dict[str, Any]:
    """Some of: penalties, topics, what was shown."""
    rng = np.random.default_rng(seed + 1)
    some: dict[str, Any] = {}
    if rng.random() < 0.5:
        some["penalty"] = rng.random(n)
    if rng.random() < 0.5:
        some["shown"] = Shown(unit(rng.normal(size=(4, dim))), rng.exponential(1, 4))
    if rng.random() < 0.7:
        some["topics"] = Topics(
            rng.integers(-1, 5, (n, 2)).astype(np.int32), rng.random((n, 2)), rng.dirichlet(np.ones(5))
        )
    return some


def how(method: str, strength: float, seed: int = 0, **fields: Any) -> Diversity:
    """Settings of one method, the rest drawn."""
    rng = np.random.default_rng(seed + 2)
    drawn = {
        "window": int(rng.choice([0, 0, 1, 3, 8])),
        "coverage": str(rng.choice(COVERAGES)),
        "blend": rng.choice([0.5, 0.9]),
    }
    return Diversity(method=method, strength=strength, **(drawn if seed else {}) | fields)  # type: ignore[arg-type]


@EVERY
@given(seed=SEEDS, n=st.integers(0, 40), k=st.integers(0, 50), strength=STRENGTHS)
def test_min_k_n_distinct_candidates_are_chosen_with_finite_gains(
    method: str, seed: int, n: int, k: int, strength: float
) -> None:
    choice = diversify(*draw(seed, n), k, how(method, strength, seed), **extras(seed, n))
    positions = choice.positions.tolist()
    assert len(positions) == len(set(positions)) == len(choice.parts) == min(k, n)
    assert set(positions) <= set(range(n))
    assert np.isfinite(choice.parts).all()
    assert choice.positions.dtype == np.int64
    assert choice.relaxed == ()


@EVERY
@given(seed=SEEDS, n=st.integers(1, 60), k=st.integers(1, 30), strength=STRENGTHS)
def test_looking_at_few_gives_the_list_of_looking_at_all(
    method: str, seed: int, n: int, k: int, strength: float
) -> None:
    candidates, settings_, more = draw(seed, n), how(method, strength, seed), extras(seed, n)
    lazy, eager = (diversify(*candidates, k, settings_, **more, lazy=lazy) for lazy in (True, False))
    assert lazy.positions.tolist() == eager.positions.tolist()
    assert (lazy.parts == eager.parts).all()


@EVERY
@given(seed=SEEDS, strength=STRENGTHS)
def test_looking_at_few_gives_the_list_of_looking_at_all_when_many_are_alike(
    method: str, seed: int, strength: float
) -> None:
    """Scores and vectors from a handful: ties everywhere."""
    rng = np.random.default_rng(seed)
    vectors, relevance = unit(rng.normal(size=(5, 6)))[rng.integers(0, 5, 80)], rng.integers(0, 3, 80).astype(float)
    lazy, eager = (diversify(relevance, vectors, 30, how(method, strength, seed), lazy=lazy) for lazy in (True, False))
    assert lazy.positions.tolist() == eager.positions.tolist()


@EVERY
@given(seed=SEEDS, strength=STRENGTHS)
def test_the_same_candidates_give_the_same_list_and_are_left_as_they_were(
    method: str, seed: int, strength: float
) -> None:
    relevance, vectors = draw(seed, 30)
    kept = relevance.copy(), vectors.copy()
    one, two = (diversify(relevance, vectors, 10, how(method, strength, seed)).positions.tolist() for _ in range(2))
    assert one == two
    assert (relevance == kept[0]).all()
    assert (vectors == kept[1]).all()


@EVERY
@given(seed=SEEDS, strength=STRENGTHS)
def test_a_shorter_list_is_the_beginning_of_a_longer_one(method: str, seed: int, strength: float) -> None:
    relevance, vectors = draw(seed, 20)
    short, long = (diversify(relevance, vectors, k, how(method, strength, seed)).positions.tolist() for k in (5, 15))
    assert short == long[:5]


@EVERY
@given(seed=SEEDS)
def test_strength_0_is_relevance_alone(method: str, seed: int) -> None:
    relevance, vectors = draw(seed, 20)
    assert diversify(relevance, vectors, 20, how(method, 0)).positions.tolist() == np.argsort(-relevance).tolist()


@EVERY
@given(seed=SEEDS, strength=STRENGTHS.filter(lambda s: s < 1))
def test_the_most_relevant_comes_first(method: str, seed: int, strength: float) -> None:
    relevance, vectors = draw(seed, 20)
    assert diversify(relevance, vectors, 3, how(method, strength)).positions[0] == np.argmax(relevance)


@pytest.mark.parametrize("to", ["unit", "zscore"])
@pytest.mark.parametrize("step", [1e-200, 1e-310, 5e-324])
def test_scores_that_hardly_differ_make_a_whole_list_of_finite_gains(to: str, step: float) -> None:
    choice = diversify(np.arange(3) * step, np.eye(3, dtype=np.float32), 3, how("dpp", 0.3, scale=to))
    assert sorted(choice.positions.tolist()) == [0, 1, 2]
    assert np.isfinite(choice.parts).all()


@EVERY
@given(seed=SEEDS, scale=st.sampled_from([1e-3, 2.0, 1e6]), offset=st.sampled_from([-50.0, 0.0, 7.0]))
@pytest.mark.parametrize("to", ["unit", "zscore"])
def test_the_scale_of_the_scores_does_not_matter(method: str, to: str, seed: int, scale: float, offset: float) -> None:
    relevance, vectors = draw(seed, 20)
    relevance = np.round(relevance, 6)  # far from ties that another scale would round together
    one, two = (
        diversify(scores, vectors, 10, how(method, 0.4, scale=to)).positions
        for scores in (relevance, relevance * scale + offset)
    )
    assert one.tolist() == two.tolist()


@EVERY
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_ties_go_to_the_candidate_given_first_and_with_ids_to_the_lesser_id(method: str, strength: float) -> None:
    orthogonal, even = np.eye(6, dtype=np.float32), np.full(6, 2.5)
    assert diversify(even, orthogonal, 4, how(method, strength)).positions.tolist() == [0, 1, 2, 3]
    ids = ["f", "e", "d", "c", "b", "a"]
    assert diversify(even, orthogonal, 4, how(method, strength), ids=ids).positions.tolist() == [5, 4, 3, 2]


@EVERY
@given(seed=SEEDS, strength=STRENGTHS)
def test_the_order_of_the_candidates_does_not_matter_if_they_have_ids(method: str, seed: int, strength: float) -> None:
    (relevance, vectors), ids = draw(seed, 30), np.array([f"i{n}" for n in range(30)])
    relevance = np.round(relevance)  # ties
    more = extras(seed, 30)
    mixed = np.random.default_rng(seed).permutation(30)
    moved = dict(more)
    if "penalty" in more:
        moved["penalty"] = more["penalty"][mixed]
    if "topics" in more:
        moved["topics"] = Topics(more["topics"].codes[mixed], more["topics"].shares[mixed], more["topics"].want)
    settings_ = how(method, strength, seed)
    one = diversify(relevance, vectors, 12, settings_, ids=ids, **more)
    two = diversify(relevance[mixed], vectors[mixed], 12, settings_, ids=ids[mixed], **moved)
    assert ids[one.positions].tolist() == ids[mixed][two.positions].tolist()
    assert (one.parts == two.parts).all()


@EVERY
@given(seed=SEEDS, strength=STRENGTHS)
def test_a_duplicate_of_an_item_never_stands_twice(method: str, seed: int, strength: float) -> None:
    """The same id again, be it with another score; of a product's variants the one with the greatest gain."""
    rng = np.random.default_rng(seed)
    relevance, vectors = draw(seed, 40)
    ids = rng.integers(0, 15, 40)
    chosen = diversify(relevance, vectors, 40, how(method, strength, seed), ids=ids).positions
    assert len(chosen) == len(set(ids.tolist()))
    for at in chosen:
        assert relevance[at] == relevance[ids == ids[at]].max()
    product = np.where(rng.random(40) < 0.3, -1, rng.integers(0, 9, 40))
    of = product[
        diversify(relevance, vectors, 40, how(method, strength, seed), limits=Limits(product=product)).positions
    ]
    assert len(of[of >= 0]) == len(set(of[of >= 0].tolist())) == len(set(product[product >= 0].tolist()))
    assert (of == -1).sum() == (product == -1).sum()


@EVERY
@given(seed=SEEDS, strength=STRENGTHS)
def test_a_row_of_a_larger_table_is_as_good_as_a_vector_of_ones_own(method: str, seed: int, strength: float) -> None:
    relevance, vectors = draw(seed, 30)
    rows = np.random.default_rng(seed).permutation(200)[:30]
    table = np.full((200, 8), np.nan, np.float32)
    table[rows] = vectors
    one = diversify(relevance, vectors, 10, how(method, strength, seed))
    two = diversify(relevance, table, 10, how(method, strength, seed), rows=rows)
    assert one.positions.tolist() == two.positions.tolist()


@EVERY
def test_arrays_of_another_kind_are_taken_as_they_are_meant(method: str) -> None:
    relevance, vectors = draw(5, 30)
    expected = diversify(relevance, vectors, 10, how(method, 0.4)).positions.tolist()
    read_only = vectors.copy()
    read_only.flags.writeable = False
    for other in (read_only, np.asfortranarray(vectors), vectors.astype(np.float64), np.repeat(vectors, 2, 0)[::2]):
        assert diversify(relevance, other, 10, how(method, 0.4)).positions.tolist() == expected
    assert diversify(relevance.astype(np.float32), vectors, 10, how(method, 0.4)).positions.tolist() == expected


@EVERY
def test_items_without_a_vector_are_ranked_by_relevance(method: str) -> None:
    choice = diversify(np.array([1.0, 3.0, 2.0]), np.zeros((3, 4), np.float32), 3, how(method, 0.5))
    assert choice.positions.tolist() == [1, 2, 0]


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_score_that_is_not_finite_is_refused_and_its_candidate_named(
    method: str, bad: float, strength: float
) -> None:
    relevance, vectors = draw(0, 5)
    relevance[3] = bad
    for ids in (None, ["e", "d", "c", "b", "a"]):
        with pytest.raises(Misuse, match="relevance or penalty of candidate 3 is not finite.*filter it out"):
            diversify(relevance, vectors, 3, how(method, strength), ids=ids)
    with pytest.raises(Misuse, match="candidate 3 is not finite"):
        diversify(np.ones(5), vectors, 3, how(method, strength), penalty=relevance)


@REPULSIVE
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("window", [0, 1])
def test_a_vector_that_is_not_finite_never_takes_part_in_a_choice(method: str, bad: float, window: int) -> None:
    relevance, vectors = draw(0, 9)
    vectors[4, 3] = bad
    with pytest.raises(Misuse, match=r"vector .* of candidate \d is not finite"):
        diversify(relevance, vectors, 9, how(method, 0.5, window=window))
    with pytest.raises(Misuse, match="finite"):
        diversify(relevance[:4], vectors[:4], 3, how(method, 0.5), shown=Shown(vectors[4:5], np.zeros(1)))


@EVERY
@pytest.mark.parametrize(("n", "k", "strength"), [(4, 3, 0.5), (5, -1, 0.5), (5, 3, 1.1), (5, 3, -0.1), (5, 3, np.nan)])
def test_shapes_and_strengths_that_mean_nothing_are_refused(method: str, n: int, k: int, strength: float) -> None:
    with pytest.raises(Misuse, match="strength from 0 to 1"):
        diversify(np.arange(5.0), np.eye(n, 8, dtype=np.float32), k, how(method, strength))


def test_what_does_not_fit_together_is_refused() -> None:
    relevance, vectors = draw(0, 5)
    codes, even = np.zeros((5, 1), np.int32), np.ones((5, 1))
    covering = Diversity(coverage="root")
    for topics in (
        Topics(codes[:4], even[:4], np.ones(1)),
        Topics(codes, even[:4], np.ones(1)),
        Topics(codes + 1, even, np.ones(1)),
        Topics(codes, -even, np.ones(1)),
        Topics(codes, even, np.array([np.nan])),
    ):
        with pytest.raises(Misuse, match="topics"):
            diversify(relevance, vectors, 3, covering, topics=topics)
    with pytest.raises(Misuse, match="4 ids for 5 candidates"):
        diversify(relevance, vectors, 3, ids=["a", "b", "c", "d"])
    with pytest.raises(Misuse, match="noise of at least 0"):
        diversify(relevance, vectors, 3, shown=Shown(vectors[:1], -np.ones(1)))
    with pytest.raises(Misuse, match="speaks of 4 candidates"):
        diversify(relevance, vectors, 3, limits=Limits(at_most=(AtMost(name="x", codes=np.arange(4)),)))


@pytest.mark.parametrize("wrong", [{"method": "best"}, {"scale": "log"}, {"coverage": "all"}])
def test_an_unknown_setting_is_named_with_those_there_are(wrong: dict[str, str]) -> None:
    with pytest.raises(Misuse, match=r"there are none, mmr, max_sum, dpp, ssd; raw, unit, zscore; none, root"):
        diversify(np.ones(2), np.eye(2, dtype=np.float32), 1, Diversity(**wrong))  # type: ignore[arg-type]


def test_nearness_is_one_minus_the_nearest_above() -> None:
    vectors = unit([[1, 0], [1, 0], [3, 4], [-1, 0]])
    np.testing.assert_allclose(nearness(vectors), [1, 0, 0.4, 1], atol=1e-6)
    assert nearness(vectors[:0]).tolist() == []


@EVERY
def test_one_candidate_and_none(method: str) -> None:
    one, vector = np.array([-7.0]), np.ones((1, 1), np.float32)
    assert diversify(one, vector, 3, how(method, 0.5)).positions.tolist() == [0]
    assert diversify(one, vector, 0, how(method, 0.5)).positions.tolist() == []
    assert diversify(one[:0], vector[:0], 3, how(method, 0.5)).positions.tolist() == []


@REPULSIVE
def test_a_twin_gives_way_to_something_else(method: str) -> None:
    vectors = unit([[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    relevance = np.array([1.0, 0.95, 0.0])
    assert diversify(relevance, vectors, 2, how(method, 0.05)).positions.tolist() == [0, 1]
    assert diversify(relevance, vectors, 2, how(method, 0.8)).positions.tolist() == [0, 2]


@REPULSIVE
@given(seed=SEEDS)
def test_twins_come_last_when_variety_is_all_that_counts(method: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = np.repeat(np.eye(10, dtype=np.float32), 5, axis=0)[rng.permutation(50)]
    chosen = diversify(rng.random(50), vectors, 10, how(method, 0.95)).positions
    assert len(np.unique(vectors[chosen], axis=0)) == 10


@REPULSIVE
def test_more_strength_means_lists_that_are_further_apart(method: str) -> None:
    spread = []
    for strength in (0.0, 0.3, 0.6, 0.9):
        distances = []
        for seed in range(40):
            rng = np.random.default_rng(seed)
            relevance, vectors = rng.random(60), unit(np.abs(rng.normal(size=(60, 8))))
            chosen = vectors[diversify(relevance, vectors, 10, how(method, strength)).positions]
            distances.append(mean_distance(vector_distances(chosen)))
        spread.append(float(np.mean(distances)))
    assert spread == sorted(spread)
    assert spread[-1] > 1.2 * spread[0]


@pytest.mark.parametrize("method", ["mmr", "dpp", "ssd"])
def test_what_was_shown_a_moment_ago_counts_as_if_it_stood_in_the_list(method: str) -> None:
    """And what was shown long ago does not count at all. (max_sum would add the distance to it.)"""
    vectors = unit([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    relevance = np.array([1.0, 0.9, 0.0])
    for noise, expected in ((0.0, [1, 2, 0]), (1e12, [0, 1, 2])):
        shown = Shown(vectors[:1], np.array([noise]))
        assert diversify(relevance, vectors, 3, how(method, 0.8), shown=shown).positions.tolist() == expected
