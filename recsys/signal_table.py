"""The crowd's signals of all items as arrays, as a ranker and the training read them. `recsys.signals` makes them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.catalogue import Catalogue
from recsys.signals import KEEP_NEIGHBOURS, LONG_S, SHORT_S, Signal, heaviest

MAX_TRENDING = 500  # the most a source is asked for (Policy.per_source)
TYPICAL_D = 30.0  # days between purchases of one thing, before anything is known of it
Figures = NDArray[np.float64]


class SignalTable:
    """All items' signals as arrays by catalogue row.

    neighbours: (N, 50) int32 rows, -1 where there is none;  weights: (N, 50) float32
    ts_s and the other figures of a Signal: (N,) float64, by their names
    """

    ts_s: Figures
    short: Figures
    long: Figures
    exposure: Figures
    buyers: Figures
    repeats: Figures
    fresh_short: Figures
    fresh_long: Figures
    gap_d: Figures

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.version = 0
        self._minute, self._top, self._shown = -1, np.empty(0, np.int64), 1.0
        self._of_category: Figures = np.zeros(1)
        self._allocate(len(catalogue.available))

    def update(self, row: int, signal: Signal) -> None:
        """Put one item's newest state into its row."""
        self.grow()
        get = self._catalogue.row_of_ref.get
        self.neighbours[row] = -1
        for at, (ref, weight) in enumerate(heaviest(signal.neighbours, KEEP_NEIGHBOURS)):
            self.weights[row, at] = weight
            # Of a clock that stood at 2000 decay leaves less than float32 can say: nothing, or what divides by it is NaN.
            self.neighbours[row, at] = get(ref, -1) if self.weights[row, at] > 0 else -1
        for name in _FIGURES:
            getattr(self, name)[row] = getattr(signal, name)
        self._catalogue.learn(row, signal.first_s, signal.priced[1] if signal.priced else None)
        self.version += 1

    def decayed(self, name: str, rows: NDArray[np.int64], now_s: float) -> NDArray[np.float64]:
        """A decayed figure (as 'short' or 'fresh_long') of some rows as of now: (C,) float64."""
        half_life_s = LONG_S if name.endswith("long") else SHORT_S
        age_s = np.maximum(now_s - self.ts_s[rows], 0)
        figures: NDArray[np.float64] = getattr(self, name)[rows] * 0.5 ** (age_s / half_life_s)
        return figures

    def trending(self, now_s: float, limit: int) -> NDArray[np.int64]:
        """Rows by decayed interest of distinct users, best first, ties by row; renewed once a minute of event time."""
        self._renew(now_s)
        return self._top[:limit]

    def shown_share(self, rows: NDArray[np.int64], now_s: float) -> NDArray[np.float64]:
        """Which part of all that was shown lately was this item: (C,) float64 in [0, 1]."""
        self._renew(now_s)
        return self.decayed("exposure", rows, now_s) / self._shown

    def count_shown(self, rows: NDArray[np.int64], now_s: float) -> None:
        """Lists shown at a past moment, for who makes them without impressions coming back. rows may repeat."""
        times = np.bincount(rows, minlength=len(self.exposure))
        age_s = np.maximum(now_s - self.ts_s, 0)
        self.exposure = self.exposure + times / 0.5 ** np.minimum(age_s / SHORT_S, 60)  # as of each item's own time
        self._minute = -1

    def restore_shown(self, exposure: Figures) -> None:
        """Take back what was counted since `exposure` was the table's."""
        self.exposure = exposure
        self._minute = -1

    def interval_d(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Days after which users buy an item again, shrunk to TYPICAL_D by five pseudo-intervals: (C,) float64 ≥ 0."""
        days: NDArray[np.float64] = (self.gap_d[rows] + 5 * TYPICAL_D) / (self.repeats[rows] + 5)
        return days

    def share_of_category(self, rows: NDArray[np.int64], level: int, now_s: float) -> NDArray[np.float64]:
        """Which part of the interest in its category (at a level, 0 to 2) each item has: (C,) float64 in [0, 1]."""
        self._renew(now_s)
        codes = self._catalogue.category[rows, level]
        counted = (codes >= 0) & (codes < len(self._of_category))  # a category may have come within this minute
        whole = np.where(counted, self._of_category[np.where(counted, codes, 0)], 0.0)
        return self.decayed("long", rows, now_s) / np.maximum(whole, 1.0)

    def _renew(self, now_s: float) -> None:
        """What is the same for every user is computed once a minute of event time."""
        if self._minute == int(now_s // 60):
            return
        self._minute = int(now_s // 60)
        rows = np.flatnonzero(self._catalogue.available[: len(self._catalogue)])
        heat = self.decayed("short", rows, now_s)
        order = np.argsort(-heat, kind="stable")[:MAX_TRENDING]
        self._top = rows[order[heat[order] > 0]]
        # A tenth of the catalogue: while hardly anything was shown, one showing is no reason for a price.
        self._shown = max(float(self.decayed("exposure", rows, now_s).sum()), len(rows) / 10, 1.0)
        codes, interest = self._catalogue.category[rows], self.decayed("long", rows, now_s)
        known = codes >= 0
        # Codes of all levels are of one numbering.
        self._of_category = np.bincount(codes[known], np.repeat(interest, known.sum(axis=1)), 1).astype(np.float64)

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
        for name in _FIGURES:
            setattr(self, name, grown(name, (size,), np.float64, 0))


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


_FIGURES = tuple(SignalTable.__annotations__)
