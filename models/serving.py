"""What a ranker needs of a release, behind one reference that can be swapped whole: tower, vectors, scorer.

Imports neither torch nor transformers. Called by the ranker and by `slatecast evaluate`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recsys.pipeline import Scored


class Models(Protocol):
    """The models of one release."""

    release: str
    dim: int  # of text vectors; 0: there is no text tower

    def score(self, features: NDArray[np.float32]) -> Scored:
        """Logits of stacked candidates; never raises, never NaN: what went wrong is in the answer."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Whitened unit vectors: (N, dim) float32."""
        ...

    def vector(self, text_hash: str) -> NDArray[np.float32] | None:
        """The cached vector of an item's text, if the release has it."""
        ...


class NoModels:
    """A shop that has not trained yet: lists by rank fusion of the sources, each saying so."""

    release = "none"
    dim = 0

    def score(self, features: NDArray[np.float32]) -> Scored:
        """No logits."""
        return Scored(None, "rank_fusion", "no release: run `slatecast train`")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """No vectors."""
        return np.zeros((len(texts), 0), np.float32)

    def vector(self, text_hash: str) -> NDArray[np.float32] | None:
        """No cache."""
        return None


def open_models(folder: "Path") -> Models:
    """The models of a release folder."""
    raise NotImplementedError
