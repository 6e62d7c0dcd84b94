"""Towers made smaller: what is taken out is what was measured to matter least, and a ruined tower does not ship."""

import json
import shutil
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from past_helpers import T, past
from safetensors.numpy import save_file
from shop_helpers import unit_rows
from tune_helpers import SHAPES, SHORT, coloured_past, make_base

from models.compression import Compressed, How, Limits, _neighbours, distilling, judge, make, refuse
from models.export import make_tower, source_digest
from models.history import History
from models.item_vectors import hash_texts
from models.text_adapters import layers_of
from models.text_export import load, pooled
from models.text_int8 import product_error, quantise
from models.text_pairs import sold_texts
from models.text_pruning import attentions, drop_heads, drop_layers, keep_layers, shrink_heads
from models.text_settings import TuneSettings
from models.text_teacher import Teacher
from models.text_tower import PLAIN, TextTower, read_settings
from models.text_tuning import tune
from recsys.catalogue import item_text
from recsys.errors import Misuse, ModelRejected
from streams.cli.compress import compress

TEXTS = ["red mug", "a blue folding chair for the garden", "x", "yellow", "white chair, blue mug and much else", "mug"]
IDS = torch.tensor([[5, 6, 7, 8, 9], [6, 5, 9, 0, 0]])
MASK = (IDS > 0).long()
UNSEEN = torch.from_numpy(np.random.default_rng(3).integers(5, 200, (40, 12)))
replace = msgspec.structs.replace


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


@pytest.mark.parametrize("shape", SHAPES)
def test_silenced_heads_stay_silent_while_the_rest_learns(
    bases: dict[str, Path], shop: History, tmp_path: Path, shape: str
) -> None:
    model, tokenizer = load(bases[shape])
    attentions(model)[0].silence(1)
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "pruned")
    tune(tmp_path / "pruned", tmp_path / "out", shop, replace(SHORT, steps=3, hold_out=0.0), quiet)
    learned, _ = load(tmp_path / "out")
    assert not torch.allclose(vectors(learned), vectors(model))
    assert [one.alive() for one in attentions(learned)] == [one.alive() for one in attentions(model)]
    assert 1 not in attentions(learned)[0].alive()


# --- taught by the whole ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in which a layer matters: of random weights as small as usual each is nearly nothing."""
    folder = tmp_path_factory.mktemp("whole") / "weights"
    model, tokenizer = load(bases["bert"])
    with torch.no_grad():
        for weight in layers_of(model).parameters():
            if weight.dim() == 2:
                weight.mul_(5)
    for saved in (model, tokenizer):
        saved.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pruned(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned") / "weights"
    model, tokenizer = load(whole)
    keep_layers(model, [1])
    for saved in (model, tokenizer):
        saved.save_pretrained(folder)
    return folder


def taught(teacher: Path, **changes: Any) -> TuneSettings:
    usual = {"steps": 200, "batch": 16, "learning_rate": 1e-3, "patience": 9, "threads": 1, "precision": "float32"}
    return replace(distilling(teacher, PLAIN, 1.0), **{**usual, **changes})


def distance(teacher: Teacher, student: Path) -> float:
    """1 - mean whitened cosine on rows that no run has seen."""
    with torch.no_grad():
        rows, tower = UNSEEN.tolist(), pooled(load(student)[0], "mean")
        return float(teacher.loss(rows, tower(UNSEEN, torch.ones_like(UNSEEN))))


def test_a_taught_tower_is_nearer_to_the_whole_than_the_pruned_one_on_unseen_texts_too(
    whole: Path, pruned: Path, shop: History, tmp_path: Path
) -> None:
    settings = taught(whole)
    tuned = tune(pruned, tmp_path / "out", shop, settings, quiet)
    assert tuned.loss_before is not None
    assert tuned.loss is not None
    assert tuned.loss < 0.7 * tuned.loss_before
    teacher = Teacher(settings, *load(pruned), sold_texts(shop)[0], torch.device("cpu"))
    assert distance(teacher, whole) == pytest.approx(0, abs=1e-5), "who is the teacher is not away from it"
    assert distance(teacher, tmp_path / "out") < 0.9 * distance(teacher, pruned)


def test_the_same_seed_teaches_the_same_weights(whole: Path, pruned: Path, shop: History, tmp_path: Path) -> None:
    found = []
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        tune(pruned, tmp_path / name, shop, taught(whole, steps=4, seed=seed), quiet)
        found.append((tmp_path / name / "model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


def test_a_taught_tower_goes_through_the_gate(whole: Path, tower: Path, shop: History, tmp_path: Path) -> None:
    made = make(whole, PLAIN, tmp_path / "out", shop, T, 1, How(layers=1, heads=0.5, distil=0.5), quiet)
    found = judge(made, tower, shop, T, 1, Limits(lose=1, sure=1, faster=0), quiet)
    assert found.refused == ""
    assert [one.alive() for one in attentions(load(made.folder / "weights")[0])] == made.heads
    said = msgspec.json.decode((made.folder / "weights" / "tuning.json").read_bytes())
    assert (said["settings"]["loss"], said["settings"]["minutes"], said["steps"]) == ("teacher", 0.5, 20)
    assert said["loss"] < said["loss_before"]


def test_what_cannot_be_taught_is_said_in_one_line(bases: dict[str, Path], shop: History, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="name one of them"):
        make(bases["bert"], PLAIN, tmp_path / "out", shop, T, 1, How(int8=True, distil=1.0), quiet)
    with pytest.raises(ValueError, match="go together"):
        TuneSettings(loss="teacher")
    with pytest.raises(ValueError, match="go together"):
        TuneSettings(loss="views", teacher="all-MiniLM-L6-v2")
    other = tmp_path / "other"
    shutil.copytree(bases["bert"], other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": {"type": "Lowercase"}}))
    with pytest.raises(Misuse, match="of which it is a pruned copy"):
        tune(other, tmp_path / "out", shop, taught(bases["bert"]), quiet)
    with pytest.raises(Misuse, match="no folder"):
        tune(bases["bert"], tmp_path / "out", shop, replace(taught(bases["bert"]), teacher="nowhere"), quiet)


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


def test_vectors_of_a_tower_that_stood_there_before_are_not_taken_for_its_own(
    tower: Path, shop: History, tmp_path: Path
) -> None:
    """Somebody made a tower, deleted the folder and made another one of that name."""
    out = shutil.copytree(tower, tmp_path / "out")
    texts = [item_text(item) for item in shop.items]
    old = {"hashes": hash_texts(texts), "vectors": unit_rows(len(texts), read_settings(out).dim)}
    save_file(old, tmp_path / "out.vectors.safetensors")
    same = judge(Compressed(out, [], []), tower, shop, T, 1, Limits(faster=0), quiet)
    assert (same.change, same.neighbours, same.refused) == (0, 1, "")


@pytest.mark.parametrize("count", [2, 8, 10, 30])
def test_a_shop_of_few_items_has_neighbours_too(count: int) -> None:
    rows = unit_rows(count)
    assert _neighbours(rows, rows) == 1


def test_a_shop_in_which_nobody_asks_for_cold_items_is_said(tower: Path, shop: History) -> None:
    """Who knows five items and next buys one that is cold together with one of the five."""
    fold = np.random.default_rng(0).permutation(11)
    wanted, known = int(np.argmin(fold)), int(np.argmax(fold))  # 0 and 10 of ten folds
    five = [known, *[item for item in range(11) if item not in (wanted, known)][:4]]
    rows = [(user, item, -3.0) for user in range(4) for item in five] + [(user, wanted, 1.0) for user in range(4)]
    rows += [(4, item, -2.0) for item in range(11)]
    few = replace(past(rows, items=11), items=shop.items[:11])
    with pytest.raises(Misuse, match="nobody bought a cold item after 2011-03-14"):
        judge(Compressed(tower, [], []), tower, few, T, 1, Limits(), quiet)


@pytest.mark.parametrize("why", [KeyboardInterrupt, Misuse("nobody")], ids=str)
def test_a_tower_that_was_not_judged_is_not_left_behind(
    why: BaseException, tower: Path, shop: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge_not(*given: object) -> None:
        assert (tmp_path / "out").is_dir()
        raise why

    monkeypatch.setattr("models.history.read_history", lambda source: shop)
    monkeypatch.setattr("models.export.export_tower", lambda weights, towers: tower)
    monkeypatch.setattr("models.compression.make", lambda *given: Compressed(shutil.copytree(tower, given[2]), [], []))
    monkeypatch.setattr("models.compression.judge", judge_not)
    words = ["shop", "--model", str(tower), "--out", str(tmp_path / "out"), "--int8", "--origin", "2011-03-14"]
    with pytest.raises((KeyboardInterrupt, click.Abort, Misuse)):
        CliRunner().invoke(compress, words, standalone_mode=False, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


def test_a_ruined_tower_does_not_ship_nor_one_that_cannot_be_measured() -> None:
    assert refuse(-0.9, (-0.95, -0.8), 3.0, Limits()).startswith("cold items lose 90.0 %")
    assert "times as fast" in refuse(0.0, (-0.01, 0.01), 1.0, Limits())
    assert refuse(float("nan"), (0.0, 0.0), 2.0, Limits())


def test_nothing_to_take_out_is_said(bases: dict[str, Path], shop: History, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="name --int8"):
        make(bases["bert"], PLAIN, tmp_path / "out", shop, T, 1, How(), quiet)
