"""Which candidates may stand in a slot, as machine code: caps, minimums, reserved slots, and a look at what is left.

Called by the loop in `greedy` before each slot where there are limits. What the rules mean stands in `limits`. The look
ahead is a necessary condition for each cap by itself (enough items of other kinds for every next l slots); it does not
prove that all caps together can be kept.
"""

import numpy as np
from numpy.typing import NDArray

from recsys.diversify.compiled import EXACT, compiled
from recsys.diversify.limits import Arrays


@compiled(EXACT)
def block(limits: Arrays, slot: int, placed: NDArray[np.int32], blocked: NDArray[np.bool_]) -> None:
    """Mark the codes that would be too many at `slot`. placed: (R, k) codes of slots filled or pinned, -1 elsewhere."""
    k = placed.shape[1]
    blocked[:] = False
    ahead = False
    for s in range(slot + 1, k):
        ahead = ahead or limits.pinned[s] >= 0
    for r in range(limits.most.shape[0]):
        within = limits.within[r]
        # Every window of `within` slots that holds this one; without pins ahead, the fullest is the one that ends here.
        for shift in range(within if ahead else 1):
            start, end = max(0, slot - within + 1 + shift), min(k, slot + shift + 1)
            for s in range(start, end):
                code = placed[r, s]
                if code < 0 or s == slot:
                    continue
                same = 0
                for u in range(start, end):
                    same += placed[r, u] == code and u != slot
                if same >= limits.most[r]:
                    blocked[r, code] = True


@compiled(EXACT)
def short_of(limits: Arrays, q: int, have: NDArray[np.int64], open_: NDArray[np.bool_]) -> int:
    """How many of a minimum are missing and can still be had."""
    missing = limits.least[q] - have[q]
    can = 0
    if missing > 0:
        for i in range(open_.shape[0]):
            can += open_[i] and limits.members[q, i]
    return int(min(missing, can))


@compiled(EXACT)
def strike(
    limits: Arrays,
    rule: int,
    slot: int,
    blocked: NDArray[np.bool_],
    due: NDArray[np.bool_],
    tight: bool,
    allowed: NDArray[np.bool_],
) -> None:
    """Take those from `allowed` that would break the rule here. due: (Q,) minimums that miss some; tight: no slot to spare."""
    caps, minimums, n = limits.most.shape[0], limits.least.shape[0], allowed.shape[0]
    if rule < caps:
        codes, full = limits.codes[rule], blocked[rule]
        for i in range(n):
            if codes[i] >= 0 and full[codes[i]]:
                allowed[i] = False
    elif rule < caps + minimums:
        if tight and due[rule - caps]:
            for i in range(n):
                helps = False
                for q in range(minimums):
                    helps = helps or (due[q] and limits.members[q, i])
                if not helps:
                    allowed[i] = False
    elif limits.slots[slot] == rule - caps - minimums:
        members = limits.reserved[rule - caps - minimums]
        for i in range(n):
            if not members[i]:
                allowed[i] = False


@compiled(EXACT)
def broken(limits: Arrays, i: int, slot: int, blocked: NDArray[np.bool_], due: NDArray[np.bool_], tight: bool) -> int:
    """The rules that candidate i breaks at this slot, as bits."""
    one, bits = np.zeros(limits.only.shape[0], np.bool_), 0
    for rule in range(limits.order.shape[0]):
        one[i] = True
        strike(limits, rule, slot, blocked, due, tight, one)
        if not one[i]:
            bits |= 1 << rule
    return bits


@compiled(EXACT)
def allow(
    limits: Arrays,
    slot: int,
    open_: NDArray[np.bool_],
    blocked: NDArray[np.bool_],
    have: NDArray[np.int64],
    due: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
) -> bool:
    """Fill `allowed` for a slot by all rules that leave somebody beside the more important; whether it was tight."""
    n, k = open_.shape[0], limits.slots.shape[0]
    rules = limits.order.shape[0]
    free, missing = 0, 0
    for s in range(slot, k):
        free += limits.pinned[s] < 0 and limits.slots[s] < 0
    for q in range(limits.least.shape[0]):
        short = short_of(limits, q, have, open_)
        due[q] = short > 0
        missing += max(short, 0)
    tight = missing > 0 and missing >= free and limits.slots[slot] < 0
    # Members that later reserved slots cannot do without are kept for them.
    kept = np.zeros(limits.reserved.shape[0], np.bool_)
    for kind in range(kept.shape[0]):
        ahead, left = 0, 0
        for s in range(slot + 1, k):
            ahead += limits.slots[s] == kind and limits.pinned[s] < 0
        for i in range(n):
            left += open_[i] and limits.reserved[kind, i]
        kept[kind] = ahead > 0 and left <= ahead
    here = limits.slots[slot]
    for i in range(n):
        allowed[i] = open_[i] and (not limits.only[i] or (here >= 0 and limits.reserved[here, i]))
    trial = np.empty(n, np.bool_)
    for at in range(rules - 1, -1, -1):  # most important first: a rule that leaves nobody gives way, and takes no other
        rule = limits.order[at]
        kind = rule - limits.most.shape[0] - limits.least.shape[0]
        trial[:] = allowed
        strike(limits, rule, slot, blocked, due, tight, trial)
        if kind >= 0 and kept[kind] and kind != here:
            trial &= ~limits.reserved[kind]
        if trial.any():
            allowed[:] = trial
    return tight


@compiled(EXACT)
def tail_fits(limits: Arrays, r: int, slot: int, placed: NDArray[np.int32], open_: NDArray[np.bool_]) -> bool:
    """After what stands up to `slot`, are there enough items of different codes for every next l slots under cap r.

    For each code: as many as there are, and as many as fit, put as early as may be. O(N + codes · k).
    """
    k, n = placed.shape[1], open_.shape[0]
    within, most = limits.within[r], limits.most[r]
    codes = limits.codes[r]
    top, left, unconcerned = 0, 0, 0
    for i in range(n):
        top = max(top, codes[i] + 1)
    counts = np.zeros(top, np.int64)
    for i in range(n):
        left += open_[i]
        if codes[i] >= 0:
            counts[codes[i]] += open_[i]
        else:
            unconcerned += open_[i]
    length = min(k - slot - 1, left)
    room = np.full(max(length, 1), unconcerned, np.int64)
    stands = np.zeros(k, np.bool_)
    for c in range(-1, top):
        used, inside = 0, 0  # inside: of the last `within` - 1 slots
        if c >= 0:
            if counts[c] == 0:
                continue
            for s in range(max(0, slot + 2 - within), slot + 1):
                stands[s] = placed[r, s] == c
                inside += stands[s]
        enough = True
        for ahead in range(length):
            s = slot + 1 + ahead
            stands[s] = c >= 0 and inside < most and used < counts[c]
            used += stands[s]
            room[ahead] += used
            enough = enough and room[ahead] > ahead
            inside += stands[s]
            if s + 1 - within >= 0:
                inside -= stands[s + 1 - within]
        if enough:
            return True
    return bool(length == 0)


@compiled(EXACT)
def clumping(
    limits: Arrays, slot: int, i: int, placed: NDArray[np.int32], open_: NDArray[np.bool_], lost: NDArray[np.int64]
) -> int:
    """The first cap that could be kept to the end, but not if candidate i stood at this slot; or -1. Leaves i in `placed`.

    lost: (R,) whether a cap cannot be kept whatever stands here, so that looking ahead is in vain: -1 not yet known, 0, 1.
    """
    open_[i] = False
    found = -1
    for r in range(placed.shape[0]):
        placed[r, slot] = limits.codes[r, i]
        if found >= 0 or lost[r] > 0 or tail_fits(limits, r, slot, placed, open_):
            continue
        open_[i] = True
        if lost[r] < 0:
            lost[r] = 0 if tail_fits(limits, r, slot - 1, placed, open_) else 1
        open_[i] = False
        found = r if lost[r] == 0 else -1
    open_[i] = True
    return found


@compiled(EXACT)
def seat(limits: Arrays, slot: int, i: int, placed: NDArray[np.int32], met: NDArray[np.int64]) -> None:
    """Count candidate i at this slot."""
    for r in range(placed.shape[0]):
        placed[r, slot] = limits.codes[r, i]
    for q in range(met.shape[0]):
        met[q] += limits.members[q, i]


@compiled(EXACT)
def same_product(limits: Arrays, i: int, other: int) -> bool:
    """Whether two candidates are the same, or variants of one product."""
    if i == other or limits.product.shape[0] == 0:
        return i == other
    return bool(limits.product[i] >= 0 and limits.product[i] == limits.product[other])


@compiled(EXACT)
def codes_of(limits: Arrays) -> int:
    """How many codes the caps tell apart."""
    top = 0
    for r in range(limits.codes.shape[0]):
        for i in range(limits.codes.shape[1]):
            top = max(top, limits.codes[r, i] + 1)
    return top
