"""Whitening: what it promises of a covariance, of signs, and of catalogues smaller than their vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.whitening import Whitening, fit_whitening, shrinkage


def anisotropic(count: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Vectors with a common direction and directions of very different size, as a language model's are."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, width)) * np.geomspace(1, 0.05, width) @ rng.normal(size=(width, width)) + 3
    return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)


def before_normalisation(whitening: Whitening, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    return (vectors.astype(np.float64) - whitening.mean) @ whitening.matrix


def test_the_covariance_of_a_large_catalogue_is_the_identity() -> None:
    vectors = anisotropic(4000, 16)
    covariance = np.cov(before_normalisation(fit_whitening(vectors, 16), vectors).T)
    np.testing.assert_allclose(covariance, np.eye(16), atol=0.02)


@given(st.integers(1, 60), st.integers(2, 12), st.integers(1, 12))
def test_the_shrunk_covariance_becomes_the_identity_at_any_size(count: int, width: int, dim: int) -> None:
    vectors = anisotropic(count, width, seed=count)
    whitening = fit_whitening(vectors, dim)
    assert whitening.matrix.shape == (width, min(dim, width))
    assert np.isfinite(whitening.matrix).all()
    if count > 1:
        share, covariance = shrinkage(count, width), np.cov(vectors.T.astype(np.float64))
        shrunk = (1 - share) * covariance + share * np.trace(covariance) / width * np.eye(width)
        inside = whitening.matrix.T.astype(np.float64) @ shrunk @ whitening.matrix
        np.testing.assert_allclose(inside, np.eye(min(dim, width)), atol=1e-3)


def test_fewer_vectors_than_dimensions_keep_who_is_near_whom() -> None:
    rng = np.random.default_rng(0)
    pairs = np.repeat(rng.normal(size=(10, 64)), 2, axis=0) + 0.3 * rng.normal(size=(20, 64))
    vectors = fit_whitening(pairs.astype(np.float32), 64).apply(pairs.astype(np.float32))
    cosines = vectors @ vectors.T - 2 * np.eye(20, dtype=np.float32)
    assert (cosines.argmax(axis=1) == np.arange(20) ^ 1).all()


def test_two_fits_of_the_same_catalogue_are_equal_whatever_its_order() -> None:
    vectors = anisotropic(300, 24)
    one, other = fit_whitening(vectors, 24), fit_whitening(vectors[::-1], 24)
    np.testing.assert_allclose(one.matrix, other.matrix, rtol=1e-2, atol=1e-3)
    assert (one.matrix[np.abs(one.matrix).argmax(axis=0), np.arange(24)] > 0).all()


def test_whitened_vectors_have_unit_length_and_no_text_stays_zero() -> None:
    vectors = anisotropic(200, 8)
    vectors[3] = 0
    whitened = fit_whitening(vectors, 8).apply(vectors)
    lengths = np.linalg.norm(whitened, axis=1)
    assert whitened.dtype == np.float32
    assert lengths[3] == 0
    np.testing.assert_allclose(np.delete(lengths, 3), 1, rtol=1e-5)


def test_vectors_without_text_do_not_move_the_fit() -> None:
    vectors = anisotropic(100, 8)
    with_empty = np.concatenate([vectors, np.zeros((50, 8), np.float32)])
    np.testing.assert_array_equal(fit_whitening(vectors, 8).matrix, fit_whitening(with_empty, 8).matrix)


def test_a_catalogue_without_any_text_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="at least one vector"):
        fit_whitening(np.zeros((5, 8), np.float32), 8)
