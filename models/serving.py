"""What a ranker needs of a release, behind one reference that can be swapped whole: tower, vectors, scorer.

Imports neither torch nor transformers. Called by the ranker and by `slatecast evaluate`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from models.item_files import load_item_models
from models.ladder import Ladder
from models.registry import Release, open_release
from models.text_tower import TextTower
from models.whitening import Whitening
from recsys.features import NAMES
from recsys.item_models import ItemModels
from recsys.scoring import Ask, Scored, Trail


class Models(Protocol):
    """The models of one release."""

    release: str
    provider: str  # of ONNX Runtime, as the session really has it
    dim: int  # of text vectors; 0: there is no text tower
    item_models: ItemModels

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        """Logits of the lists' candidates; never raises, never NaN: what went wrong is in the answer."""
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
    provider = "none"
    dim = 0
    item_models = ItemModels()

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        """No logits."""
        return Scored(None, "rank_fusion", "no release: run `slatecast train`")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """No vectors."""
        return np.zeros((len(texts), 0), np.float32)

    def vector(self, text_hash: str) -> NDArray[np.float32] | None:
        """No cache."""
        return None


class ReleaseModels:
    """A release at work."""

    def __init__(self, release: Release) -> None:
        folder = release.folder
        self.release = release.id
        self._ladder = Ladder(folder, release.manifest.features)
        self.item_models = load_item_models(folder)
        self._tower = TextTower(folder / "text")
        cached = load_file(folder / "vectors.safetensors")
        self._vectors = cached["vectors"]
        self._row = {bytes(row).hex(): at for at, row in enumerate(cached["text_hashes"])}
        whitening = load_file(folder / "whitening.safetensors")
        self._whitening = Whitening(whitening["mean"], whitening["matrix"])
        self.dim = self._whitening.matrix.shape[1]
        self.provider = self._ladder.provider

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        """By the best scorer that answers."""
        return self._ladder.score(asks, vectors)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The release's tower, then its whitening."""
        return self._whitening.apply(self._tower.encode(texts))

    def vector(self, text_hash: str) -> NDArray[np.float32] | None:
        """From the release's cache."""
        at = self._row.get(text_hash)
        return None if at is None else self._vectors[at]


def open_models(folder: Path) -> Models:
    """The models of a release folder, verified file by file and warmed up. Raises ModelRejected."""
    models = ReleaseModels(open_release(folder))
    # A first inference may take seconds (memory, CUDA's kernels): no event waits for it, and no watchdog takes it for
    # a record that hangs.
    trail = Trail(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros((1, 2), np.float32))
    ask = Ask(np.zeros(8, np.int64), np.zeros((8, len(NAMES)), np.float32), trail)
    models.score([ask], np.zeros((2, models.dim), np.float32))
    models.embed(["warm up"])
    return models
