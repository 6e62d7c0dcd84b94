"""Nearest texts in a large catalogue: an approximate index behind the door of `recsys.candidates.VectorIndex`.

Until EXACT_UNTIL items one matrix product is as fast and exact, and this class does just that.
"""

import numpy as np
import onnxruntime  # noqa: F401 - before usearch: loaded after it, it ends the process (SIGSEGV, 1.31.1)
from numpy.typing import NDArray
from usearch.index import Index

from recsys.candidates import BruteForce, Found, best
from recsys.catalogue import Catalogue
from recsys.context import Context

EXACT_UNTIL = 20_000  # rows: the product takes 1.6 ms of one core, as long as the index
FOLLOW = 8  # rows a call, 10 ms: a shop that grows past EXACT_UNTIL, or whose texts all change, must not stop a ranker
WIDEST = 4  # times as many are looked at where some are sold out: each doubling takes twice the time


class Approximate:
    """HNSW over unit vectors, following the catalogue; float16 halves its memory and leaves recall@60 at .999."""

    def __init__(self, dim: int, exact_until: int = EXACT_UNTIL) -> None:
        self._exact, self._exact_until = BruteForce(), exact_until
        self._index = Index(ndim=max(dim, 1), metric="cos", dtype="f16", expansion_search=128)
        self._read = 0  # how much of catalogue.embedded is in the index
        self._called = self._whole = False  # whether it was asked before; whether it once had all there was

    def nearest(self, context: Context, vector: NDArray[np.float32], limit: int) -> Found:
        """At most `limit` rows by cosine above zero, best first.

        The first call, which nobody waits for, takes in whatever there is; later ones FOLLOW rows each. Exact until it
        once had all.
        """
        catalogue, first = context.shop.catalogue, not self._called
        self._called = True
        if len(catalogue) <= self._exact_until:
            return self._exact.nearest(context, vector, limit)
        self._follow(catalogue, len(catalogue.embedded) if first else FOLLOW)
        self._whole |= self._read == len(catalogue.embedded)
        if not self._whole:
            return self._exact.nearest(context, vector, limit)
        many = limit
        while True:
            found = self._index.search(vector, many)
            rows = found.keys.astype(np.int64)
            if catalogue.available[rows].sum() >= limit or len(rows) < many or many >= WIDEST * limit:
                return best(rows, 1.0 - found.distances.astype(np.float64), limit, catalogue.available)
            many *= 2  # what is sold out is in the index, too

    def _follow(self, catalogue: Catalogue, most: int) -> None:
        """Take in what was embedded since, the oldest first; 1.2 ms a row."""
        since = catalogue.embedded[self._read : self._read + most]
        fresh = np.unique(np.array(since, np.int64))
        self._read += len(since)
        if len(fresh):
            self._index.remove(fresh[[row in self._index for row in fresh.tolist()]])
            known = fresh[catalogue.vectors[fresh].any(axis=1)]
            self._index.add(known, catalogue.vectors[known])
