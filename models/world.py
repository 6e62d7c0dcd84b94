"""The shop as of a moment in the past: profiles and signals replayed from history, by the code that serves.

The same functions as in the live ranker and aggregator (`apply`, `Tally`, `absorb`) in the same order, so what
training sees is what serving will see: neither figures nor neighbours ask which events of a day were counted together.
Called by training and by evaluation.
"""

import math
from collections.abc import Callable

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from models.history import History
from recsys.catalogue import Catalogue
from recsys.context import Request, Shop
from recsys.events import Cart, Click, Event, Impression, Purchase, View
from recsys.profiles import CART, CLICK, EMPTY, PURCHASE, VIEW, Profile, apply
from recsys.signal_table import SignalTable
from recsys.signals import DAY_S, Signal, Tally, absorb

_KIND: dict[int, type[Click | View | Cart | Purchase]] = {VIEW: View, CLICK: Click, CART: Cart, PURCHASE: Purchase}


class World:
    """Profiles and signals of everything that happened before `now_s`.

    What was learned of items is set by who learns (`shop.item_models`). Items come into the catalogue with the first
    event that touches them, so a past moment knows no later item.
    """

    def __init__(self, history: History, vectors: NDArray[np.float32] | None = None) -> None:
        self.history = history
        self.now_s = 0
        self.profiles: dict[int, Profile] = {}
        self.shown: dict[int, bytes] = {}  # logs of `Profile.shown`; histories have none, so who makes lists tells
        self.shop = Shop(catalogue := Catalogue(history.items), SignalTable(catalogue))
        catalogue.available[: len(catalogue)] = False
        if vectors is not None:
            catalogue.vectors = np.zeros((len(catalogue.available), vectors.shape[1]), np.float32)
            catalogue.vectors[: len(vectors)] = vectors
        self._at = 0
        self._signals: dict[int, Signal] = {}

    def advance(self, until_s: int, progress: Callable[[int], None] = lambda done: None) -> None:
        """Live through every event before `until_s`, which must not lie before where it stands. About 107 µs an event."""
        if until_s < self.now_s:
            raise ValueError(f"a world at {self.now_s} cannot go back to {until_s}: what was learned since would leak")
        history, catalogue = self.history, self.shop.catalogue
        end = int(np.searchsorted(history.ts_s, until_s))
        touched: set[int] = set()
        while self._at < end:
            midnight_s = (int(history.ts_s[self._at]) // DAY_S + 1) * DAY_S
            chunk = slice(self._at, min(end, int(np.searchsorted(history.ts_s, midnight_s))))
            tally = Tally()
            columns = (history.user, history.item, history.ts_s, history.action, history.price)
            for user, item, ts_s, action, price in zip(*(column[chunk].tolist() for column in columns), strict=True):
                catalogue.available[item] = True
                event = _event(history, user, item, ts_s, action, price)
                before = self.profiles.get(user, EMPTY)
                after = apply(before, event, (item << 8 | action).to_bytes(6))
                if after is not before:
                    self.profiles[user] = after
                    tally.add(event, before)
            for key, inc in tally.increments():
                row = catalogue.row(key) if isinstance(key, str) else catalogue.row_of_ref[key]
                self._signals[row] = absorb(self._signals.get(row, Signal()), inc)
                touched.add(row)
            self._at = chunk.stop
            progress(self._at)
        for row in touched:  # once, at the moment that is looked at: the table serves readers only
            self.shop.signals.update(row, self._signals[row])
        self.now_s = until_s

    def request(self, user: int) -> Request:
        """A request of this user at this moment."""
        profile, shown = self.profiles.get(user, EMPTY), self.shown.get(user)
        if shown:
            profile = replace(profile, shown=shown)
        return Request(self.history.user_ids[user], profile, float(self.now_s))

    def show(self, user: int, rows: list[int]) -> None:
        """Tell the user's profile that these items were shown now. The crowd's counts are not told."""
        items = tuple(self.history.items[row].item for row in rows)
        event = Impression(user=self.history.user_ids[user], items=items, ts_ms=self.now_s * 1000)
        self.shown[user] = apply(Profile(shown=self.shown.get(user, b"")), event, bytes(6)).shown


def _event(history: History, user: int, item: int, ts_s: int, action: int, price: float) -> Event:
    known = None if math.isnan(price) else price
    return _KIND[action](user=history.user_ids[user], item=history.items[item].item, ts_ms=ts_s * 1000, price=known)
