"""Each method of re-ranking against its definition: by hand, by brute force, and against pyversity."""

import itertools
from typing import Any

import numpy as np
import pytest
import pyversity
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_diversify_contract import SEEDS, draw, unit

from recsys.diversify import COVERAGES, Diversity, Shown, Topics, diversify, fading
from recsys.diversify.gains import MIXED_IN

BLEND = Diversity().blend


def test_mmr_by_hand() -> None:
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [0, 0]], np.float32)
    relevance = np.array([1.0, 0.9, 0.4, 0.0])
    mmr = Diversity(method="mmr", strength=0.5)
    # s = .5, after a:  b .45 - .5·.8 = .05, c .2 - 0 = .2, d 0 - 0;  then b .05 still (.8 is more than b-c's .6), d 0
    choice = diversify(relevance, vectors, 4, mmr)
    assert choice.positions.tolist() == [0, 2, 1, 3]
    np.testing.assert_allclose(choice.parts[:, 0], [0.5, 0.2, 0.45, 0])
    np.testing.assert_allclose(choice.parts[:, 1], [0, 0, -0.4, 0], atol=1e-7)
    # s = .3, after a:  b .63 - .24 = .39, c .28
    assert diversify(relevance, vectors, 4, Diversity(method="mmr", strength=0.3)).positions.tolist() == [0, 1, 2, 3]


def test_max_sum_by_hand() -> None:
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]], np.float32)
    relevance = np.array([1.0, 0.9, 0.4, 0.0])
    # s = .5, after a:  b .45 + .1, c .2 + .5, d 0 + 1;  after d:  b .45 + .1 + .9, c .2 + .5 + .5
    choice = diversify(relevance, vectors, 4, Diversity(method="max_sum", strength=0.5))
    assert choice.positions.tolist() == [0, 3, 1, 2]
    np.testing.assert_allclose(choice.parts.sum(axis=1), [0.5, 1, 1.45, 1.4], atol=1e-6)


def test_a_window_forgets_what_stands_further_up() -> None:
    """Twins a, a' and strangers: with a window of 1, a' follows as soon as a is not the last."""
    vectors = unit([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    relevance = np.array([1.0, 0.9, 0.2, 0.0])
    for method in ("mmr", "dpp", "ssd"):
        whole, last = (
            diversify(relevance, vectors, 4, Diversity(method=method, strength=0.7, window=w))  # type: ignore[arg-type]
            for w in (0, 1)
        )
        assert whole.positions.tolist() == [0, 2, 3, 1]
        assert last.positions.tolist() == [0, 2, 1, 3]


PEER: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("mmr", {"scale": "raw"}, {}),
    ("msd", {"scale": "raw"}, {}),
    ("dpp", {"scale": "zscore", "blend": 1.0}, {}),
    ("ssd", {"scale": "zscore", "blend": 1.0}, {}),
    ("ssd", {"scale": "zscore", "blend": 1.0, "window": 5}, {"window": 5}),
]


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(("theirs", "ours", "more"), PEER)
def test_where_the_objective_is_the_same_the_lists_are_pyversitys(
    theirs: str, ours: dict[str, Any], more: dict[str, Any], strength: float
) -> None:
    """Its dpp weighs relevance by exp((1 - d)·z), so z counts 2(1 - d) times as much as the log-determinant."""
    own = 1 / (1 + 2 * (1 - strength)) if theirs == "dpp" else strength
    how = Diversity(method={"msd": "max_sum"}.get(theirs, theirs), strength=own, **ours)  # type: ignore[arg-type]
    same = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        vectors, relevance = unit(rng.normal(size=(100, 32))), rng.random(100).astype(np.float32)
        other = pyversity.diversify(vectors, relevance, k=15, strategy=theirs, diversity=strength, **more)
        same += diversify(relevance, vectors, 15, how).positions.tolist() == other.indices.tolist()
    assert same == 30


def test_what_was_shown_moves_ssd_as_it_moves_pyversitys() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        vectors, relevance, recent = unit(rng.normal(size=(60, 16))), rng.random(60), unit(rng.normal(size=(6, 16)))
        other = pyversity.diversify(vectors, relevance, k=10, strategy="ssd", diversity=0.5, recent_embeddings=recent)
        how = Diversity(method="ssd", strength=0.5, scale="zscore", blend=1.0)
        ours = diversify(relevance, vectors, 10, how, shown=Shown(recent, np.zeros(6)))
        assert ours.positions.tolist() == other.indices.tolist()


def brute_force(
    relevance: NDArray[np.float64],
    vectors: NDArray[np.float32],
    k: int,
    strength: float,
    shown: Shown | None = None,
    blend: float = BLEND,
) -> list[set[int]]:
    """Slot by slot everybody within rounding of the greatest log-determinant, following the given choice's own path."""
    scaled = (relevance - relevance.min()) / np.ptp(relevance)
    past = np.zeros((0, vectors.shape[1]), np.float32) if shown is None else shown.vectors
    noise = np.zeros(0) if shown is None else shown.noise
    everything = np.concatenate([past, vectors]).astype(np.float64)
    kernel = blend * everything @ everything.T
    np.fill_diagonal(kernel, np.concatenate([1 + noise, np.ones(len(vectors))]))
    how = Diversity(strength=strength, blend=blend)
    positions = diversify(relevance, vectors, k, how, shown=shown).positions.tolist()
    best = []
    before = list(range(len(past)))
    for step in range(k):
        taken = before + [len(past) + at for at in positions[:step]]
        gains = {}
        for at in set(range(len(vectors))) - set(positions[:step]):
            whole = [*taken, len(past) + at]
            volume = np.linalg.slogdet(kernel[np.ix_(whole, whole)])[1] - (
                np.linalg.slogdet(kernel[np.ix_(taken, taken)])[1] if taken else 0.0
            )
            gains[at] = (1 - strength) * scaled[at] + strength * volume
        best.append({at for at, gain in gains.items() if gain > max(gains.values()) - 1e-5})
    assert all(at in tied for at, tied in zip(positions, best, strict=True))
    return best


@given(seed=SEEDS, strength=st.sampled_from([0.1, 0.5, 0.9, 1.0]), dim=st.sampled_from([3, 12]), n=st.integers(8, 16))
@settings(max_examples=60)
def test_dpp_chooses_what_brute_force_over_determinants_chooses(seed: int, strength: float, dim: int, n: int) -> None:
    """Lists longer than the rank of the vectors included, and the first of those that are the same to the last bit."""
    relevance, vectors = draw(seed, n, dim)
    brute_force(relevance, vectors, 8, strength)


@given(seed=SEEDS, strength=st.sampled_from([0.1, 0.5, 0.9, 1.0]), dim=st.sampled_from([3, 12]), had=st.integers(1, 6))
@settings(max_examples=60)
def test_with_a_history_too(seed: int, strength: float, dim: int, had: int) -> None:
    """log det of K over history and list, noise on the history's diagonal: its growth is the conditional variance."""
    rng = np.random.default_rng(seed)
    relevance, vectors = draw(seed, 14, dim)
    brute_force(relevance, vectors, 8, strength, Shown(unit(rng.normal(size=(had, dim))), rng.exponential(1, had)))


def test_the_conditional_variance_is_the_formula() -> None:
    """res_i = K_ii - K_iH (K_HH + Σ)^-1 K_Hi, as the novelty of the first item says."""
    rng = np.random.default_rng(0)
    vectors, past, noise = unit(rng.normal(size=(1, 4))), unit(rng.normal(size=(5, 4))), rng.exponential(1, 5)
    inner = BLEND * past.astype(np.float64) @ past.T.astype(np.float64)
    np.fill_diagonal(inner, 1 + noise)
    cross = BLEND * vectors.astype(np.float64) @ past.T.astype(np.float64)
    expected = 1 - (cross @ np.linalg.inv(inner) @ cross.T).item()
    choice = diversify(np.ones(1), vectors, 1, Diversity(strength=1.0), shown=Shown(past, noise))
    assert np.exp(choice.parts[0, 1]) == pytest.approx(expected, rel=1e-5)


def test_greedy_dpp_is_near_the_best_list_of_all() -> None:
    for seed in range(5):
        vectors = unit(np.random.default_rng(seed).normal(size=(10, 6)))
        kernel = BLEND * vectors.astype(np.float64) @ vectors.T + (1 - BLEND) * np.eye(10)
        volume = {p: np.linalg.slogdet(kernel[np.ix_(p, p)])[1] for p in itertools.combinations(range(10), 4)}
        chosen = diversify(np.zeros(10), vectors, 4, Diversity(strength=1.0)).positions
        assert volume[tuple(sorted(chosen.tolist()))] >= np.quantile(list(volume.values()), 0.9)


def test_dpp_does_not_run_out_of_rank() -> None:
    """50 places out of 4 dimensions: without the blend, all residuals would be 0 after the fourth."""
    rng = np.random.default_rng(1)
    vectors, relevance = unit(rng.normal(size=(100, 4))), rng.random(100)
    for blend in (BLEND, 1.0):
        chosen = diversify(relevance, vectors, 50, Diversity(strength=0.3, blend=blend)).positions
        assert relevance[chosen].mean() > relevance.mean() + 0.1


def test_a_tiny_strength_overflows_nothing() -> None:
    relevance, vectors = draw(3, 30)
    for method in ("mmr", "max_sum", "dpp", "ssd"):
        chosen = diversify(relevance, vectors, 10, Diversity(method=method, strength=1e-300)).positions  # type: ignore[arg-type]
        assert chosen.tolist() == np.argsort(-relevance)[:10].tolist()


def test_what_was_shown_fades() -> None:
    assert fading(np.array([0.0, 1e9]), 3600.0).tolist()[0] == 0
    assert np.isfinite(fading(np.array([1e12]), 1.0)).all()


# --- coverage of topics -----------------------------------------------------------------------------------------------


def worth_of(kind: str, held: dict[int, list[float]], want: NDArray[np.float64]) -> float:
    """A list's coverage by its definition. held: by topic the shares of the items that are about it."""
    total, length = 0.0, sum(map(len, held.values()))
    for topic, weight in enumerate(want.tolist()):
        shares = held.get(topic, [])
        if kind == "root":
            total += weight * sum(shares) ** 0.5
        elif kind == "log":
            total += weight * float(np.log1p(sum(shares)))
        elif kind == "xquad":
            total += weight * (1 - float(np.prod([1 - share for share in shares])))
        elif weight > 0:
            share = sum(shares) / length if length else 0.0
            total -= weight * float(np.log(weight / ((1 - MIXED_IN) * share + MIXED_IN * weight)))
    return total


@pytest.mark.parametrize("kind", [kind for kind in COVERAGES if kind != "none"])
@given(seed=SEEDS)
def test_coverage_is_what_its_definition_says(kind: str, seed: int) -> None:
    """Greedy over the whole list's coverage, worked out anew for every candidate. (KL: among lists of the same length.)"""
    rng = np.random.default_rng(seed)
    codes, want = rng.integers(0, 4, (12, 1)).astype(np.int32), rng.dirichlet(np.ones(4))
    shares = np.full((12, 1), 1.0) if kind == "calibration" else rng.uniform(0.2, 0.9, (12, 1))
    relevance = rng.random(12)
    how = Diversity(method="none", coverage=kind, coverage_weight=0.8, scale="raw")  # type: ignore[arg-type]
    choice = diversify(relevance, np.zeros((12, 2), np.float32), 6, how, topics=Topics(codes, shares, want))
    held: dict[int, list[float]] = {}
    for slot, at in enumerate(choice.positions.tolist()):
        gains = {}
        for other in set(range(12)) - set(choice.positions[:slot].tolist()):
            topic = int(codes[other, 0])
            after = held | {topic: [*held.get(topic, []), float(shares[other, 0])]}
            gains[other] = relevance[other] + 0.8 * worth_of(kind, after, want)
        assert gains[at] >= max(gains.values()) - 1e-9
        if kind != "calibration":
            assert choice.parts[slot, 2] == pytest.approx(gains[at] - relevance[at] - 0.8 * worth_of(kind, held, want))
        topic = int(codes[at, 0])
        held.setdefault(topic, []).append(float(shares[at, 0]))


def test_root_coverage_by_hand() -> None:
    """Two topics, wished for 3 : 1. After an a, another a adds .75(√2 - 1) = .31 and a b .25."""
    topics = Topics(np.array([[0], [0], [1]], np.int32), np.ones((3, 1)), np.array([0.75, 0.25]))
    how = Diversity(method="none", coverage="root", coverage_weight=1.0, scale="raw")
    choice = diversify(np.zeros(3), np.zeros((3, 1), np.float32), 3, how, topics=topics)
    assert choice.positions.tolist() == [0, 1, 2]
    np.testing.assert_allclose(choice.parts[:, 2], [0.75, 0.75 * (2**0.5 - 1), 0.25])


def test_a_calibrated_list_has_the_users_shares() -> None:
    """Ten items of each of four kinds, all alike relevant; the user's tastes are 5 : 3 : 2 : 0."""
    codes, want = np.repeat(np.arange(4, dtype=np.int32), 10)[:, None], np.array([0.5, 0.3, 0.2, 0.0])
    how = Diversity(method="none", coverage="calibration", coverage_weight=1.0)
    topics = Topics(codes, np.ones((40, 1)), want)
    chosen = diversify(np.zeros(40), np.zeros((40, 1), np.float32), 10, how, topics=topics).positions
    assert np.bincount(codes[chosen, 0], minlength=4).tolist() == [5, 3, 2, 0]
