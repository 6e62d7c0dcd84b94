"""What a ranker knows of the shop: the catalogue with its vectors, and the crowd's signals, read whole from their topics.

New and changed items are embedded while serving, a few at a time. Called by the ranker, before each batch.
"""

import logging
from collections import Counter
from collections.abc import Callable

import numpy as np

from models.serving import Models, Successor, find_vectors
from recsys.catalogue import Catalogue, item_text
from recsys.errors import BadEvent
from recsys.signal_table import SignalTable
from recsys.signals import Signal
from streams.records import Record, item_of
from streams.settings import Settings
from streams.signals import decode_signal
from streams.tables import TableReader
from streams.telemetry import BAD_ITEMS

log = logging.getLogger(__name__)

EMBED_PER_REFRESH = 32  # texts, ≈ 80 ms: new items are embedded while serving, but never for long


class Shelf:
    """The catalogue and the signals as this ranker knows them, kept current from their topics."""

    def __init__(self, settings: Settings, models: Models) -> None:
        self._models = models
        self.catalogue = Catalogue(dim=models.dim)
        self.signals = SignalTable(self.catalogue)
        # Signals of items that the catalogue does not know yet, or any more: as bytes, a seventh of what they take as such.
        self._early: dict[str, bytes] = {}
        self._waiting: list[tuple[int, str]] = []  # rows and texts to embed
        self._items = TableReader(settings, "items", self._take_item)
        self._signals = TableReader(settings, "signals", self._take_signal)
        self.bad_items: Counter[str] = Counter()

    def catch_up(self, beat: Callable[[], None] = lambda: None) -> None:
        """Read both topics to their end, and embed what the release has not seen; `beat` hears of each step."""
        counts = self._items.catch_up(beat), self._signals.catch_up(beat)
        if self._waiting:
            log.info("ranker: embedding %d items that the release does not know", len(self._waiting))
        while self._waiting:
            self._embed(512)
            beat()
        log.info("ranker: %d items, %d signals read", *counts)

    def follow(self) -> None:
        """Take what has come, without waiting."""
        self._items.follow()
        self._signals.follow()
        if self._waiting:
            self._embed(EMBED_PER_REFRESH)

    def adopt(self, successor: Successor) -> None:
        """Go on with another release's vectors; what has changed since they were made gets its own as new items do."""
        live, own = self.catalogue, successor.catalogue
        vectors, size = own.vectors, len(live.available)
        if len(vectors) < size:  # the catalogue has grown since
            vectors = np.concatenate([vectors, np.zeros((size - len(vectors), vectors.shape[1]), np.float32)])
        changed = [
            row
            for row, item in enumerate(live.items)
            if row >= len(own) or (item is not own.items[row] and item_text(item) != item_text(own.items[row]))
        ]
        self._models, live.vectors, live.embedded = successor.models, vectors, own.embedded
        live.set_vectors(changed, np.zeros((len(changed), vectors.shape[1]), np.float32))  # not of the old tower
        self._waiting = find_vectors(self._models, live, changed)

    def _take_item(self, record: Record) -> None:
        key = (record.key or b"").decode(errors="replace")
        if record.value is None:
            self.catalogue.remove(key)
            return
        try:
            item = item_of(record)
            row = self.catalogue.upsert(item)
        except BadEvent as error:  # the topic keeps the bytes; the item is missing here, which is said and counted
            self.bad_items[error.reason_class] += 1
            BAD_ITEMS.inc()
            log.warning("ranker: item at %s:%d ignored: %s", record.partition, record.offset, error)
            return
        self.signals.grow()
        if item.item in self._early:
            self.signals.update(row, decode_signal(self._early.pop(item.item)))
        self._waiting += find_vectors(self._models, self.catalogue, [row])

    def _take_signal(self, record: Record) -> None:
        item = (record.key or b"").decode()
        row = self.catalogue.row(item)
        if row >= 0:  # a tombstone: nothing is known
            self.signals.update(row, Signal() if record.value is None else decode_signal(record.value))
        elif record.value is None:
            self._early.pop(item, None)
        else:
            self._early[item] = record.value

    def _embed(self, limit: int) -> None:
        batch, self._waiting = self._waiting[:limit], self._waiting[limit:]
        items = self.catalogue.items
        # Of an item that has changed since, its newer text waits too, or has its vector already.
        current = {row: text for row, text in batch if text == item_text(items[row])}
        if current:
            self.catalogue.set_vectors(list(current), self._models.embed(list(current.values())))
