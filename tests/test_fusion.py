"""Rank fusion by hand, and a shortlist in which every source keeps its voice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recsys.candidates import ABSENT, Candidates
from recsys.fusion import cut, reciprocal_rank, shortlist
from recsys.policy import Policy


def draw(seed: int, sources: int = 3, count: int = 30) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores with ties, and ranks as `gather` makes them: each source speaks of some of the candidates."""
    rng = np.random.default_rng(seed)
    ranks = np.full((sources, count), ABSENT, np.int64)
    for row in ranks:
        offered = rng.permutation(count)[: rng.integers(0, count + 1)]
        row[offered] = np.arange(len(offered))
    return rng.integers(0, 6, count).astype(np.float64), ranks


def test_reciprocal_ranks_add_up() -> None:
    fused = reciprocal_rank(np.array([[0, 1, ABSENT], [1, ABSENT, 0]]))
    silent = 1 / (61 + ABSENT)
    assert fused == pytest.approx([1 / 61 + 1 / 62, 1 / 62 + silent, silent + 1 / 61])


def test_what_two_sources_find_beats_what_one_finds_first() -> None:
    ranks = np.array([[0, 5], [ABSENT, 5]])
    assert reciprocal_rank(ranks).argmax() == 1


def test_no_candidates_have_no_scores() -> None:
    assert reciprocal_rank(np.empty((6, 0), np.int64)).shape == (0,)
    assert shortlist(np.empty(0), np.empty((6, 0), np.int64), 10, 3).tolist() == []


@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(0, 4))
def test_a_shortlist_is_ascending_full_and_hears_every_source(seed: int, size: int, voices: int) -> None:
    scores, ranks = draw(seed)
    chosen = shortlist(scores, ranks, size, voices)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == min(size, len(scores))
    best = {int(at) for row in ranks for at in np.argsort(row, kind="stable")[:voices] if row[at] < ABSENT}
    if len(best) <= size:
        assert best <= set(chosen.tolist())
        rest = [at for at in chosen.tolist() if at not in best]
        left = sorted(set(range(len(scores))) - set(chosen.tolist()), key=lambda at: (-scores[at], at))
        assert all((scores[at], -at) > (scores[left[0]], -left[0]) for at in rest if left)
    else:
        assert set(chosen.tolist()) <= best


def test_without_voices_the_score_alone_decides_ties_by_row() -> None:
    ranks = np.array([[2, 1, 0, ABSENT]])
    assert shortlist(np.array([1.0, 3, 1, 3]), ranks, 3, 0).tolist() == [0, 1, 3]


def test_a_source_whose_best_was_filtered_speaks_through_its_next() -> None:
    ranks = np.array([[ABSENT, 8, 9], [0, ABSENT, ABSENT]])
    assert shortlist(np.array([5.0, 1, 4]), ranks, 2, 1).tolist() == [0, 1]


def test_a_silent_source_takes_no_place() -> None:
    ranks = np.array([[ABSENT] * 3, [0, 1, 2]])
    assert shortlist(np.array([1.0, 2, 3]), ranks, 2, 1).tolist() == [0, 2]


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_a_cut_keeps_the_limit_in_order_with_ranks_and_scores(seed: int, limit: int) -> None:
    _, ranks = draw(seed)
    whole = Candidates(np.arange(30) * 7, ranks, np.where(ranks < ABSENT, 1.0 + ranks, 0.0), ("a", "b", "c"))
    few = cut(whole, Policy(candidates=limit))
    assert len(few.rows) == min(limit, 30)
    at = few.rows // 7
    assert at.tolist() == sorted(at.tolist())
    np.testing.assert_array_equal(few.ranks, ranks[:, at])
    np.testing.assert_array_equal(few.scores, whole.scores[:, at])


def test_few_enough_candidates_are_not_touched() -> None:
    whole = Candidates(np.arange(3), np.arange(3)[None], np.ones((1, 3)), ("a",))
    assert cut(whole, Policy(candidates=3)) is whole
