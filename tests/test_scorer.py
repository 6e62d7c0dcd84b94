"""The linear scorer as a graph: agrees with NumPy, row by row the same bits, and never lets a bad number through."""

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import devices
from models.devices import CUDA, open_session, why_no_cuda
from models.scorer import Network, OnnxScorer, feature_width
from recsys.errors import ModelRejected, Unavailable
from recsys.features import NAMES

WIDTH = len(NAMES)


def linear(width: int = WIDTH, scale: float = 1.0) -> Network:
    rng = np.random.default_rng(width)
    mean, std = rng.normal(size=width), 0.1 + rng.random(width)
    weight, bias = scale * rng.normal(size=(width, 2)), rng.normal(size=2)
    return Network(*(array.astype(np.float32) for array in (weight, bias, mean, std)))


def some_features(rows: int, width: int = WIDTH, seed: int = 0) -> NDArray[np.float32]:
    return (3 * np.random.default_rng(seed).normal(size=(rows, width))).astype(np.float32)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> OnnxScorer:
    path = tmp_path_factory.mktemp("scorer") / "scorer.onnx"
    linear().save(path)
    return OnnxScorer(path, WIDTH)


def test_a_worked_example(tmp_path: Path) -> None:
    # Two features: (3 - 1) / 2 = 1 and (100 - 0) / 1, clipped to 5; logits 1·1 + 5·.1 + 10 and 1·0 + 5·-1 + 0.
    weight, bias = np.array([[1, 0], [0.1, -1]], np.float32), np.array([10, 0], np.float32)
    Network(weight, bias, np.array([1, 0], np.float32), np.array([2, 1], np.float32)).save(tmp_path / "s.onnx")
    logits = OnnxScorer(tmp_path / "s.onnx", 2).score(np.array([[3, 100]], np.float32))
    np.testing.assert_allclose(logits, [[11.5, -5]], rtol=1e-6)


@given(st.integers(1, 700), st.integers(0, 5))
def test_the_graph_agrees_with_numpy_at_any_number_of_rows(scorer: OnnxScorer, rows: int, seed: int) -> None:
    features = some_features(rows, seed=seed)
    np.testing.assert_allclose(scorer.score(features), linear().score(features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [7, WIDTH, 81])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_whatever_else_is_in_the_batch(width: int, threads: int) -> None:
    scorer = OnnxScorer(linear(width)._graph(), width, threads=threads)
    features, rng = some_features(2000, width), np.random.default_rng(1)
    alone = scorer.score(features)
    for rows in (*range(1, 34), 63, 64, 65, 199, 200, 201, 333, 1000, 1999, 2000):
        chosen = rng.permutation(2000)[:rows]
        np.testing.assert_array_equal(scorer.score(features[chosen]), alone[chosen])


def test_no_rows_are_no_logits(scorer: OnnxScorer) -> None:
    assert scorer.score(np.zeros((0, WIDTH), np.float32)).shape == (0, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_no_number_is_the_callers_error(scorer: OnnxScorer, value: float) -> None:
    features = some_features(9)
    features[4, 2] = value
    with pytest.raises(ValueError, match="feature 2 of row 4"):
        scorer.score(features)


def test_features_of_another_width_are_the_callers_error(scorer: OnnxScorer) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 4\)"):
        scorer.score(some_features(3, 4))


def test_logits_that_are_not_finite_never_leave_the_scorer() -> None:
    too_large = OnnxScorer(linear(scale=1e38)._graph(), WIDTH)
    with pytest.raises(ModelRejected, match="not finite"):
        too_large.score(some_features(5))


def test_weights_that_overflow_or_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    with np.errstate(all="ignore"), pytest.raises(ModelRejected):
        linear(scale=1e38).save(tmp_path / "s.onnx")
    with pytest.raises(ModelRejected, match="not finite"):
        linear(scale=np.nan)
    assert not list(tmp_path.iterdir())


def test_a_constant_feature_needs_a_std_above_zero() -> None:
    ok = linear(3)
    with pytest.raises(ValueError, match="std of feature 1"):
        Network(ok.weight, ok.bias, ok.mean, np.array([1, 0, 1], np.float32))


def test_a_scorer_for_other_features_is_refused() -> None:
    with pytest.raises(ModelRejected, match="train again"):
        OnnxScorer(linear(7)._graph(), WIDTH)


@pytest.mark.parametrize(
    ("names", "said"), [(NAMES[:-1], NAMES[-1]), (NAMES[::-1], "their order"), (("x", *NAMES[1:]), "own_count, x")]
)
def test_features_of_another_name_or_order_are_refused(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(ModelRejected, match=said):
        feature_width(names, NAMES)


@pytest.mark.parametrize("keep", [0, 1, 10, 200, 0.5, 0.99])
def test_a_graph_cut_off_anywhere_is_refused(tmp_path: Path, keep: float) -> None:
    whole = linear()._graph()
    path = tmp_path / "scorer.onnx"
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ModelRejected, match=r"scorer\.onnx"):
        OnnxScorer(path, WIDTH)


def test_a_graph_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="NoSuchFile"):
        OnnxScorer(tmp_path / "scorer.onnx", WIDTH)


def test_a_session_opens_without_a_word_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    session, provider = open_session(linear()._graph())
    assert session.get_providers()[0] == provider
    assert (provider == CUDA) == (not why_no_cuda())
    assert capfd.readouterr() == ("", "")


def test_the_device_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    devices._say.cache_clear()
    with caplog.at_level(logging.INFO, logger="models.devices"):
        providers = [open_session(linear()._graph())[1] for _ in range(3)]
    said = [record.message for record in caplog.records if record.message.startswith("scoring on")]
    assert len(said) == 1
    assert said[0].startswith("scoring on CUDA" if providers[0] == CUDA else "scoring on CPU: ")


def test_a_required_gpu_is_there_or_the_scorer_does_not_start() -> None:
    if why_no_cuda():
        with pytest.raises(Unavailable, match="a GPU was required"):
            OnnxScorer(linear()._graph(), WIDTH, gpu="require")
    else:
        assert OnnxScorer(linear()._graph(), WIDTH, gpu="require").provider == CUDA
