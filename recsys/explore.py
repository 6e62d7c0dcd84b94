"""Slots that learn: items of which little is known, drawn by chance, each with the probability that drew it.

What was never shown is never bought, and a scorer that learns from lists will say so for ever. Some slots are drawn
from the cold candidates instead, better ones more often (Gumbel top-k over their logits, which draws as a softmax does);
with the propensities logged, what follows can be weighed without bias. The noise is a hash of the list's id and the
item's, so a replay draws the same, whatever other candidates there are. Called by the pipeline; a drawn item becomes a
pin, so that caps, variants and the rest of the list know of it.
"""

import hashlib

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.context import Context
from recsys.policy import Pin, Policy
from recsys.signals import DAY_S
from recsys.variety import products

EVEN = 0.1  # of the probability is shared out evenly: no propensity is so small that its inverse drowns all others


class Draw(msgspec.Struct, frozen=True):
    """Of a pool, what was drawn, in order. positions: (m,) int64; propensities: (m,) float64 in (0, 1], each the
    probability of this item given those drawn before it, so that their product is that of the whole draw.
    """

    positions: NDArray[np.int64]
    propensities: NDArray[np.float64]


def explore(
    context: Context, rows: NDArray[np.int64], logits: NDArray[np.float64], policy: Policy
) -> tuple[Policy, dict[tuple[int, int], float]]:
    """The policy with what was drawn pinned to its slots; and the propensity of each drawn (slot, position among `rows`).

    rows, logits: (C,) candidates, finite. The policy itself and nothing where it reserves no slots or nothing is cold.
    In a list that ends before such a slot, the item may still stand for its worth, without a propensity.
    1 µs a cold candidate.
    """
    slots = [slot for slot in sorted(policy.explore_slots) if slot < min(policy.slate_size, len(rows))]
    if not slots:
        return policy, {}
    items = context.shop.catalogue.items
    pool = np.flatnonzero(cold(context, rows, policy))
    product = products(context, rows, policy)
    if policy.pins or policy.sponsored:  # those stand where the operator put them, and nowhere else
        pinned, tags = {pin.item for pin in policy.pins}, {rule.tag for rule in policy.sponsored}
        free = [items[row].item not in pinned and tags.isdisjoint(items[row].tags) for row in rows[pool].tolist()]
        pool = pool[np.array(free, np.bool_)]
        if product is not None:  # nor does another variant of what is pinned
            pool = pool[~np.isin(product[pool], product[[items[row].item in pinned for row in rows.tolist()]])]
    names = [items[row].item for row in rows[pool].tolist()]
    drawn = draw(logits[pool], noise(_name(context), names), len(slots), None if product is None else product[pool])
    pins = tuple(Pin(slot, names[at]) for slot, at in zip(slots, drawn.positions.tolist(), strict=False))
    places = zip(slots, pool[drawn.positions].tolist(), strict=False)
    chosen = dict(zip(places, drawn.propensities.tolist(), strict=False))
    return msgspec.structs.replace(policy, pins=(*policy.pins, *pins), explore_slots=()), chosen


def cold(context: Context, rows: NDArray[np.int64], policy: Policy) -> NDArray[np.bool_]:
    """Which candidates are to be learned of: few buyers, or new in the shop: (C,) bool."""
    few = context.shop.signals.buyers[rows] < policy.explore_below
    new = context.shop.catalogue.first_s[rows] > context.request.now_s - policy.new_days * DAY_S
    return np.asarray(few | new)


def draw(
    logits: NDArray[np.float64], gumbel: NDArray[np.float64], k: int, product: NDArray[np.int64] | None = None
) -> Draw:
    """Up to k of a pool without replacement, among those left in proportion to (1 - EVEN)·softmax + EVEN/N.

    logits, gumbel: (N,) finite. product: (N,) codes; who is drawn takes its variants along. The k greatest sums of log
    probability and Gumbel noise, the first of each product, are such a draw.

    >>> found = draw(np.array([0.0, 2.0, 0.0]), np.zeros(3), 2)
    >>> found.positions.tolist(), found.propensities.round(3).tolist()
    ([1, 0], [0.742, 0.5])
    """
    if not len(logits) or k < 1:
        return Draw(np.empty(0, np.int64), np.empty(0))
    odds = np.exp(logits - logits.max())
    share = (1 - EVEN) * odds / odds.sum() + EVEN / len(odds)
    order = np.argsort(-(np.log(share) + gumbel), kind="stable")
    group = np.arange(len(share)) if product is None else product
    positions = order[np.sort(np.unique(group[order], return_index=True)[1])[:k]]
    gone = [share[group == group[at]].sum() for at in positions.tolist()]  # with each, its variants
    rest = share[~np.isin(group, group[positions])].sum()
    left = np.cumsum(np.append(rest, gone[::-1]))[:0:-1]  # sums without a rest near 0
    return Draw(positions.astype(np.int64), np.minimum(share[positions] / left, 1.0))


def noise(name: str, items: list[str]) -> NDArray[np.float64]:
    """Standard Gumbel noise for a list's id and each item's: the same on every machine and in every year.

    >>> bool(noise("list", ["a", "b"])[1] == noise("list", ["b"])[0] != noise("other list", ["b"])[0])
    True
    """
    seed = hashlib.blake2b(name.encode(), digest_size=32).digest()
    whole = [int.from_bytes(hashlib.blake2b(item.encode(), digest_size=8, key=seed).digest()) for item in items]
    uniform = (np.array([number >> 11 for number in whole], np.float64) + 0.5) * 2.0**-53
    gumbel: NDArray[np.float64] = -np.log(-np.log(uniform))
    return gumbel


def _name(context: Context) -> str:
    request = context.request
    return request.slate or f"{request.user}\0{request.now_s!r}"
