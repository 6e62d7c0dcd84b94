"""What the crowd says about an item: neighbours, popularity, exposure. Live, from everybody's events.

Three steps: `Tally` (ranker: what a batch of events adds), `absorb` (aggregator: one item's state with an increment
more), `SignalTable` (ranker: all items' states as arrays). In between they travel on
the topics `pairs` and `signals`, both keyed by item.
Popularity counts a user at most once a day per item, so one user's thousand clicks are one interest.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.catalogue import Catalogue, item_ref
from recsys.events import Event, Impression, Search
from recsys.profiles import ACTION_OF, CART, CLICK, PURCHASE, VIEW, Profile

DAY_S = 86_400
SHORT_S, LONG_S = 7 * DAY_S, 56 * DAY_S  # half-lives: what is rising, and what is liked
KEEP_NEIGHBOURS = 50
PAIR_WINDOW_S = DAY_S  # two items touched within a day belong together: a basket, or a session around it
PAIR_PARTNERS = 20  # the newest of them: a wholesaler's basket of 500 lines must not make 250,000 pairs
# Interest by action: a purchase is the surest sign, a view the weakest.
WEIGHT = {VIEW: 0.1, CLICK: 0.3, CART: 0.6, PURCHASE: 1.0}
MAX_TRENDING = 500  # the most a source is asked for (Policy.per_source)


class Increment(msgspec.Struct, frozen=True, array_like=True):
    """What events add to one item. Values of the topic `pairs`."""

    ts_s: int
    partners: tuple[tuple[int, float], ...] = ()  # (item_ref, weight)
    interest: float = 0.0  # users interested, by the weight of the action
    buyers: int = 0  # users who bought it today
    repeats: int = 0  # of them, those who had bought it before
    shown: int = 0


class Signal(msgspec.Struct, frozen=True, array_like=True):
    """One item's state. Values of the topic `signals`. Decayed figures are true at `ts_s`."""

    ts_s: int = 0
    neighbours: tuple[tuple[int, float], ...] = ()  # (item_ref, decayed weight), heaviest first
    short: float = 0.0  # decayed interest, half-life 7 days
    long: float = 0.0  # decayed interest, half-life 56 days
    exposure: float = 0.0  # decayed times shown, half-life 7 days
    buyers: int = 0  # ever
    repeats: int = 0  # ever


class Tally:
    """What a batch of events adds to the items it touches: one increment an item, however many events.

    Keys are an item id (of an event) or an item_ref (of a partner, whose id only the catalogue knows).
    """

    def __init__(self) -> None:
        self._counts: dict[str, list[float]] = {}  # item -> [interest, buyers, repeats, shown]
        self._pairs: dict[str | int, dict[int, float]] = {}
        self._times: dict[str | int, list[int]] = {}  # key -> [contributions, sum of their seconds]

    def add(self, event: Event, before: Profile) -> None:
        """Count one event. before: the user's profile without it. 10 µs with 20 partners.

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
                self._count(item, ts_s)[3] += 1
            return
        action = ACTION_OF[type(event)]
        own, weight = item_ref(event.item), WEIGHT[action]
        recent = _recent(before, ts_s)
        counts = self._count(event.item, ts_s)
        known = recent.get(own, 0.0)
        if weight > known:  # a user's interest counts once a day, by the surest action
            counts[0] += weight - known
            if action == PURCHASE:
                counts[1] += 1
                counts[2] += own.to_bytes(6) in before.purchases  # a rare misaligned match miscounts one repeat
        mine = self._pairs.setdefault(event.item, {})
        for ref, other in recent.items():
            if ref != own:
                pair = weight * other
                mine[ref] = mine.get(ref, 0.0) + pair
                theirs = self._pairs.setdefault(ref, {})
                theirs[own] = theirs.get(own, 0.0) + pair
                self._note(ref, ts_s)

    def increments(self) -> Iterator[tuple[str | int, Increment]]:
        """(key, increment) of every item touched, each at the mean time of what it counts.

        So a batch that spans days decays as its events would one by one, but for 1 % where it spans five.
        """
        for key, (count, total_s) in self._times.items():
            partners = tuple(self._pairs.get(key, {}).items())
            interest, buyers, repeats, shown = self._counts[key] if isinstance(key, str) else (0.0, 0, 0, 0)
            yield key, Increment(total_s // count, partners, interest, int(buyers), int(repeats), int(shown))

    def _count(self, item: str, ts_s: int) -> list[float]:
        self._note(item, ts_s)
        return self._counts.setdefault(item, [0.0, 0, 0, 0])

    def _note(self, key: str | int, ts_s: int) -> None:
        times = self._times.setdefault(key, [0, 0])
        times[0] += 1
        times[1] += ts_s


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
    """Two increments of one item as one, as if at the later time: what a micro-batch sends."""
    partners = dict(one.partners)
    for ref, weight in two.partners:
        partners[ref] = partners.get(ref, 0.0) + weight
    return Increment(
        max(one.ts_s, two.ts_s),
        tuple(partners.items()),
        one.interest + two.interest,
        one.buyers + two.buyers,
        one.repeats + two.repeats,
        one.shown + two.shown,
    )


def absorb(signal: Signal, inc: Increment) -> Signal:
    """An item's state with an increment more; a late one counts with what decay would have left of it.

    >>> s = absorb(Signal(), Increment(1000, ((7, 2.0),), interest=1.0))
    >>> s = absorb(s, Increment(1000 + LONG_S, ((8, 1.5),)))
    >>> s.neighbours, round(s.long, 3)
    (((8, 1.5), (7, 1.0)), 0.5)
    """
    now_s = max(signal.ts_s, inc.ts_s)
    long, short = 0.5 ** ((now_s - signal.ts_s) / LONG_S), 0.5 ** ((now_s - signal.ts_s) / SHORT_S)
    late_long, late_short = 0.5 ** ((now_s - inc.ts_s) / LONG_S), 0.5 ** ((now_s - inc.ts_s) / SHORT_S)
    weights = {ref: weight * long for ref, weight in signal.neighbours}
    for ref, weight in inc.partners:
        weights[ref] = weights.get(ref, 0.0) + weight * late_long
    heaviest = sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))[:KEEP_NEIGHBOURS]
    return Signal(
        now_s,
        tuple(heaviest),
        signal.short * short + inc.interest * late_short,
        signal.long * long + inc.interest * late_long,
        signal.exposure * short + inc.shown * late_short,
        signal.buyers + inc.buyers,
        signal.repeats + inc.repeats,
    )


class SignalTable:
    """All items' signals as arrays by catalogue row.

    neighbours: (N, 50) int32 rows, -1 where there is none;  weights: (N, 50) float32
    ts_s, short, long, exposure, buyers, repeats: (N,) float64
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.version = 0
        self._minute, self._top, self._mean_exposure = -1, np.empty(0, np.int64), 0.0
        self._allocate(len(catalogue.available))

    def update(self, row: int, signal: Signal) -> None:
        """Put one item's newest state into its row."""
        self.grow()
        get = self._catalogue.row_of_ref.get
        self.neighbours[row] = -1
        for at, (ref, weight) in enumerate(signal.neighbours):
            self.neighbours[row, at] = get(ref, -1)
            self.weights[row, at] = weight
        self.ts_s[row], self.short[row], self.long[row] = signal.ts_s, signal.short, signal.long
        self.exposure[row], self.buyers[row], self.repeats[row] = signal.exposure, signal.buyers, signal.repeats
        self.version += 1

    def decayed(self, name: str, rows: NDArray[np.int64], now_s: float) -> NDArray[np.float64]:
        """A decayed figure ('short', 'long' or 'exposure') of some rows as of now: (C,) float64."""
        half_life_s = LONG_S if name == "long" else SHORT_S
        age_s = np.maximum(now_s - self.ts_s[rows], 0)
        figures: NDArray[np.float64] = getattr(self, name)[rows] * 0.5 ** (age_s / half_life_s)
        return figures

    def trending(self, now_s: float, limit: int) -> NDArray[np.int64]:
        """Rows by decayed interest of distinct users, best first, ties by row; renewed once a minute of event time."""
        self._renew(now_s)
        return self._top[:limit]

    def overexposure(self, rows: NDArray[np.int64], now_s: float) -> NDArray[np.float64]:
        """log(1 + e / mean e) of some rows: how much oftener than the average item each was shown lately: (C,)."""
        self._renew(now_s)
        # .1: while hardly anything was shown, one showing is no reason for a penalty.
        return np.log1p(self.decayed("exposure", rows, now_s) / max(self._mean_exposure, 0.1))

    def _renew(self, now_s: float) -> None:
        """What is the same for every user is computed once a minute of event time."""
        if self._minute == int(now_s // 60):
            return
        self._minute = int(now_s // 60)
        rows = np.flatnonzero(self._catalogue.available[: len(self._catalogue)])
        heat = self.decayed("short", rows, now_s)
        order = np.argsort(-heat, kind="stable")[:MAX_TRENDING]
        self._top = rows[order[heat[order] > 0]]
        self._mean_exposure = float(self.decayed("exposure", rows, now_s).mean()) if len(rows) else 0.0

    def grow(self) -> None:
        """Make room for every row the catalogue has; the ranker calls it after reading items."""
        if len(self.ts_s) < len(self._catalogue):
            self._allocate(len(self._catalogue.available))

    def _allocate(self, size: int) -> None:
        old = dict(self.__dict__)

        def grown(name: str, shape: tuple[int, ...], dtype: type[Any], fill: float) -> NDArray[Any]:
            fresh: NDArray[Any] = np.full(shape, fill, dtype)
            if name in old:
                fresh[: len(old[name])] = old[name]
            return fresh

        self.neighbours = grown("neighbours", (size, KEEP_NEIGHBOURS), np.int32, -1)
        self.weights = grown("weights", (size, KEEP_NEIGHBOURS), np.float32, 0)
        self.ts_s = grown("ts_s", (size,), np.float64, 0)
        self.short = grown("short", (size,), np.float64, 0)
        self.long = grown("long", (size,), np.float64, 0)
        self.exposure = grown("exposure", (size,), np.float64, 0)
        self.buyers = grown("buyers", (size,), np.float64, 0)
        self.repeats = grown("repeats", (size,), np.float64, 0)


def neighbour_scores(
    table: SignalTable, rows: NDArray[np.int64], emphasis: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Co-visitation from some items: (rows, scores), unordered; score = Σ emphasis · w_ij / √(w_i w_j).

    rows: (R,) rows of items the user has; emphasis: (R,) how much each counts. The root damps popular items, as in
    cosine similarity. O(50 R).
    """
    near, weight = table.neighbours[rows], table.weights[rows]
    mass = 1.0 + table.buyers[rows]
    known = near >= 0
    flat = near[known].astype(np.int64)
    damped = (weight * (emphasis / np.sqrt(mass))[:, None])[known] / np.sqrt(1.0 + table.buyers[flat])
    found, inverse = np.unique(flat, return_inverse=True)
    return found, np.bincount(inverse, damped, len(found)).astype(np.float64)
