"""Hard limits on a list: caps in a window, minimums, reserved and pinned slots, one variant of a product.

They hold inside each greedy step, not as a repair afterwards, and look ahead so that the end of the list does not get what
the beginning put off. Where they cannot all hold, the least important gives way at that slot, and the report says so.
What cannot give way: a pin, one variant of a product, no item twice.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.errors import Misuse
from recsys.slates import Relaxed

MOST_RULES = 62  # a slot's broken rules are bits of an int64


class AtMost(msgspec.Struct, frozen=True, kw_only=True):
    """At most `most` items with the same code in any `within` consecutive slots (0: in the whole list).

    codes: (N,) integers ≥ 0, -1 where the item has none and the cap does not concern it.
    """

    name: str
    codes: NDArray[np.int64]
    most: int = 1
    within: int = 0
    priority: int = 1


class AtLeast(msgspec.Struct, frozen=True, kw_only=True):
    """At least `least` of the members in the list. members: (N,) bool."""

    name: str
    members: NDArray[np.bool_]
    least: int = 1
    priority: int = 1


class Reserved(msgspec.Struct, frozen=True, kw_only=True):
    """Slots (0 is the first) for members only; with `only`, members stand nowhere else, as sponsored items should not."""

    name: str
    slots: tuple[int, ...]
    members: NDArray[np.bool_]
    only: bool = True
    priority: int = 2


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """All limits of one list. The lower a priority, the sooner a rule gives way; equal ones in the order given.

    pinned: slot → position of the candidate that stands there whatever it is worth. product: (N,) integers, of one
    product's variants at most one is chosen, the one with the greatest gain; -1 for a product of its own.
    """

    at_most: tuple[AtMost, ...] = ()
    at_least: tuple[AtLeast, ...] = ()
    reserved: tuple[Reserved, ...] = ()
    pinned: dict[int, int] = {}
    product: NDArray[np.int64] | None = None


class Arrays(NamedTuple):
    """Limits as arrays, for N candidates, R caps, Q minimums, S reserved kinds, a list of k.

    codes (R, N) int32, -1: not concerned; most, within (R,) int64
    members (Q, N) bool; least (Q,) int64
    reserved (S, N) bool; slots (k,) int64 the kind a slot is reserved for, or -1; only (N,) bool: nowhere but there
    pinned (k,) int64 candidate of a slot, or -1; product (N,) int64, -1: of its own
    order (R + Q + S,) int64: rules by what gives way first, in the order caps, minimums, reserved
    """

    codes: NDArray[np.int32]
    most: NDArray[np.int64]
    within: NDArray[np.int64]
    members: NDArray[np.bool_]
    least: NDArray[np.int64]
    reserved: NDArray[np.bool_]
    slots: NDArray[np.int64]
    only: NDArray[np.bool_]
    pinned: NDArray[np.int64]
    product: NDArray[np.int64]
    order: NDArray[np.int64]


def _none() -> Arrays:
    whole, flags = np.zeros(0, np.int64), np.zeros((0, 0), np.bool_)
    codes = np.zeros((0, 0), np.int32)
    return Arrays(codes, whole, whole, flags, whole, flags, whole, np.zeros(0, np.bool_), whole, whole, whole)


NO_LIMITS = _none()


def to_arrays(limits: Limits, inverse: NDArray[np.int64], order: NDArray[np.int64], k: int) -> Arrays:
    """The same for the machine code. order: positions of the candidates as it sees them; inverse: the way back.

    Raises Misuse on lengths, slots and positions that do not exist, and on more than 62 rules.
    """
    n, given = len(order), len(inverse)
    rules: list[AtMost | AtLeast | Reserved] = [*limits.at_most, *limits.at_least, *limits.reserved]
    for rule in rules:
        many = len(rule.codes if isinstance(rule, AtMost) else rule.members)
        if many != given:
            raise Misuse(f"limit {rule.name!r} speaks of {many} candidates, there are {given}: give one value each")
    if limits.product is not None and len(limits.product) != given:
        raise Misuse(f"products of {len(limits.product)} candidates, there are {given}: give one value each")
    if any(rule.most < 1 or rule.within < 0 for rule in limits.at_most) or len(rules) > MOST_RULES:
        raise Misuse(f"give at most {MOST_RULES} limits, each with `most` ≥ 1 and `within` ≥ 0; or filter instead")
    pinned, slots = np.full(k, -1, np.int64), np.full(k, -1, np.int64)
    for slot, position in limits.pinned.items():
        if not (slot >= 0 and 0 <= position < given):
            raise Misuse(f"candidate {position} of {given} cannot be pinned to slot {slot}: both count from 0")
        if slot < k:
            pinned[slot] = inverse[position]
    if len(set(inverse[list(limits.pinned.values())].tolist())) < len(limits.pinned):  # of one id is of one candidate
        raise Misuse("a candidate is pinned to two slots: choose one")
    only = np.zeros(n, np.bool_)
    for kind, reserved in enumerate(limits.reserved):
        slots[[slot for slot in reserved.slots if 0 <= slot < k]] = kind
        if reserved.only:
            only |= reserved.members[order]
    return Arrays(
        _stack([_compact(rule.codes[order]) for rule in limits.at_most], n, np.int32),
        np.array([rule.most for rule in limits.at_most], np.int64),
        np.array([rule.within if 0 < rule.within < k else k for rule in limits.at_most], np.int64),
        _stack([rule.members[order] for rule in limits.at_least], n, np.bool_),
        np.array([rule.least for rule in limits.at_least], np.int64),
        _stack([rule.members[order] for rule in limits.reserved], n, np.bool_),
        slots,
        only,
        pinned,
        np.zeros(0, np.int64) if limits.product is None else limits.product[order].astype(np.int64),
        np.array(sorted(range(len(rules)), key=lambda at: rules[at].priority), np.int64),
    )


def _stack(rows: Sequence[NDArray[Any]], n: int, kind: type[Any]) -> NDArray[Any]:
    return np.array(rows, kind) if rows else np.zeros((0, n), kind)


def _compact(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Codes as 0, 1, …, -1 kept: a table of all codes of a catalogue would be cleared for each slot."""
    found, small = np.unique(np.append(codes, -1), return_inverse=True)
    return small[:-1] - int(np.searchsorted(found, 0))


def report(limits: Limits, positions: NDArray[np.int64], broken: NDArray[np.int64]) -> tuple[Relaxed, ...]:
    """What was relaxed: each cap or reserved slot broken where, each minimum by how many. broken: (k,) bits by slot."""
    found = []
    caps, minimums = len(limits.at_most), len(limits.at_least)
    rules: list[AtMost | AtLeast | Reserved] = [*limits.at_most, *limits.at_least, *limits.reserved]
    names = [rule.name for rule in rules]
    for slot in np.flatnonzero(broken).tolist():
        for at, name in enumerate(names):
            if int(broken[slot]) >> at & 1 and not caps <= at < caps + minimums:
                found.append(Relaxed(name, slot))
    for rule in limits.at_least:
        missing = rule.least - int(rule.members[positions].sum())
        if missing > 0:
            found.append(Relaxed(rule.name, missing=missing))
    found += [Relaxed("pinned", slot) for slot in sorted(limits.pinned) if slot >= len(positions)]
    return tuple(found)
