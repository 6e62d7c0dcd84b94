"""A text tower is tuned in every way that is offered, ends where an uninterrupted run does, and is exported as it is."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load as read_tensors
from safetensors.torch import load_file
from tune_helpers import SHAPES, SHORT, coloured_past, make_base

from models import text_export, text_resume, text_tuning
from models.export import INSIDE, source_digest
from models.history import History, only_items
from models.text_adapters import Learner, last_norm, layers_of, linears_of
from models.text_batches import Batches
from models.text_export import load
from models.text_objective import Objective
from models.text_optimiser import choose_precision
from models.text_pairs import gather
from models.text_settings import Loss, Optimiser, Trains
from models.text_tower import Reading, TextTower
from models.text_tuning import Run, tune
from recsys.errors import Misuse, ModelRejected
from streams.cli.tune_text import tune_text

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporter, and peft of what it finds
replace = msgspec.structs.replace


def quiet(what: str, done: int, of: int) -> None:
    """Nobody is told."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {shape: make_base(tmp_path_factory.mktemp("base") / shape, shape) for shape in SHAPES}


@pytest.fixture(scope="module")
def shop() -> History:
    return coloured_past()


def learned(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def held_loss(folder: Path, like: Run) -> float:
    """The loss of a folder's tower on what a run held out, from nothing but its files."""
    model, _ = load(folder)
    plain = replace(like.settings, train="head")
    fresh = Objective(Learner(model, plain, 1), plain, torch.float32).eval()
    assert like.held is not None
    with torch.no_grad():
        batches = [like.held[at] for at in range(min(text_tuning.VALIDATED, like.held.an_epoch))]
        return float(np.mean([float(fresh(fresh.whole(batch))) for batch in batches]))


@pytest.mark.parametrize(("shape", "loss", "train"), [*itertools.product(SHAPES, get_args(Loss), get_args(Trains))])
def test_every_shape_learns_by_every_loss_with_every_choice_of_what_learns(
    bases: dict[str, Path], shop: History, tmp_path: Path, shape: str, loss: Loss, train: Trains
) -> None:
    settings = replace(SHORT, loss=loss, train=train, layers=1, hold_out=0.0)
    tuned = tune(bases[shape], tmp_path / "out", shop, settings, quiet)
    assert (tuned.ended, tuned.steps) == ("steps", 1)
    assert (0 < tuned.trainable < tuned.parameters) or train == "all"
    assert tuned.merged == (not (tmp_path / "out" / INSIDE).exists()) == (train not in ("prefix", "bottleneck"))
    assert (tmp_path / "out" / "adapters").exists() == (train in ("lora", "adalora", "ia3"))
    base, after = load(bases[shape])[0], load(tmp_path / "out")[0]
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        was, now = (m(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state for m in (base, after))
    assert torch.isfinite(now).all()
    # An AdaLoRA begins with all ranks at nothing, and the first step moves the middle one only.
    assert not torch.equal(was, now), "one step moved what the tower says"
    names = {name for name, value in base.state_dict().items() if not torch.equal(value, after.state_dict()[name])}
    if train == "head":
        assert {name.rpartition(".")[2] for name in names} <= {"weight", "bias"}
        assert all(base.state_dict()[name].dim() == 1 for name in names)
    if train == "top":
        assert not any(".0." in name or "embed" in name or "wte" in name for name in names), names
    if train in ("prefix", "bottleneck"):
        assert not names, "the weights stay what they were"


@pytest.mark.parametrize(("shape", "train"), [("bert", "lora"), ("gpt2", "ia3"), ("llama", "adalora"), ("bert", "prefix"),
    ("gpt2", "bottleneck"), ("llama", "prefix")])  # fmt: skip
def test_the_folder_says_what_the_run_said(
    bases: dict[str, Path], shop: History, tmp_path: Path, shape: str, train: Trains
) -> None:
    settings = replace(SHORT, train=train, steps=4)
    tuned = tune(bases[shape], tmp_path / "out", shop, settings, quiet)
    like = Run(bases[shape], tmp_path / "other", *_texts(shop), settings, torch.device("cpu"))
    assert tuned.loss is not None
    assert held_loss(tmp_path / "out", like) == pytest.approx(tuned.loss, abs=1e-4)


def _texts(shop: History) -> Any:
    bought = gather(shop, 0)
    return bought.texts, bought


@pytest.mark.parametrize(("shape", "train"), [("bert", "prefix"), ("gpt2", "bottleneck"), ("llama", "prefix")])
def test_what_cannot_be_merged_is_exported_inside_the_tower(
    bases: dict[str, Path], shop: History, tmp_path: Path, shape: str, train: Trains
) -> None:
    out, tower = tmp_path / "out", tmp_path / "tower"
    tune(bases[shape], out, shop, replace(SHORT, train=train, steps=3, hold_out=0.0), quiet)
    tower.mkdir()
    digest = source_digest(out)
    text_export.main(out, tower, digest, Reading())  # which compares the graph with torch, at shapes it has not seen
    texts = ["red mug", "a", "yellow candle, scented. " * 3]
    model, tokenizer = load(out)
    with torch.no_grad():
        pooled = text_export.pooled(model, "mean")
        alone = [tokenizer(text, return_tensors="pt") for text in texts]
        expected = np.concatenate([pooled(one["input_ids"], one["attention_mask"]).numpy() for one in alone])
    np.testing.assert_allclose(TextTower(tower).encode(texts), expected, atol=1e-5)
    file = out / INSIDE
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    assert source_digest(out) != digest, "what lies inside decides what a tower says"


def test_a_part_that_does_not_fit_the_weights_is_refused(bases: dict[str, Path], shop: History, tmp_path: Path) -> None:
    tune(bases["bert"], tmp_path / "out", shop, replace(SHORT, train="bottleneck"), quiet)
    tensors = read_tensors((tmp_path / "out" / INSIDE).read_bytes())  # not mapped, since the file is written below
    for kind, held in (("bottleneck", {n: v for n, v in tensors.items() if "1" not in n}), ("other", tensors)):
        (tmp_path / "out" / INSIDE).write_bytes(text_resume.save(held, {"kind": kind}))
        with pytest.raises(ModelRejected, match=r"does not fit|neither"):
            load(tmp_path / "out")


@pytest.mark.parametrize("shape", SHAPES)
def test_what_learns_is_found_by_what_modules_do(bases: dict[str, Path], shape: str) -> None:
    model, _ = load(bases[shape])
    named = {id(module): name for name, module in model.named_modules()}
    assert (
        named[id(last_norm(model))]
        == {"bert": "encoder.layer.1.output.LayerNorm", "gpt2": "ln_f", "llama": "norm"}[shape]
    )
    assert len(layers_of(model)) == 2
    names, back = linears_of(model)
    assert len(names) == {"bert": 12, "gpt2": 8, "llama": 14}[shape]
    expected = {"bert": "output.dense", "gpt2": "mlp.c_proj", "llama": "mlp.down_proj"}[shape]
    assert len(back) == 2
    assert all(name.endswith(expected) for name in back)


def test_co_purchases_bring_texts_of_one_colour_together(bases: dict[str, Path], shop: History, tmp_path: Path) -> None:
    tuned = tune(bases["bert"], tmp_path / "out", shop, replace(SHORT, steps=60, batch=32, validate_every=20), quiet)
    assert tuned.loss is not None
    assert tuned.loss_before is not None
    assert tuned.loss < tuned.loss_before - 0.05
    assert [step for step, _ in tuned.curve][:2] == [0, 20]


@pytest.mark.parametrize("train", ["all", "adalora"])
@pytest.mark.parametrize("optimiser", get_args(Optimiser))
def test_a_run_killed_at_five_points_ends_in_the_same_bits(
    bases: dict[str, Path], shop: History, tmp_path: Path, optimiser: Optimiser, train: Trains
) -> None:
    settings = replace(SHORT, train=train, steps=24, optimiser=optimiser, validate_every=5, patience=9, save_every=2)
    tune(bases["bert"], tmp_path / "whole", shop, settings, quiet)

    def killed_at(places: set[int]) -> Callable[[str, int, int], None]:
        def step(what: str, done: int, of: int) -> None:
            if done in places:
                places.remove(done)
                raise RuntimeError("killed")

        return step

    step = killed_at({1, 4, 7, 15, 23})
    for _ in range(5):
        with pytest.raises(RuntimeError, match="killed"):
            tune(bases["bert"], tmp_path / "cut", shop, settings, step)
    assert (tmp_path / "cut.part" / "state.safetensors").exists()
    tuned = tune(bases["bert"], tmp_path / "cut", shop, settings, step)
    assert tuned.steps == 24
    whole, cut = learned(tmp_path / "whole"), learned(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert not (tmp_path / "cut.part").exists()


def test_another_run_in_the_same_place_is_refused(bases: dict[str, Path], shop: History, tmp_path: Path) -> None:
    def stop(what: str, done: int, of: int) -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        tune(bases["bert"], tmp_path / "out", shop, SHORT, stop)
    with pytest.raises(Misuse, match="a run of other settings"):
        tune(bases["bert"], tmp_path / "out", shop, replace(SHORT, seed=1), quiet)
    (tmp_path / "out.part" / "state.safetensors").write_bytes(b"torn")
    with pytest.raises(Misuse, match="delete"):
        tune(bases["bert"], tmp_path / "out", shop, SHORT, quiet)


def test_ctrl_c_keeps_the_best_so_far(bases: dict[str, Path], shop: History, tmp_path: Path) -> None:
    def stop(what: str, done: int, of: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    settings = replace(SHORT, steps=50, validate_every=2, patience=50)
    tuned = tune(bases["bert"], tmp_path / "out", shop, settings, stop)
    assert (tuned.ended, tuned.steps) == ("stopped", 7)
    assert tuned.loss == min(loss for _, loss in tuned.curve)
    like = Run(bases["bert"], tmp_path / "other", *_texts(shop), settings, torch.device("cpu"))
    assert held_loss(tmp_path / "out", like) == pytest.approx(tuned.loss, abs=1e-5)


def test_what_gets_worse_is_ended_early_and_the_base_kept(
    bases: dict[str, Path], shop: History, tmp_path: Path
) -> None:
    settings = replace(SHORT, steps=50, learning_rate=1.0, optimiser="sgd", clip=100.0, patience=2)
    tuned = tune(bases["bert"], tmp_path / "out", shop, settings, quiet)
    assert tuned.ended == "early"
    assert tuned.loss is not None
    assert tuned.loss_before is not None
    assert tuned.loss <= tuned.loss_before
    if tuned.best_step == 0:
        base = learned(bases["bert"])
        assert all(torch.equal(value, base[name]) for name, value in learned(tmp_path / "out").items())


def test_time_is_a_budget(bases: dict[str, Path], shop: History, tmp_path: Path) -> None:
    tuned = tune(bases["bert"], tmp_path / "out", shop, replace(SHORT, steps=10_000, minutes=1e-6), quiet)
    assert (tuned.ended, tuned.steps) == ("minutes", 1)


def test_a_loss_that_is_no_number_is_said_with_what_to_do(
    bases: dict[str, Path], shop: History, tmp_path: Path
) -> None:
    with pytest.raises(Misuse, match=r"lower learning_rate \(now 1e\+30\)"):
        tune(
            bases["gpt2"],
            tmp_path / "out",
            shop,
            replace(SHORT, steps=20, learning_rate=1e30, schedule="constant"),
            quiet,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("loss", get_args(Loss))
def test_one_item_and_an_empty_split_are_said(
    bases: dict[str, Path], shop: History, tmp_path: Path, loss: Loss
) -> None:
    one = only_items(shop, np.arange(len(shop.items)) == 3)
    with pytest.raises(Misuse, match="1 texts were sold"):
        tune(bases["bert"], tmp_path / "out", one, replace(SHORT, loss=loss), quiet)
    three = only_items(shop, np.isin(np.arange(len(shop.items)), (3, 7, 11)))
    if loss != "purchases":
        with pytest.raises(Misuse, match="set hold_out = 0"):
            tune(bases["bert"], tmp_path / "out", three, replace(SHORT, loss=loss, hold_out=0.1), quiet)


def test_a_text_of_ten_thousand_signs_is_cut_and_one_without_any_is_left_out(
    bases: dict[str, Path], shop: History, tmp_path: Path
) -> None:
    long = replace(shop.items[0], title="endless " * 1300)
    nothing = replace(shop.items[1], title=" ", category="")
    odd = replace(shop, items=[long, nothing, *shop.items[2:]])
    for loss in get_args(Loss):
        tuned = tune(bases["bert"], tmp_path / loss, odd, replace(SHORT, loss=loss, batch=64), quiet)
        assert tuned.steps == 1


def test_batches_come_from_their_number_alone(bases: dict[str, Path], shop: History) -> None:
    _, tokenizer = load(bases["bert"])
    texts, bought = _texts(shop)
    for loss in get_args(Loss):
        make = lambda loss=loss: Batches(  # noqa: E731
            replace(SHORT, loss=loss), tokenizer, False, texts, bought if loss == "purchases" else None, np.arange(30)
        )
        one, other = make(), make()
        order = [other[at] for at in (7, 0, 3)]
        assert [batch.rows for batch in order] == [one[at].rows for at in (7, 0, 3)]
        assert one[0].rows != one[1].rows


def test_hidden_words_are_what_was_there_and_never_a_mark(bases: dict[str, Path], shop: History) -> None:
    _, tokenizer = load(bases["bert"])
    texts, _ = _texts(shop)
    plain = Batches(replace(SHORT, loss="words"), tokenizer, True, texts, None, np.arange(30))[0]
    masked = Batches(replace(SHORT, loss="words"), tokenizer, False, texts, None, np.arange(30))[0]
    for row, target in zip(plain.rows, plain.targets, strict=True):
        assert target == [*row[1:], -1]
    for row, target, whole in zip(masked.rows, masked.targets, plain.rows, strict=True):
        assert any(one >= 0 for one in target)
        assert all(t in (-1, w) and (t >= 0 or r == w) for r, t, w in zip(row, target, whole, strict=True))


def test_sorting_by_length_and_keeping_activations_change_memory_not_gradients(
    bases: dict[str, Path], shop: History, tmp_path: Path
) -> None:
    found = []
    for at, changes in enumerate(({"token_budget": 16}, {"token_budget": 4096}, {"checkpoint_activations": True})):
        settings = replace(SHORT, dropout=0.0, **changes)
        run = Run(bases["bert"], tmp_path / str(at), *_texts(shop), settings, torch.device("cpu"))
        run.objective.train()
        run.objective(run.objective.whole(run.train[0])).backward()
        found.append({name: p.grad for name, p in run.weights.items() if p.grad is not None})
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-3)


def test_bfloat16_is_taken_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has})
        assert choose_precision("auto", torch.device("cpu")) == expected
    assert choose_precision("float16", torch.device("cpu")) == torch.float16


def test_bfloat16_learns_too(bases: dict[str, Path], shop: History, tmp_path: Path) -> None:
    tuned = tune(bases["bert"], tmp_path / "out", shop, replace(SHORT, precision="bfloat16", steps=3), quiet)
    assert tuned.precision == "bfloat16"
    assert all(value.dtype == torch.float32 for value in learned(tmp_path / "out").values())


def test_the_command_says_what_came_of_it_and_what_is_next(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.history.read_history", lambda source: coloured_past())
    options = ["shop", "--model", str(bases["bert"]), "--out", str(tmp_path / "out"), "--min-buyers", "2"]
    options += ["--set", "steps=2", "--set", "batch=8", "--set", "threads=1", "--json", "--home", str(tmp_path)]
    done = CliRunner().invoke(tune_text, options, catch_exceptions=False)
    said = json.loads(done.stdout)
    assert said["steps"] == 2
    assert said["settings"]["batch"] == 8
    with pytest.raises(Misuse, match="there already"):
        CliRunner().invoke(tune_text, options, catch_exceptions=False)
