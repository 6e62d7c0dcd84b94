"""Towers made smaller: what is taken out is what was measured to matter least, and a ruined tower does not ship."""

from pathlib import Path

import numpy as np
import pytest
import torch
from past_helpers import T
from tune_helpers import SHAPES, coloured_past, make_base

from models.compression import Compressed, How, Limits, judge, make, refuse
from models.export import make_tower, source_digest
from models.history import History
from models.text_export import load, pooled
from models.text_int8 import product_error, quantise
from models.text_pruning import attentions, drop_heads, drop_layers, keep_layers, shrink_heads
from models.text_tower import PLAIN, TextTower, read_settings
from recsys.errors import Misuse, ModelRejected

TEXTS = ["red mug", "a blue folding chair for the garden", "x", "yellow", "white chair, blue mug and much else", "mug"]
IDS = torch.tensor([[5, 6, 7, 8, 9], [6, 5, 9, 0, 0]])
MASK = (IDS > 0).long()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {shape: make_base(tmp_path_factory.mktemp("base") / shape, shape) for shape in SHAPES}


@pytest.fixture(scope="module")
def tower(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tower") / "plain"
    make_tower(bases["bert"], out, source_digest(bases["bert"]))
    return out


@pytest.fixture(scope="module")
def shop() -> History:
    return coloured_past()


def quiet(what: str, done: int, of: int) -> None:
    """Progress that nobody watches."""


def vectors(model: object) -> torch.Tensor:
    with torch.no_grad():
        return pooled(model, "mean")(IDS, MASK)  # type: ignore[arg-type, no-any-return]


# --- layers and heads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_the_layer_that_changes_least_goes_and_the_rest_is_the_model_without_it(
    bases: dict[str, Path], shape: str
) -> None:
    model, _ = load(bases[shape])
    whole = vectors(model)

    def likeness() -> float:
        return float((vectors(model) * whole).sum(1).mean())

    alone = []
    for place in (0, 1):
        one, _ = load(bases[shape])
        keep_layers(one, [place])
        alone.append(vectors(one))
    kept = drop_layers(model, 1, likeness, quiet)
    assert model.config.num_hidden_layers == 1
    torch.testing.assert_close(vectors(model), alone[kept[0]])
    better = [float((one * whole).sum(1).mean()) for one in alone]
    assert kept == [int(np.argmax(better))]
    with pytest.raises(Misuse, match="name fewer"):
        drop_layers(model, 2, likeness, quiet)


@pytest.mark.parametrize("shape", SHAPES)
def test_silenced_heads_are_cut_out_of_the_graph_without_a_change(bases: dict[str, Path], shape: str) -> None:
    model, _ = load(bases[shape])
    whole = vectors(model)
    left = drop_heads(model, 0.5, lambda: float((vectors(model) * whole).sum(1).mean()), quiet)
    units = sum(one.units for one in attentions(model))
    assert sum(map(len, left)) == units - round(units / 2)
    assert all(left)
    silenced, weights = vectors(model), sum(p.numel() for p in model.parameters())
    assert not torch.allclose(silenced, whole)
    assert shrink_heads(model) == round(units / 2)
    torch.testing.assert_close(vectors(model), silenced, rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in model.parameters()) < weights


# --- eight bits -------------------------------------------------------------------------------------------------------


def test_eight_bits_are_near_and_a_text_is_the_same_in_company_and_each_time(tower: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        quantise(tower, tmp_path / name, TEXTS * 5)
    one, two, plain = (TextTower(folder) for folder in (tmp_path / "one", tmp_path / "two", tower))
    together = one.encode(TEXTS)
    np.testing.assert_array_equal(together, two.encode(TEXTS))
    alone = np.concatenate([one.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert (together * plain.encode(TEXTS)).sum(axis=1).mean() > 0.9
    said = read_settings(tmp_path / "one")
    assert said.precision == "int8"
    assert said.digest != read_settings(tower).digest
    with pytest.raises(ModelRejected, match="int8 already"):
        quantise(tmp_path / "one", tmp_path / "three", TEXTS)


def test_the_map_that_eight_bits_change_most_stays_exact() -> None:
    rng = np.random.default_rng(0)
    even, weight = rng.normal(size=(50, 16)).astype(np.float32), rng.normal(size=(16, 8)).astype(np.float32)
    spiked = even.copy()
    spiked[0] *= 1000  # one token so large that all others fall between two steps
    assert product_error(even, weight) < 0.001
    assert product_error(spiked, weight) > 0.1


# --- all of it, and the gate ------------------------------------------------------------------------------------------


def test_what_is_asked_is_taken_out_and_judged_beside_the_original(
    bases: dict[str, Path], tower: Path, shop: History, tmp_path: Path
) -> None:
    made = make(bases["bert"], PLAIN, tmp_path / "out", shop, T, 1, How(layers=1, heads=0.5, int8=True), quiet)
    assert load(tmp_path / "out" / "weights")[0].config.num_hidden_layers == 1 == len(made.layers)
    assert read_settings(made.folder).precision == "int8"
    found = judge(made, tower, shop, T, 1, Limits(lose=1, sure=1, faster=0), quiet)
    assert 0 < found.mib < 2 * found.mib_before  # of two tiny layers the scales are as large as the weights
    assert 0 <= found.neighbours <= 1
    assert found.change_95[0] <= found.change <= found.change_95[1]
    assert found.refused == ""
    made.remove()
    assert list(tmp_path.iterdir()) == []


def test_an_untouched_tower_is_itself(tower: Path, shop: History) -> None:
    same = judge(Compressed(tower, [], []), tower, shop, T, 1, Limits(faster=0), quiet)
    assert (same.change, same.neighbours, same.refused) == (0, 1, "")
    assert same.cosine == pytest.approx(1, abs=1e-4)


def test_a_ruined_tower_does_not_ship_nor_one_that_cannot_be_measured() -> None:
    assert refuse(-0.9, (-0.95, -0.8), 3.0, Limits()).startswith("cold items lose 90.0 %")
    assert "times as fast" in refuse(0.0, (-0.01, 0.01), 1.0, Limits())
    assert refuse(float("nan"), (0.0, 0.0), 2.0, Limits())


def test_nothing_to_take_out_is_said(bases: dict[str, Path], shop: History, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="name --int8"):
        make(bases["bert"], PLAIN, tmp_path / "out", shop, T, 1, How(), quiet)
