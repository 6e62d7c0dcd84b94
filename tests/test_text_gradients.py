"""Piece by piece, under attack and as an average: gradients and weights are what their definitions say."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import torch
from tune_helpers import SHORT, coloured_past, make_base

from models.text_adversary import Adversary, push
from models.text_averaging import Average
from models.text_batches import padded_size
from models.text_pairs import gather
from models.text_processes import fill
from models.text_settings import Aim
from models.text_tuning import Run, tune
from recsys.errors import Misuse

pytestmark = pytest.mark.filterwarnings("ignore")
replace = msgspec.structs.replace


def quiet(what: str, done: int, of: int) -> None:
    """Nobody is told."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "bert", "bert")


def begin(base: Path, out: Path, **changes: Any) -> Run:
    settings = replace(SHORT, **{"hold_out": 0.0, **changes})
    bought = gather(coloured_past(), 0)
    return Run(base, out, bought.texts, bought if settings.loss == "purchases" else None, settings, torch.device("cpu"))


def gradients(run: Run, live: int | None) -> tuple[float, dict[str, torch.Tensor]]:
    run.objective.train()
    run.optimiser.zero_grad()
    run._gradients.live = live  # noqa: SLF001
    loss = run._gradients.add(run.train[0], 7, 0.5, last=True)  # noqa: SLF001
    return loss, {name: p.grad.clone() for name, p in run.weights.items() if p.grad is not None}


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
@pytest.mark.parametrize("loss", get_args(Aim))
def test_a_batch_piece_by_piece_has_the_gradients_of_the_batch_at_once_dropout_and_all(
    base: Path, tmp_path: Path, loss: Aim, adversarial: float
) -> None:
    taught = {"teacher": str(base)} if loss == "teacher" else {}
    run = begin(base, tmp_path / "out", loss=loss, **taught, adversarial=adversarial, dropout=0.3, token_budget=40)
    rows = run.train[0].rows
    assert padded_size(rows, run.objective.calls(rows)) > 40, "else it is one piece"
    (at_once, whole), (apart, pieces) = gradients(run, None), gradients(run, 40)
    assert apart == pytest.approx(at_once, rel=1e-5)
    assert whole.keys() == pieces.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, atol=2e-5, rtol=1e-3)


def test_a_push_is_along_the_gradient_and_a_share_of_the_texts_own_length() -> None:
    embedded = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[1.0, 0.0], [9.0, 9.0]]])
    gradient = torch.tensor([[[0.0, 6.0], [8.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]])  # the last is padding
    by_hand = torch.tensor([[[0.0, 0.6 * 0.5], [0.8 * 0.5, 0.0]], [[0.0, 0.1], [0.0, 0.0]]])  # .1 of 5, .1 of 1
    torch.testing.assert_close(push(embedded, gradient, 0.1), by_hand)


def test_a_push_that_is_no_number_is_none() -> None:
    embedded = torch.ones(2, 1, 2)
    gradient = torch.tensor([[[torch.inf, 1.0]], [[0.0, 0.0]]])
    assert torch.equal(push(embedded, gradient, 0.1), torch.zeros(2, 1, 2))
    assert torch.equal(push(embedded, None, 0.1), torch.zeros(2, 1, 2))


def test_the_attack_is_the_gradient_of_both_losses_and_leaves_no_trace() -> None:
    """loss = 3 |w e| for a table of one row: e = 2, pushed by .5 · 2 along +1 to 3; gradients of w add up: 3·2 + 3·3."""
    table = torch.nn.Embedding(1, 1)
    torch.nn.init.constant_(table.weight, 2.0)
    adversary, weight = Adversary(table, 0.5), torch.ones(1, requires_grad=True)
    ids = torch.zeros(1, 1, dtype=torch.int64)

    def loss() -> torch.Tensor:
        found: torch.Tensor = (3 * weight * table(ids)).abs().sum()
        return found

    with adversary.listening():
        loss().backward()
    assert weight.grad is not None
    assert weight.grad.item() == 6
    with adversary.pushing():
        loss().backward()
    assert weight.grad.item() == 6 + 9
    assert loss().item() == 6


def test_an_attack_makes_the_loss_larger(base: Path, tmp_path: Path) -> None:
    run = begin(base, tmp_path / "out", adversarial=0.2, dropout=0.0)
    adversary, batch = run.objective.adversary, run.train[0]
    assert adversary is not None
    run.objective.train()
    with adversary.listening():
        plain = run.objective(run.objective.whole(batch))
        plain.backward()
    with adversary.pushing():
        attacked = run.objective(run.objective.whole(batch))
    assert float(attacked) > float(plain)


@pytest.mark.parametrize("train", ["lora", "head"])
def test_an_attack_teaches_also_where_the_embeddings_stand_still(base: Path, tmp_path: Path, train: str) -> None:
    runs = [begin(base, tmp_path / str(size), adversarial=size, dropout=0.0, train=train) for size in (0.0, 0.2)]
    for run in runs:
        run._one_step()  # noqa: SLF001
    assert any(not torch.equal(runs[0].weights[name], runs[1].weights[name]) for name in runs[0].weights)


def test_a_running_average_is_what_a_loop_says_and_gives_the_weights_back() -> None:
    weights = {"a": torch.tensor([1.0, 2.0])}
    average, by_hand = Average(weights, 0.5), torch.tensor([1.0, 2.0])
    for step in range(20):
        weights["a"] += 1
        average.follow(step)
        decay = min(0.5, (1 + step) / (10 + step))
        by_hand = decay * by_hand + (1 - decay) * weights["a"]
    torch.testing.assert_close(average.values["a"], by_hand)
    held = weights["a"].clone()
    with average.shown():
        torch.testing.assert_close(weights["a"], by_hand)
    assert torch.equal(weights["a"], held)


def test_what_is_validated_and_kept_is_the_average(base: Path, tmp_path: Path) -> None:
    run = begin(base, tmp_path / "out", hold_out=0.2, average=0.9, dropout=0.0)
    for _ in range(3):
        run._one_step()  # noqa: SLF001
    assert run.average is not None
    newest = {name: value.detach().clone() for name, value in run.weights.items()}
    run._validate()  # noqa: SLF001
    assert all(torch.equal(value, newest[name]) for name, value in run.weights.items()), "learning goes on from them"
    run._choose()  # noqa: SLF001
    assert any(not torch.equal(value, newest[name]) for name, value in run.weights.items())
    assert all(torch.equal(value, run.average.values[name]) for name, value in run.weights.items())
    assert run._held_loss() == pytest.approx(run.at.curve[-1][1], abs=1e-6)  # noqa: SLF001


@pytest.mark.parametrize("leap", [0.001, 1.0])
def test_a_soup_is_kept_where_it_validates_better_than_the_best(base: Path, tmp_path: Path, leap: float) -> None:
    """Two steps aside of the base, one forth and one back by the same: their mean is the base, which is better."""
    run = begin(base, tmp_path / "out", hold_out=0.2, soup=2, train="head", learning_rate=leap)
    name = next(iter(run.weights))
    at_base = run.weights[name].detach().clone()
    aside = torch.randn(at_base.shape, generator=torch.Generator().manual_seed(0)) * leap
    for step, sign in enumerate((1, -1)):
        fill({name: run.weights[name]}, {name: at_base + sign * aside})
        run.at = replace(run.at, step=step)
        run._validate()  # noqa: SLF001
    fill({name: run.weights[name]}, {name: at_base})
    of_mean, alone = run._held_loss(), min(loss for _, loss in run.at.curve)  # noqa: SLF001
    souped = run._choose()  # noqa: SLF001
    assert souped == (2 if of_mean < alone else 1)
    assert run.at.best == pytest.approx(min(of_mean, alone), abs=1e-6)
    assert run._held_loss() == pytest.approx(run.at.best, abs=1e-6)  # noqa: SLF001


def test_a_budget_that_cannot_be_kept_is_said_before_training(base: Path, tmp_path: Path) -> None:
    told: list[int] = []
    with pytest.raises(Misuse, match=r"memory_mib = 10, and \d+ MiB are needed") as refused:
        tune(base, tmp_path / "out", coloured_past(), replace(SHORT, memory_mib=10), lambda *_: told.append(1))
    assert "\n" not in str(refused.value)
    assert not told
    assert not (tmp_path / "out").exists()


MEASURED = """
import json, os, sys
from pathlib import Path
import msgspec, torch, transformers
from models.text_settings import TuneSettings
from models.text_tuning import Run
settings = msgspec.json.decode(sys.argv[3], type=TuneSettings)
texts = [f"{number} " + "a lamp of brass and glass for the table " * 12 for number in range(400)]
def peak(memory_mib):  # in a process of its own, so that its peak is its own
    if os.fork() == 0:
        changed = msgspec.structs.replace(settings, memory_mib=memory_mib)
        run = Run(Path(sys.argv[1]), Path(sys.argv[2]) / str(memory_mib), texts, None, changed, torch.device("cpu"))
        tuned = run.go(lambda *_: None)
        (Path(sys.argv[2]) / "told").write_text(json.dumps([tuned.rss_mib, tuned.live_tokens]))
        os._exit(0)
    assert os.wait()[1] == 0
    return json.loads((Path(sys.argv[2]) / "told").read_text())
free = peak(0)
budget = int(free[0] - 100)
print(json.dumps([free, budget, peak(budget)]))
"""


def test_a_budget_is_kept_where_a_run_without_one_takes_more(base: Path, tmp_path: Path) -> None:
    settings = replace(SHORT, loss="views", batch=96, steps=1, hold_out=0.0, max_tokens=128, token_budget=8192)
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, str(base), str(tmp_path), msgspec.json.encode(settings)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    (free_mib, _), budget_mib, (kept_mib, live_tokens) = json.loads(done.stdout.splitlines()[-1])
    assert kept_mib <= budget_mib < free_mib, done.stdout
    assert live_tokens < 2 * 96 * 128
