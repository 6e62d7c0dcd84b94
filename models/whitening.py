"""PCA-whitening of text vectors: what makes their cosines mean something.

Raw vectors of a language model share a few large directions, and a cosine mostly measures those. Whitened with the
catalogue's own mean and covariance, MiniLM's worth for ranking rises from NDCG@10 .154 to .226 on Online Retail
(docs/decisions.md). Fitted without labels, stored in the release, swapped with the vectors.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

# Directions with hardly any variance would be blown up to noise: a floor, as a share of the mean variance.
FLOOR = 1e-3


class Whitening(msgspec.Struct, frozen=True):
    """x -> unit((x - mean) @ matrix). mean: (D,) float32; matrix: (D, d) float32."""

    mean: NDArray[np.float32]
    matrix: NDArray[np.float32]

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Whitened unit vectors: (N, d) float32; a zero vector (no text) stays zero."""
        whitened = (vectors - self.mean) @ self.matrix
        norms = np.linalg.norm(whitened, axis=1, keepdims=True)
        unit = whitened / np.maximum(norms, 1e-12)
        unit[~vectors.any(axis=1)] = 0
        return np.asarray(unit, np.float32)


def fit_whitening(vectors: NDArray[np.float32], dim: int) -> Whitening:
    """Fit on a catalogue's vectors, (N, D) float32, for min(dim, D) dimensions. O(N D² + D³)."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors.astype(np.float64) - mean
    values, directions = np.linalg.eigh(centred.T @ centred / max(len(vectors) - 1, 1))
    values, directions = values[::-1][:dim], directions[:, ::-1][:, :dim]
    # eigh leaves the sign open; the largest entry positive makes two fits of the same data equal.
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])])
    scale = 1 / np.sqrt(np.maximum(values, FLOOR * max(values.mean(), 1e-12)))
    return Whitening(mean.astype(np.float32), (directions * scale).astype(np.float32))
