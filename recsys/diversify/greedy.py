"""The loop that chooses, as machine code: slot by slot the candidate with the greatest gain, exactly, looking at few.

One loop for all methods (`gains`), with or without topics and limits (`limiting`). Called by the door in `__init__`, which
checks what comes in; not to be called otherwise.

How the difference from the list is kept. DPP, SSD: Gram-Schmidt over what was chosen, in the kernel
K = blend·S + bias + (1-blend)·I. Of each chosen item (and before them of each item shown lately, whose own noise is added to
its K_hh) a basis vector q is kept; a candidate's residual is K_ii - Σ_q <v_i, q>², the determinant's growth (Chen, Zhang,
Zhou 2018, in primal form) and, with the noise, the posterior variance of a Gaussian process. The part (1-blend)·I of a chosen
item meets no candidate but itself, so it only lengthens the q's denominators: full rank costs nothing. MMR and max-sum
keep the chosen vectors themselves.

Why it is fast. Gains fall while the list grows (Minoux 1978), so a gain of earlier is an upper bound: a candidate is looked at
only while its bound beats the best of this slot, one inner product at a time, and left as soon as it does not. Bounds
are kept in blocks of 16 with their maxima. In a window, products that have left it are forgotten, and only the candidates
that had them have their bounds raised. Same products in the same order either way, so the lists are those of the full search.
"""

import numpy as np
from numpy.typing import NDArray

from recsys.diversify.compiled import EXACT, compiled
from recsys.diversify.gains import (
    BLOCK,
    DPP,
    HUGE,
    MAX_SUM,
    MMR,
    NO_COVERAGE,
    SSD,
    XQUAD,
    absorb,
    covered,
    difference,
    dot,
    extend,
    most_folded,
    refold,
    renew,
    scale_of,
)
from recsys.diversify.limiting import allow, block, broken, clumping, codes_of, same_product, seat
from recsys.diversify.limits import Arrays
from recsys.diversify.options import BAD_SCORE, BAD_VECTOR, FINE

Chosen = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], int, int]


@compiled(EXACT)
def greedy(
    relevance: NDArray[np.float64],
    penalty: NDArray[np.float64],
    vectors: NDArray[np.float32],
    rows: NDArray[np.int64],
    k: int,
    method: int,
    scale: int,
    strength: float,
    blend: float,
    gamma: float,
    window: int,
    history: NDArray[np.float32],
    noise: NDArray[np.float64],
    coverage: int,
    weight: float,
    codes: NDArray[np.int32],
    shares: NDArray[np.float64],
    want: NDArray[np.float64],
    limits: Arrays,
    lazy: bool,
) -> Chosen:
    """(positions, parts, relaxed, state, where): see the door for shapes. parts: (k, 4) float64, relevance, difference,
    coverage, penalty; relaxed: (k,) bits of the rules that a slot breaks; where: the position that is not finite.
    """
    n, dim, past = relevance.shape[0], vectors.shape[1], history.shape[0]
    k = min(k, n)
    positions, parts, relaxed = np.empty(k, np.int64), np.zeros((k, 4)), np.zeros(k, np.int64)
    worth = relevance - penalty
    # Of relevance, not of worth: else one high penalty would press all others' differences together.
    shift, factor, wrong = scale_of(relevance, scale)
    for i in range(n):
        if not np.abs(worth[i]) < HUGE:
            wrong = i
    if wrong >= 0:
        return positions, parts, relaxed, BAD_SCORE, wrong
    residual = method in (DPP, SSD)
    repulsive = residual or method in (MMR, MAX_SUM)
    lazy = lazy and method != MAX_SUM  # its gains grow
    windowed = repulsive and 0 < window < past + k
    bias = 1.0 if method == SSD else 0.0
    whole = 1.0 + bias  # K_ii
    theta = (1.0 - strength) if repulsive else 1.0
    limited, grouped = limits.order.shape[0] > 0 or limits.pinned.shape[0] > 0, limits.product.shape[0] > 0
    held = np.ones(want.shape[0]) if coverage == XQUAD else np.zeros(want.shape[0])

    base, cover, bound = np.empty(n), np.zeros(n), np.empty(n)
    blocks = (n + BLOCK - 1) // BLOCK
    peak = np.empty(blocks)
    for i in range(n):
        base[i] = theta * (worth[i] - shift) * factor
        if coverage != NO_COVERAGE:
            cover[i] = weight * covered(coverage, codes[i], shares[i], want, held, 0)
        bound[i] = base[i] + difference(method, strength, gamma, whole, 0.0) + cover[i]
    folded, seen = np.zeros(n), np.zeros(n, np.int64)
    size = past + k if repulsive else 0
    basis, extra, products = np.empty((size, dim), np.float32), np.zeros(size, np.float32), np.empty(size, np.float32)
    shadow = np.empty((n if residual or windowed else 0, size), np.float32)
    who = np.empty((size if windowed else 0, n), np.int32)  # the candidates that had their product with q_t taken
    had = np.zeros(size, np.int64)

    count, first = 0, 0  # basis rows first … count repel
    for h in range(past if repulsive else 0):
        if residual:
            for t in range(first, count):
                products[t] = dot(history[h], basis[t]) + np.float32(bias) * extra[t]
            extend(basis, extra, count, first, history[h], products, whole + noise[h], blend, bias)
        else:
            fade = np.float32(1.0 / (1.0 + noise[h]))
            for d in range(dim):
                basis[count, d] = fade * history[h, d]
        count += 1
        first = max(first, count - window) if windowed else 0

    open_, allowed = np.ones(n if limited else 0, np.bool_), np.ones(n if limited else 0, np.bool_)
    placed = np.full((limits.most.shape[0], k), -1, np.int32)
    blocked = np.zeros((limits.most.shape[0], codes_of(limits)), np.bool_)
    lost = np.zeros(limits.most.shape[0], np.int64)
    met, due = np.zeros(limits.least.shape[0], np.int64), np.zeros(limits.least.shape[0], np.bool_)
    for slot in range(k if limited else 0):
        if limits.pinned[slot] >= 0:
            seat(limits, slot, limits.pinned[slot], placed, met)
            for i in range(n):
                if same_product(limits, i, limits.pinned[slot]):
                    bound[i], open_[i] = -np.inf, False
    for c in range(blocks):
        renew(bound, peak, c)

    step = 0
    while step < k:
        forced = limits.pinned[step] if limited else -1
        tight = False
        if limited:
            block(limits, step, placed, blocked)
            if forced < 0:
                tight = allow(limits, step, open_, blocked, met, due, allowed)
                lost[:] = -1
            else:
                bound[forced] = np.inf  # whatever it is worth
        fallback = -1
        while True:  # once, unless the look ahead sends us back
            best, arg, probe = -np.inf, -1, forced
            if forced < 0 and not limited and blocks > 0:
                # The greatest bound first: its gain is the mark that all others must beat.
                c = 0
                for other in range(1, blocks):
                    if peak[other] > peak[c]:
                        c = other
                probe = c * BLOCK
                while bound[probe] != peak[c]:
                    probe += 1
            elif forced < 0:
                for i in range(n):
                    if allowed[i] and open_[i] and (probe < 0 or bound[i] > bound[probe]):
                        probe = i
            if probe < 0 or bound[probe] == -np.inf:
                break
            for c in range(-1, blocks if forced < 0 else 0):
                i, end = (probe, probe + 1) if c < 0 else (c * BLOCK, min(n, c * BLOCK + BLOCK))
                if c >= 0 and peak[c] < best and lazy:
                    continue
                touched = False
                while i < end:
                    rival = bound[i] > best or (bound[i] == best and i < arg) or (not lazy and bound[i] > -np.inf)
                    if not rival or (limited and forced < 0 and not allowed[i]):
                        i += 1
                        continue
                    if coverage != NO_COVERAGE:
                        cover[i] = weight * covered(coverage, codes[i], shares[i], want, held, step)
                    t, fold = max(seen[i], first), folded[i]
                    if windowed and method != MAX_SUM:
                        fold = refold(residual, shadow[i], first, t)
                    enough = np.inf
                    if lazy and repulsive and best > -np.inf and (method != DPP or count - t > 2):
                        enough = most_folded(method, strength, gamma, whole, best - base[i] - cover[i])
                    while t < count:
                        x = dot(vectors[rows[i]], basis[t]) + np.float32(bias) * extra[t]
                        if residual:
                            fold += np.float64(x) * x
                        elif method == MMR:
                            fold = max(fold, np.float64(x)) if np.abs(x) < np.inf else np.nan
                        else:
                            fold += 1.0 - np.float64(x)
                        if residual or windowed:
                            shadow[i, t] = x
                        if windowed:
                            who[t, had[t]] = i
                            had[t] += 1
                        t += 1
                        if fold > enough:
                            if base[i] + cover[i] + difference(method, strength, gamma, whole, fold) < best:
                                break
                            enough = np.inf  # rounding: look to the end
                    if not np.abs(fold) < np.inf:
                        return positions, parts, relaxed, BAD_VECTOR, i
                    if windowed and method == MAX_SUM:
                        fold = 0.0
                        for u in range(first, t):
                            fold += 1.0 - np.float64(shadow[i, u])
                    seen[i], folded[i], touched = t, fold, True
                    bound[i] = base[i] + cover[i] + difference(method, strength, gamma, whole, fold)
                    if t == count and (bound[i] > best or (bound[i] == best and i < arg)):
                        best, arg = bound[i], i
                    i += 1
                if touched:
                    renew(bound, peak, c if c >= 0 else probe // BLOCK)
            if not limited or forced >= 0:
                break
            if fallback < 0:
                fallback = arg
            clumps = clumping(limits, step, arg, placed, open_, lost)
            if clumps < 0:
                break
            for i in range(n):  # one of another kind now, or this kind is all that the end has
                if limits.codes[clumps, i] == limits.codes[clumps, arg]:
                    allowed[i] = False
        if arg < 0:
            arg = fallback
        if arg < 0:
            break

        positions[step] = arg
        parts[step, 0] = theta * (relevance[arg] - shift) * factor
        parts[step, 1] = difference(method, strength, gamma, whole, folded[arg])
        parts[step, 2] = cover[arg]
        parts[step, 3] = -theta * penalty[arg] * factor
        if limited:
            relaxed[step] = broken(limits, arg, step, blocked, due, tight)
            if forced < 0:
                seat(limits, step, arg, placed, met)
            open_[arg] = False
        for i in range(n if grouped and limits.product[arg] >= 0 else 0):
            if same_product(limits, i, arg):
                bound[i] = -np.inf
                renew(bound, peak, i // BLOCK)
                if limited:
                    open_[i] = False
        bound[arg] = -np.inf
        renew(bound, peak, arg // BLOCK)
        if coverage != NO_COVERAGE:
            absorb(coverage, codes[arg], shares[arg], held)
        step += 1
        if step == k or not repulsive:
            continue
        if residual:
            extend(basis, extra, count, first, vectors[rows[arg]], shadow[arg], whole, blend, bias)
        else:
            for d in range(dim):
                basis[count, d] = vectors[rows[arg], d]
        count += 1
        if windowed and count - first > window:
            for at in range(had[first]):
                i = who[first, at]
                if bound[i] > -np.inf and method != MAX_SUM:
                    fold = refold(residual, shadow[i], first + 1, seen[i])
                    bound[i] = base[i] + cover[i] + difference(method, strength, gamma, whole, fold)
                    peak[i // BLOCK] = max(peak[i // BLOCK], bound[i])
            first += 1
    return positions[:step], parts[:step], relaxed[:step], FINE, -1
