"""What the crowd says about an item: neighbours, popularity, exposure. Live, from everybody's events.

Three steps: `Tally` (ranker: what a batch of events adds), `absorb` (aggregator: one item's state with an increment
more), `recsys.signal_table` (ranker: all items' states as arrays). In between they travel on the topics `pairs` and
`signals`, both keyed by item.
Popularity counts a user at most once a day per item, so one user's thousand clicks are one interest.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator

import msgspec
import numpy as np
from msgspec.structs import replace

from recsys.catalogue import item_ref
from recsys.events import Event, Impression, Search
from recsys.profiles import ACTION_OF, CART, CLICK, PURCHASE, VIEW, Profile, owns

DAY_S = 86_400
SHORT_S, LONG_S = 7 * DAY_S, 56 * DAY_S  # half-lives: what is rising, and what is liked
KEEP_NEIGHBOURS = 50
# A day may have more, until the first event of the next: so which are forgotten does not depend on batches, and what is
# new has a day to weigh more than the lightest. Six states in 1,000 would pass 200 (Online Retail), hardly one 400: 8 KB.
MOST_NEIGHBOURS = 400
PAIR_WINDOW_S = DAY_S  # two items touched within a day belong together: a basket, or a session around it
PAIR_PARTNERS = 20  # the newest of them: a wholesaler's basket of 500 lines must not make 250,000 pairs
# Interest by action: a purchase is the surest sign, a view the weakest.
WEIGHT = {VIEW: 0.1, CLICK: 0.3, CART: 0.6, PURCHASE: 1.0}


class Increment(msgspec.Struct, frozen=True, array_like=True):
    """What events of one day add to one item. Values of the topic `pairs`. Decayed figures are true at `ts_s`, the newest
    event's.

    So batches do not show: events counted together or one by one end in the same state, but for the rounding of floats.
    """

    ts_s: int
    partners: tuple[tuple[int, float], ...] = ()  # (item_ref, decayed weight), half-life 56 days
    long: float = 0.0  # users interested, by the weight of the action; half-life 56 days
    buyers: int = 0  # users who bought it today
    repeats: int = 0  # of them, those who had bought it before
    exposure: float = 0.0  # times shown, half-life 7 days
    short: float | None = None  # as long, half-life 7 days. None: written before this field was, all at one mean time
    fresh_long: float = 0.0  # users who bought it for the first time, half-life 56 days
    fresh_short: float = 0.0  # the same, half-life 7 days
    gap_d: float = 0.0  # days between the repeats and the purchases before them, summed
    first_s: int = 0  # when an event first was on it; 0: only shown, or only a partner
    priced: tuple[int, float] | None = None  # when an event first had a price, and which

    @property
    def rising(self) -> float:
        """The interest that fades fast, of increments of either age."""
        return self.long if self.short is None else self.short


class Signal(msgspec.Struct, frozen=True, array_like=True):
    """One item's state. Values of the topic `signals`. Decayed figures are true at `ts_s`.

    neighbours: (item_ref, decayed weight) of those that were heaviest when the day began, and of what came on it.
    """

    ts_s: int = 0
    neighbours: tuple[tuple[int, float], ...] = ()
    short: float = 0.0  # decayed interest, half-life 7 days
    long: float = 0.0  # decayed interest, half-life 56 days
    exposure: float = 0.0  # decayed times shown, half-life 7 days
    buyers: int = 0  # ever
    repeats: int = 0  # ever
    fresh_short: float = 0.0  # decayed first purchases, half-life 7 days
    fresh_long: float = 0.0  # decayed first purchases, half-life 56 days
    gap_d: float = 0.0  # days before repeats, summed, ever
    first_s: int = 0  # when an event first was on it; 0: none yet
    priced: tuple[int, float] | None = None  # when an event first had a price, and which


Key = tuple[str | int, int]  # item and day


class Tally:
    """What a batch of events adds to the items it touches: one increment an item and day, however many events.

    Keys are an item id (of an event) or an item_ref (of a partner, whose id only the catalogue knows), and a day.
    """

    def __init__(self) -> None:
        self._own: dict[Key, Increment] = {}  # without partners
        # Weights of pairs as they would have grown since the first event: a newer one changes none of the older.
        self._pairs: dict[Key, dict[int, float]] = {}
        self._newest_s: dict[Key, int] = {}
        self._first_s = 0

    def add(self, event: Event, before: Profile) -> None:
        """Count one event. before: the user's profile without it. 15 µs with 20 partners.

        >>> from recsys.events import Purchase
        >>> from recsys.profiles import EMPTY, apply
        >>> a = Purchase(user="u", item="a", ts_ms=1_700_000_000_000)
        >>> b = Purchase(user="u", item="b", ts_ms=1_700_000_000_000)
        >>> tally = Tally()
        >>> tally.add(b, apply(EMPTY, a, b"aaaaaa"))
        >>> found = dict(tally.increments())
        >>> found["b"].partners == ((item_ref("a"), 1.0),), found[item_ref("a")].partners == ((item_ref("b"), 1.0),)
        (True, True)
        """
        ts_s = event.ts_ms // 1000
        if isinstance(event, Search):
            return
        if isinstance(event, Impression):
            for item in event.items:
                self._gain(item, Increment(ts_s, exposure=1.0, short=0.0))
            return
        action = ACTION_OF[type(event)]
        own, weight = item_ref(event.item), WEIGHT[action]
        recent = _recent(before, ts_s)
        # A user's interest counts once a day, by the surest action: of all that day, a basket may have a hundred lines.
        more = max(weight - _interest(before, own.to_bytes(6), ts_s), 0.0)
        priced = None if event.price is None else (ts_s, event.price)
        gain = Increment(ts_s, long=more, short=more, first_s=ts_s, priced=priced)
        if action == PURCHASE and more > 0:
            last_s = _last_bought_s(before.purchases, own.to_bytes(6))
            if last_s is not None:  # a late event may come before what it repeats
                gain = replace(gain, buyers=1, repeats=1, gap_d=abs(ts_s - last_s) / DAY_S)
            elif before.owned and owns(before.owned, np.array([own], np.uint64))[0]:  # nobody knows when
                gain = replace(gain, buyers=1)
            else:
                gain = replace(gain, buyers=1, fresh_long=1.0, fresh_short=1.0)
        self._gain(event.item, gain)
        self._first_s = self._first_s or ts_s
        grown, day = self._growth(ts_s), ts_s // DAY_S
        mine = self._pairs.setdefault((event.item, day), {})
        for ref, other in recent.items():
            if ref != own:
                pair = weight * other * grown
                mine[ref] = mine.get(ref, 0.0) + pair
                theirs = self._pairs.setdefault((ref, day), {})
                theirs[own] = theirs.get(own, 0.0) + pair
                self._note((ref, day), ts_s)

    def increments(self) -> Iterator[tuple[str | int, Increment]]:
        """(item, increment) of every item touched, day by day, each at the time of the newest event that it counts."""
        for key, at_s in sorted(self._newest_s.items(), key=lambda noted: noted[0][1]):
            grown = self._growth(at_s)
            partners = tuple((ref, weight / grown) for ref, weight in self._pairs.get(key, {}).items())
            inc = Increment(at_s, short=0.0)
            if key in self._own:
                inc = merge(self._own[key], inc)
            yield key[0], replace(inc, partners=partners)

    def _gain(self, item: str, more: Increment) -> None:
        key = (item, more.ts_s // DAY_S)
        self._note(key, more.ts_s)
        known = self._own.get(key)
        self._own[key] = merge(known, more) if known else more

    def _note(self, key: Key, ts_s: int) -> None:
        self._newest_s[key] = max(self._newest_s.get(key, ts_s), ts_s)

    def _growth(self, ts_s: int) -> float:
        """A century is 650 half-lives: no overflow."""
        return math.exp2((ts_s - self._first_s) / LONG_S)


def _last_bought_s(purchases: bytes, key: bytes) -> int | None:
    """Seconds of the newest purchase of an item in a profile's log."""
    at = purchases.rfind(key)
    while at >= 0 and at % 10 != 4:  # only looks so, across the border of two records
        at = purchases.rfind(key, 0, at + 5)
    return int.from_bytes(purchases[at - 4 : at]) if at >= 0 else None


def _interest(profile: Profile, key: bytes, ts_s: int) -> float:
    """The weight of the surest action with an item within the window, of all that the profile keeps."""
    since, until = (ts_s - PAIR_WINDOW_S).to_bytes(4), (ts_s + PAIR_WINDOW_S).to_bytes(4)
    surest = 0.0
    for log, width in ((profile.purchases, 10), (profile.touches, 11)):
        at = log.find(key, _first_since(log, width, since))
        while at >= 0:
            if at % width == 4 and log[at - 4 : at] <= until:  # else it only looks so
                surest = max(surest, WEIGHT[log[at + 6] if width == 11 else PURCHASE])
            at = log.find(key, at + 1)
    return surest


def _first_since(log: bytes, width: int, since: bytes) -> int:
    return bisect_left(range(0, len(log), width), since, key=lambda at: log[at : at + 4]) * width


def _recent(profile: Profile, ts_s: int) -> dict[int, float]:
    """Refs of the newest PAIR_PARTNERS items within the window, with the weight of the surest action."""
    since, until = (ts_s - PAIR_WINDOW_S).to_bytes(4), (ts_s + PAIR_WINDOW_S).to_bytes(4)
    recent: dict[int, float] = {}
    for log, width in ((profile.purchases, 10), (profile.touches, 11)):
        for at in range(len(log) - width, max(-1, len(log) - (PAIR_PARTNERS + 1) * width), -width):
            when = log[at : at + 4]
            if when < since:
                break
            if when <= until:  # a late event meets those of its own day
                ref = int.from_bytes(log[at + 4 : at + 10])
                recent[ref] = max(recent.get(ref, 0.0), WEIGHT[log[at + 10] if width == 11 else PURCHASE])
    return recent


def merge(one: Increment, two: Increment) -> Increment:
    """Two increments of one item as one, at the later time.

    >>> both = merge(Increment(0, ((7, 2.0),), long=1.0, short=1.0), Increment(LONG_S, ((7, 1.0),), long=1.0, short=1.0))
    >>> both.ts_s == LONG_S, both.partners, both.long, both.short
    (True, ((7, 2.0),), 1.5, 1.00390625)
    """
    now_s = max(one.ts_s, two.ts_s)
    (long1, short1), (long2, short2) = _left(one.ts_s, now_s), _left(two.ts_s, now_s)
    partners = {ref: weight * long1 for ref, weight in one.partners}
    for ref, weight in two.partners:
        partners[ref] = partners.get(ref, 0.0) + weight * long2
    return Increment(
        now_s,
        tuple(partners.items()),
        one.long * long1 + two.long * long2,
        one.buyers + two.buyers,
        one.repeats + two.repeats,
        one.exposure * short1 + two.exposure * short2,
        one.rising * short1 + two.rising * short2,
        one.fresh_long * long1 + two.fresh_long * long2,
        one.fresh_short * short1 + two.fresh_short * short2,
        one.gap_d + two.gap_d,
        *_first(one, two),
    )


def absorb(signal: Signal, inc: Increment) -> Signal:
    """An item's state with an increment more; a late one counts with what decay would have left of it.

    Days must come in their order for the same neighbours to be forgotten; figures do not ask.

    >>> s = absorb(Signal(), Increment(1000, ((7, 2.0),), long=1.0))
    >>> s = absorb(s, Increment(1000 + LONG_S, ((8, 1.5),)))
    >>> s.neighbours, round(s.long, 3)
    (((7, 1.0), (8, 1.5)), 0.5)
    """
    now_s = max(signal.ts_s, inc.ts_s)
    (long, short), (late_long, late_short) = _left(signal.ts_s, now_s), _left(inc.ts_s, now_s)
    ended = inc.ts_s // DAY_S > signal.ts_s // DAY_S
    kept = heaviest(signal.neighbours, KEEP_NEIGHBOURS) if ended else signal.neighbours
    weights = {ref: weight * long for ref, weight in kept}
    for ref, weight in inc.partners:
        weights[ref] = weights.get(ref, 0.0) + weight * late_long
    neighbours = tuple(weights.items())
    return Signal(
        now_s,
        neighbours if len(neighbours) <= MOST_NEIGHBOURS else heaviest(neighbours, MOST_NEIGHBOURS),
        signal.short * short + inc.rising * late_short,
        signal.long * long + inc.long * late_long,
        signal.exposure * short + inc.exposure * late_short,
        signal.buyers + inc.buyers,
        signal.repeats + inc.repeats,
        signal.fresh_short * short + inc.fresh_short * late_short,
        signal.fresh_long * long + inc.fresh_long * late_long,
        signal.gap_d + inc.gap_d,
        *_first(signal, inc),
    )


def heaviest(neighbours: tuple[tuple[int, float], ...], most: int) -> tuple[tuple[int, float], ...]:
    """The `most` heaviest, those first; those that weigh the same to six decimals by name. 20 µs for 100.

    What came in one basket weighs the same but for the rounding of batches, which must not choose.

    >>> heaviest(((9, 1.0), (7, 1.0 - 1e-15), (8, 2.0)), 2)
    ((8, 2.0), (7, 0.999999999999999))
    """
    # round() and a key function take nearly twice as long.
    order = sorted([(-((weight * 1e6 + 0.5) // 1), ref, weight) for ref, weight in neighbours])
    return tuple([(ref, weight) for _, ref, weight in order[:most]])


def _first(one: Signal | Increment, two: Increment) -> tuple[int, tuple[int, float] | None]:
    """first_s and priced of both: the earlier of what there is."""
    priced = [known for known in (one.priced, two.priced) if known]
    # Who was met, and nobody knows when, was written before first_s was: such an item is not new today.
    unknown = any(of.long > 0 and not of.first_s for of in (one, two))
    return 0 if unknown else min(one.first_s or two.first_s, two.first_s or one.first_s), min(priced, default=None)


def _left(then_s: int, now_s: int) -> tuple[float, float]:
    """What decay leaves, slow and fast."""
    return 0.5 ** ((now_s - then_s) / LONG_S), 0.5 ** ((now_s - then_s) / SHORT_S)
