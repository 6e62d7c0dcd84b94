"""Re-ranking: relevance against variety, over one list and what was shown before it. One door, `diversify`.

Methods, windows, coverage of topics, history and limits are settings of one greedy loop (`greedy`), compiled by numba. Cures
sameness within a list and over time; across users it needs penalties from outside (docs/decisions.md). Called by
`recsys/variety.py`, which knows what a policy and a request say.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.diversify.limits import NO_LIMITS, AtLeast, AtMost, Limits, Reserved, report, to_arrays
from recsys.diversify.options import BAD_SCORE, COVERAGES, FINE, METHODS, SCALES, Diversity, Shown, Topics, fading
from recsys.errors import Misuse
from recsys.slates import Relaxed

__all__ = [
    "COVERAGES",
    "METHODS",
    "AtLeast",
    "AtMost",
    "Choice",
    "Diversity",
    "Limits",
    "Reserved",
    "Shown",
    "Topics",
    "diversify",
    "fading",
    "warm_up",
]

PLAIN = Diversity()
_METHOD = {name: code for code, name in enumerate(METHODS)}
_SCALE = {name: code for code, name in enumerate(SCALES)}
_COVERAGE = {name: code for code, name in enumerate(COVERAGES)}
_NO_CODES, _NO_SHARES, _NO_WANT = np.zeros((0, 0), np.int32), np.zeros((0, 0)), np.zeros(0)


class Choice(msgspec.Struct, frozen=True):
    """What was chosen, in order.

    positions: (m,) int64, m ≤ k; parts: (m, 4) float64, each item's gain as relevance, novelty, coverage, penalty;
    relaxed: limits that could not be kept.
    """

    positions: NDArray[np.int64]
    parts: NDArray[np.float64]
    relaxed: tuple[Relaxed, ...] = ()


def diversify(
    relevance: NDArray[np.floating],
    vectors: NDArray[np.float32],
    k: int,
    how: Diversity = PLAIN,
    *,
    rows: NDArray[np.int64] | None = None,
    ids: Sequence[str] | NDArray[np.generic] | None = None,
    penalty: NDArray[np.float64] | None = None,
    shown: Shown | None = None,
    topics: Topics | None = None,
    limits: Limits | None = None,
    lazy: bool = True,
) -> Choice:
    """Choose up to k of N candidates, one by one, each the one with the greatest gain beside those before it.

    relevance: (N,) finite, any scale (how.scale); penalty: (N,) in the same unit, subtracted.
    vectors: (N, D) float32, unit rows, or zero where there is none yet (such an item is unlike everything). They are
    normalised once, when a catalogue takes them in, and not here. With `rows` (N,), vectors is a larger table, and row
    rows[i] belongs to candidate i.
    Ties go to the lesser id where `ids` are given, and then the order of the candidates does not matter and the same id
    is never chosen twice; else to the lesser position (the pipeline gives candidates by row). lazy=False looks at
    every candidate for every slot: the same list, slower; it is there for tests.
    The list is min(k, N) long, or shorter if limits that cannot give way leave nobody.

    Raises Misuse: shapes that differ, a score, penalty or *looked-at* vector that is not finite, a strength outside
    [0, 1], a k below 0. For N = 200, k = 20, D = 384 about 30 µs; N = 1000, k = 50 about 150 µs (docs/measurements.md).
    Some 40 µs more with 20 items shown, 60 for each cap. Source of each method: `Diversity`.

    >>> twin = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    >>> diversify(np.array([1.0, 0.9, 0.5]), twin, 2, Diversity(method="mmr", strength=0.5)).positions.tolist()
    [0, 2]
    """
    n = len(relevance)
    if how.method not in _METHOD or how.coverage not in _COVERAGE or how.scale not in _SCALE:
        raise Misuse(
            f"no method {how.method!r}, scale {how.scale!r} or coverage {how.coverage!r}; there are "
            f"{', '.join(METHODS)}; {', '.join(SCALES)}; {', '.join(COVERAGES)}"
        )
    if vectors.ndim != 2 or len(vectors if rows is None else rows) != n or k < 0 or not 0 <= how.strength <= 1:
        raise Misuse(
            f"relevance of {n} candidates, vectors of shape {vectors.shape}, strength {how.strength}, k {k}: "
            "give one vector a candidate, a strength from 0 to 1 and a k of at least 0"
        )
    scores = np.ascontiguousarray(relevance, np.float64)
    minus = np.zeros(n) if penalty is None else np.ascontiguousarray(penalty, np.float64)
    at = np.arange(n) if rows is None else np.ascontiguousarray(rows, np.int64)
    if not (vectors.flags.c_contiguous and vectors.flags.writeable and vectors.dtype == np.float32):
        vectors, at = np.array(vectors[at], np.float32), np.arange(n)  # the machine code knows one kind of array
    codes, shares, want = _topics(topics, how, n)
    past = _past(shown, vectors.shape[1])
    order = inverse = None
    if ids is not None:
        order, inverse = _by_id(np.asarray(ids), scores - minus)
        scores, minus, at = scores[order], minus[order], at[order]
        if len(codes):
            codes, shares = codes[order], shares[order]
    k = min(k, len(scores))
    arrays = NO_LIMITS
    if limits is not None:
        same = np.arange(n)
        arrays = to_arrays(limits, same if inverse is None else inverse, same if order is None else order, k)
    chosen, parts, broken, state, where = _loop()(
        scores,
        minus,
        vectors,
        at,
        k,
        _METHOD[how.method] if how.strength > 0 else 0,  # strength 0 is relevance alone
        _SCALE[how.scale],
        float(how.strength),
        float(how.blend),
        float(how.gamma),
        how.window,
        past.vectors,
        past.noise,
        _COVERAGE[how.coverage] if len(want) else 0,
        float(how.coverage_weight),
        codes,
        shares,
        want,
        arrays,
        lazy,
    )
    if state != FINE:
        what = "relevance or penalty" if state == BAD_SCORE else "vector (or one of those shown lately)"
        where = where if order is None else int(order[where])
        raise Misuse(
            f"the {what} of candidate {where} is not finite, and NaN would win: mend the scorer, or filter it out"
        )
    positions = chosen if order is None else order[chosen]
    return Choice(positions, parts, () if limits is None else report(limits, positions, broken))


@functools.cache
def _loop() -> Callable[..., Any]:
    """The compiled loop, imported when first needed: numba takes .9 s and 70 MiB, and most processes make no lists."""
    from recsys.diversify.greedy import greedy

    return greedy


def _by_id(ids: NDArray[np.generic], worth: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions by id, of the same id the worthiest only; and of every position the place of its id among them."""
    if len(ids) != len(worth):
        raise Misuse(f"{len(ids)} ids for {len(worth)} candidates: give one each")
    names, inverse = np.unique(ids, return_inverse=True)
    order = np.lexsort((-worth, inverse))
    first = np.searchsorted(inverse[order], np.arange(len(names)))
    return order[first].astype(np.int64), inverse.astype(np.int64)


def _topics(
    topics: Topics | None, how: Diversity, n: int
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    if topics is None or how.coverage == "none":
        return _NO_CODES, _NO_SHARES, _NO_WANT
    codes, shares = np.ascontiguousarray(topics.codes, np.int32), np.ascontiguousarray(topics.shares, np.float64)
    want = np.ascontiguousarray(topics.want, np.float64)
    if codes.shape != shares.shape or codes.ndim != 2 or len(codes) != n or codes.max(initial=-1) >= len(want):
        raise Misuse(
            f"topics of shape {codes.shape}, shares of {shares.shape}, up to code {codes.max(initial=-1)} of "
            f"{len(want)}, for {n} candidates: give a row each, and a wish for every code"
        )
    if not (np.isfinite(shares).all() and np.isfinite(want).all() and (shares >= 0).all() and (want >= 0).all()):
        raise Misuse("shares and wishes of topics must be finite and at least 0")
    return codes, shares, want


_NOTHING: dict[int, Shown] = {}


def _past(shown: Shown | None, dim: int) -> Shown:
    if shown is None or not len(shown.vectors):
        if dim not in _NOTHING:
            _NOTHING[dim] = Shown(np.zeros((0, dim), np.float32), np.zeros(0))
        return _NOTHING[dim]
    vectors, noise = np.array(shown.vectors, np.float32), np.ascontiguousarray(shown.noise, np.float64)
    if vectors.shape != (len(noise), dim) or not np.isfinite(vectors).all() or not (noise >= 0).all():
        raise Misuse(
            f"shown vectors of shape {vectors.shape} with {len(noise)} noises for {dim} dimensions: give finite unit "
            "rows as wide as the candidates', and a noise of at least 0 each"
        )
    return Shown(vectors, np.minimum(noise, 1e30))


def warm_up() -> None:
    """Compile the loop, or read its machine code, so that the first list does not wait. A ranker calls it at its start.

    1.5 s where the machine code is kept (`compiled`), about 15 s the first time or without a place to keep it.

    >>> warm_up()
    """
    diversify(np.ones(1), np.ones((1, 1), np.float32), 1)
