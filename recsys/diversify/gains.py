"""The parts of a candidate's gain, as machine code: relevance on a scale, difference from the list, coverage of topics.

    gain = θ·relevance + (1-θ)·difference + κ·Δcoverage - θ·penalty

Called by the loop in `greedy` once for each candidate it looks at. Every part but max-sum's can only fall while the list
grows, which is why an old gain is an upper bound of the new one.
"""

import numpy as np
from numpy.typing import NDArray

from recsys.diversify.compiled import EXACT, MAXIMA, SUMS, compiled

NONE, MMR, MAX_SUM, DPP, SSD = 0, 1, 2, 3, 4
RAW, UNIT, ZSCORE = 0, 1, 2
NO_COVERAGE, ROOT, LOG, XQUAD, CALIBRATION = 0, 1, 2, 3, 4

BLOCK = 16  # bounds that share a maximum; 8 and 32 are as fast within noise, 64 is slower
HUGE = 1e150  # beyond, squares and differences would be infinite
ALIKE = 1e-300  # a spread or its square below is none: its inverse would be infinite
LEAST = 1e-6  # a residual below is what float32 leaves of nothing
MIXED_IN = 0.01  # of the user's own tastes, so that the divergence of a topic not yet in the list is finite (Steck)


@compiled(SUMS)
def dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    """Inner product of two vectors, float32. 384 dimensions that are in the cache: 15 ns."""
    total = np.float32(0.0)
    for d in range(a.shape[0]):
        total += a[d] * b[d]
    return total


@compiled(MAXIMA)
def renew(bound: NDArray[np.float64], peak: NDArray[np.float64], c: int) -> None:
    """The greatest bound of block c, anew."""
    most = -np.inf
    for i in range(c * BLOCK, min(bound.shape[0], c * BLOCK + BLOCK)):
        if bound[i] > most:
            most = bound[i]
    peak[c] = most


@compiled(EXACT)
def scale_of(worth: NDArray[np.float64], scale: int) -> tuple[float, float, int]:
    """(shift, factor, -1) that bring scores to a scale, or (0, 1, position) of one that is not finite.

    UNIT: the least becomes 0, the greatest 1, all equal ones 1. ZSCORE: mean 0, standard deviation 1.
    """
    n = worth.shape[0]
    low, high, mean, spread = np.inf, -np.inf, 0.0, 0.0
    for i in range(n):
        if not np.abs(worth[i]) < HUGE:
            return 0.0, 1.0, i
        low, high = min(low, worth[i]), max(high, worth[i])
        mean += worth[i] / n
    if scale == UNIT and n > 0:
        return (low, 1.0 / (high - low), -1) if high - low > ALIKE else (low - 1.0, 1.0, -1)
    if scale == ZSCORE and n > 0:
        for i in range(n):
            spread += (worth[i] - mean) ** 2 / n
        return (mean, 1.0 / np.sqrt(spread), -1) if spread > ALIKE else (mean, 1.0, -1)
    return 0.0, 1.0, -1


@compiled(EXACT)
def difference(method: int, strength: float, gamma: float, whole: float, folded: float) -> float:
    """What being unlike the list is worth.

    folded: MMR the greatest similarity (at least 0); MAX_SUM the sum of distances; DPP and SSD the squared length that
    the list explains of `whole`.
    """
    if method == DPP:
        return strength * float(np.log(max(whole - folded, LEAST)))
    if method == SSD:
        return strength * gamma * float(np.sqrt(max(whole - folded, 0.0)))
    if method == MMR:
        return -strength * folded
    return strength * folded if method == MAX_SUM else 0.0


@compiled(EXACT)
def most_folded(method: int, strength: float, gamma: float, whole: float, needed: float) -> float:
    """About how much may be folded before `difference` is below `needed`: where looking further is in vain."""
    if method == DPP:
        return whole - float(np.exp(needed / strength))
    if method == SSD:
        root = needed / (strength * gamma)
        return whole - root * root if root > 0 else np.inf
    return -needed / strength


@compiled(EXACT)
def refold(residual: bool, shadow: NDArray[np.float32], start: int, end: int) -> float:
    """What products start … end of one candidate fold to: the sum of squares, or the greatest, at least 0."""
    folded = 0.0
    for t in range(start, end):
        x = np.float64(shadow[t])
        folded = folded + x * x if residual else max(folded, x)
    return folded


@compiled(SUMS)
def extend(
    basis: NDArray[np.float32],
    extra: NDArray[np.float32],
    at: int,
    first: int,
    source: NDArray[np.float32],
    products: NDArray[np.float32],
    whole: float,
    blend: float,
    bias: float,
) -> None:
    """Row `at` of the basis: `source` without what rows first … at explain, divided by its length. O(at · D).

    whole: K_ss of the source, its noise included; extra: what the bias adds to a product, a column of the basis by itself.
    """
    left = whole
    for t in range(first, at):
        left -= np.float64(products[t]) * products[t]
    by = np.float32(1.0 / np.sqrt(left)) if left > LEAST else np.float32(0.0)  # explained already: adds nothing
    new = basis[at]
    for d in range(new.shape[0]):
        new[d] = np.float32(blend) * source[d]
    level = np.float32(bias)
    for t in range(first, at):
        x, old = products[t], basis[t]
        level -= x * extra[t]
        for d in range(new.shape[0]):
            new[d] -= x * old[d]
    for d in range(new.shape[0]):
        new[d] *= by
    extra[at] = level * by


@compiled(EXACT)
def covered(
    kind: int,
    codes: NDArray[np.int32],
    shares: NDArray[np.float64],
    want: NDArray[np.float64],
    have: NDArray[np.float64],
    length: int,
) -> float:
    """What one more item adds to the coverage of topics, Σ_c want_c·(...) over the item's topics.

    codes, shares: (L,) its topics (-1: none) and how much it belongs to each; have: (C,) what the list of `length` items
    holds already: sums of shares; for XQUAD what is still open, Π(1 - share).
    ROOT √(n+p) - √n; LOG log(1+n+p) - log(1+n); XQUAD p·Π(1-p_j) (Santos 2010); CALIBRATION the fall of
    KL(want ‖ list), Steck 2018: with a list of m+1 items all candidates share the denominator, so only their own topics
    differ, by log(1 + (1-α)p / ((1-α)n + α·want·(m+1))).
    """
    gain = 0.0
    for at in range(codes.shape[0]):
        c = codes[at]
        if c < 0:
            continue
        p, n, w = shares[at], have[c], want[c]
        if kind == ROOT:
            gain += w * (np.sqrt(n + p) - np.sqrt(n))
        elif kind == LOG:
            gain += w * np.log((1.0 + n + p) / (1.0 + n))
        elif kind == XQUAD:
            gain += w * p * n
        elif w > 0:
            rest = (1.0 - MIXED_IN) * n + MIXED_IN * w * (length + 1)
            gain += w * np.log(1.0 + (1.0 - MIXED_IN) * p / rest)
    return gain


@compiled(EXACT)
def absorb(kind: int, codes: NDArray[np.int32], shares: NDArray[np.float64], have: NDArray[np.float64]) -> None:
    """Count a chosen item's topics into `have`."""
    for at in range(codes.shape[0]):
        if codes[at] >= 0:
            if kind == XQUAD:
                have[codes[at]] *= 1.0 - shares[at]
            else:
                have[codes[at]] += shares[at]
