"""The search finds settings within its budget, goes on where it was killed, and is judged by what it has not seen."""

from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import optuna
import pytest
import torch
from click.testing import CliRunner
from past_helpers import T, draw_past
from shop_helpers import unit_rows
from test_fitting import drawn as drawn_lists

from models import network_training
from models.fitting import Descent
from models.history import History
from models.item_vectors import TextSide
from models.list_worth import mean_ndcg, ndcgs
from models.scorer import Network
from models.settings_file import describe, read_settings
from models.train_settings import TrainSettings
from models.tune_training import JOURNAL, SPACE, Found, _open, gain_95, search, turn
from recsys.errors import Misuse
from recsys.metrics import interval, resample_means
from streams.cli.tune_training import tune_training

BASE = TrainSettings(cuts=4, per_cut=40, epochs=2, batch=16, warm_up_days=28, validate_every=2)


@pytest.fixture(scope="module")
def history() -> History:
    torch.set_num_threads(1)
    return draw_past(0, users=40, items=60).before(T)


def searched(history: History, folder: Path, trials: int, log: object = lambda name, at, value: None) -> Found:
    step = lambda what, done, of: None  # noqa: E731
    return search(history, unit_rows(60), BASE, folder, 10, trials, step, log)  # type: ignore[arg-type]


def optuna_trials(journal: Path) -> list[optuna.trial.FrozenTrial]:
    return _open(journal, 0).trials


def test_a_search_begins_with_what_is_there_and_the_best_is_no_worse(history: History, tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    found = searched(history, tmp_path, 6, lambda name, at, value: told.append((name, at)))
    assert found.trials == 6
    assert found.best >= found.default > 0
    assert found.gain_95[0] <= found.unseen_best - found.unseen_default <= found.gain_95[1]
    assert told[0] == ("search/ndcg_at_10", 1)
    assert len(told) == 6 - found.pruned
    kept = tmp_path / "best.toml"
    kept.write_text(describe(found.settings, "train"))
    assert read_settings(TrainSettings, "train", kept) == found.settings
    assert msgspec.json.decode(msgspec.json.encode(found), type=Found) == found


def test_a_killed_search_goes_on_with_its_journal(history: History, tmp_path: Path) -> None:
    searched(history, tmp_path, 2)
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code": 4, "work')  # what a kill leaves
    assert searched(history, tmp_path, 2).trials == 4
    tried = [trial.params for trial in optuna_trials(tmp_path / JOURNAL)]
    assert len({str(params) for params in tried}) == 4, "nothing is tried twice"
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    assert all(isinstance(msgspec.json.decode(line), dict) for line in lines), "a journal of JSON, nothing pickled"


def test_what_goes_on_can_be_killed_and_gone_on_with_again(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--resume last` names the run that went on, not the one that it went on with."""
    found: list[bytes] = []

    def search(_history: History, _vectors: object, _base: TrainSettings, folder: Path, *rest: object) -> Found:
        journal = folder / JOURNAL
        found.append(journal.read_bytes() if journal.exists() else b"")
        journal.write_bytes(found[-1] + b"{}\n")
        raise KeyboardInterrupt

    monkeypatch.setattr("models.tune_training.search", search)
    monkeypatch.setattr("models.history.read_history", lambda source: history)
    monkeypatch.setattr(
        "models.item_vectors.build_text", lambda *given, **more: TextSide(tmp_path, None, unit_rows(60), None)
    )
    for resumed in ([], ["--resume", "last"], ["--resume", "last"]):
        with pytest.raises((KeyboardInterrupt, click.Abort)):
            CliRunner().invoke(
                tune_training,
                ["shop", "--home", str(tmp_path), *resumed],
                standalone_mode=False,
                catch_exceptions=False,
            )
    assert found == [b"", b"{}\n", b"{}\n{}\n"]


def test_time_for_one_trial_is_for_the_default(history: History, tmp_path: Path) -> None:
    step = lambda what, done, of: None  # noqa: E731
    found = search(history, unit_rows(60), BASE, tmp_path, 1e-3, None, step, lambda name, at, value: None)
    assert (found.trials, found.settings) == (1, BASE)


def test_the_same_seed_tries_the_same(history: History, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        found.append(searched(history, tmp_path / name, 3))
    assert found[0] == found[1]


def test_ctrl_c_in_a_trial_ends_the_search(history: History, tmp_path: Path) -> None:
    def press(name: str, at: int, value: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(history, tmp_path, 3, press)
    assert searched(history, tmp_path, 1).default > 0, "the default is tried again"
    assert "RUNNING" not in {trial.state.name for trial in optuna_trials(tmp_path / JOURNAL)}


def test_ctrl_c_while_what_was_found_is_judged_judges_no_half_fit(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a default that had no time would be what the best is better than."""
    fits: list[str] = []

    def fit(*given: Any, **more: Any) -> tuple[Network, Descent]:
        fits.append("")
        network, descent = network_training.fit(*given, **more)
        return network, msgspec.structs.replace(descent, ended="stopped" if len(fits) == 3 else descent.ended)

    monkeypatch.setattr("models.tune_training.fit", fit)
    with pytest.raises(KeyboardInterrupt):
        searched(history, tmp_path, 2)
    assert len(fits) == 3, "two trials, then the default"


def test_heads_that_gain_together_prove_no_more_than_one() -> None:
    """Where nobody had anything before, both are asked the same; drawn each by itself, they would seem to be two proofs."""
    rng, count, long = np.random.default_rng(0), 200, 12
    lists = drawn_lists(0, count, long)
    new = msgspec.structs.replace(lists, seen=np.zeros_like(lists.seen))
    default, best = (rng.normal(size=(count * long, 1)).astype(np.float32).repeat(2, axis=1) for _ in range(2))
    gains = ndcgs(best, new, 0) - ndcgs(default, new, 0)
    expected = interval(resample_means(gains[:, None], np.random.default_rng(0))[:, 0])
    assert gain_95(default, best, new) == pytest.approx(expected)


def test_a_head_that_is_asked_by_few_lists_counts_half_all_the_same() -> None:
    lists = drawn_lists(0, 200, 12)
    seen = np.ones_like(lists.seen)
    seen[: 20 * 12] = False
    some = msgspec.structs.replace(lists, seen=seen)
    default, best = (np.zeros((len(seen), 2), np.float32) for _ in range(2))
    best[:, 1] = lists.bought  # of what is new it now knows everything
    low, high = gain_95(default, best, some)
    gain = mean_ndcg(best, some) - mean_ndcg(default, some)
    assert low < gain < high
    assert high - low > 0.02


def test_too_few_weeks_to_choose_and_to_judge_are_said(history: History, tmp_path: Path) -> None:
    short = history.before(int(history.ts_s[0]) + 46 * 86_400)
    with pytest.raises(Misuse, match=r"three weeks|weeks of lists"):
        searched(short, tmp_path, 1)


def test_every_setting_of_the_space_is_one_and_stays_valid() -> None:
    for name, space in SPACE.items():
        for value in space.choices or (space.low, space.high):
            turned = turn(TrainSettings(), {name: value})
            assert msgspec.json.decode(msgspec.json.encode(turned), type=TrainSettings) == turned
    assert turn(TrainSettings(), {"hidden": "8,4"}).hidden == (8, 4)
    assert np.isfinite(BASE.learning_rate)
