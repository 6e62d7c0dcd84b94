"""Item-item models: what follows from what a user has, learned from everybody's past and fixed until the next training.

A model is a sparse matrix: from an item to the items it speaks for, or against. Here it is only followed; `models` fits
it. Beside co-visitation (signals.py), which lives with the stream, it knows what neighbours have in common: a count
gives an item's weight to all of them, EASE to the one that explains it. Called by `see`, once a list.
"""

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.catalogue import Catalogue
from recsys.signals import DAY_S

HALF_LIFE_S = 60 * DAY_S  # of what the user has, for `lately`


def weigh_lately(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a user has as `lately` reads it: the root of decayed counts, to unit length. counts: (H,), not negative.

    Who buys much says no more than who buys little, a habit little more than a single purchase.

    >>> weigh_lately(np.array([9.0, 16.0])).tolist()
    [0.6, 0.8]
    """
    roots = np.sqrt(counts)
    return np.asarray(roots / max(float(np.linalg.norm(roots)), 1e-9))


class ItemModel(msgspec.Struct, frozen=True):
    """Item i speaks for columns[starts[i]:starts[i + 1]], with those weights.

    starts: (M + 1,) int64; columns: (W,) int64 and weights: (W,) float32, both in the order of items.
    """

    starts: NDArray[np.int64]
    columns: NDArray[np.int64]
    weights: NDArray[np.float32]


class ItemModels:
    """Models over one list of items, whatever rows a catalogue gives them.

    refs: (M,) uint64, `item_ref` of each item. Items that came after the training say nothing, and nothing is said of
    them: they have the text for that.
    """

    def __init__(self, refs: NDArray[np.uint64] | None = None, models: Mapping[str, ItemModel] | None = None) -> None:
        self.refs = np.empty(0, np.uint64) if refs is None else refs
        self.models = models or {}
        self._size = -1
        self._row_of = self._index_of = np.empty(0, np.int64)

    def follow(
        self, name: str, rows: NDArray[np.int64], emphasis: NDArray[np.float64], catalogue: Catalogue
    ) -> NDArray[np.float64]:
        """Scores of the whole catalogue, (N,) float64: Σ emphasis · weight over what the user has. 15 ns a weight.

        rows: (H,) distinct; emphasis: (H,). Zero where a model says nothing.

        >>> from recsys.catalogue import Item, item_ref
        >>> c = Catalogue([Item(item=name, title=name) for name in ("new", "cup", "pot")])
        >>> refs = np.array([item_ref("pot"), item_ref("cup")], np.uint64)
        >>> pots = ItemModel(np.array([0, 1, 1]), np.array([1]), np.array([2.0], np.float32))
        >>> ItemModels(refs, {"ease": pots}).follow("ease", np.array([2]), np.array([0.5]), c).tolist()
        [0.0, 1.0, 0.0]
        """
        self._attach(catalogue)
        model = self.models[name]
        index = self._index_of[rows]
        known = index >= 0
        index, emphasis = index[known], emphasis[known]
        counts = model.starts[index + 1] - model.starts[index]
        ends = np.cumsum(counts)
        at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(model.starts[index] - (ends - counts), counts)
        scores = np.bincount(model.columns[at], np.repeat(emphasis, counts) * model.weights[at], len(self.refs))
        everything = np.zeros(self._size)
        here = self._row_of >= 0
        everything[self._row_of[here]] = scores[here]
        return everything

    def strongest(self, name: str, rows: NDArray[np.int64], target: int, catalogue: Catalogue) -> int:
        """Of some rows the one that speaks most for a target row; -1 if none does. 1 µs a row."""
        self._attach(catalogue)
        model, wanted = self.models[name], self._index_of[target]
        best, most = -1, 0.0
        for row, index in zip(rows.tolist(), self._index_of[rows].tolist(), strict=True):
            if index >= 0:
                said = slice(model.starts[index], model.starts[index + 1])
                weight = float(model.weights[said][model.columns[said] == wanted].sum())
                if weight > most:
                    best, most = row, weight
        return best

    def _attach(self, catalogue: Catalogue) -> None:
        """Find our items among the catalogue's rows, again whenever it has grown. 1 ms for 6,000."""
        if self._size == len(catalogue):
            return
        self._size = len(catalogue)
        self._row_of = catalogue.rows(self.refs)
        self._index_of = np.full(self._size, -1, np.int64)
        here = np.flatnonzero(self._row_of >= 0)
        self._index_of[self._row_of[here]] = here
