"""Settings of tuning: documented whole, read from TOML, refused with what was meant."""

import tomllib
from pathlib import Path

import pytest
from click import Command
from click.testing import CliRunner

from models.settings_file import describe, read_settings
from models.text_settings import TuneSettings
from models.train_settings import TrainSettings
from recsys.errors import Misuse
from streams.cli.train import train
from streams.cli.tune_text import tune_text


@pytest.mark.parametrize(("command", "kind"), [(tune_text, TuneSettings), (train, TrainSettings)])
def test_what_is_printed_is_a_file_that_says_the_defaults(
    command: Command, kind: type[TuneSettings] | type[TrainSettings], tmp_path: Path
) -> None:
    printed = CliRunner().invoke(command, ["--print-settings"], catch_exceptions=False).output
    assert list(tomllib.loads(printed)) == list(kind.__struct_fields__)
    comments = [line for line in printed.splitlines() if line.startswith("# ")][1:]
    assert len(comments) == len(kind.__struct_fields__)
    assert all(": " in line for line in comments), "a reason each"
    file = tmp_path / "settings.toml"
    file.write_text(printed)
    assert read_settings(kind, "it", file) == kind()


def test_widths_are_changed_by_a_list_or_by_nothing() -> None:
    assert read_settings(TrainSettings, "train", None, ("hidden=8,4",)).hidden == (8, 4)
    assert read_settings(TrainSettings, "train", None, ("hidden=",)).hidden == ()


def test_a_share_may_be_written_without_its_nought() -> None:
    assert read_settings(TrainSettings, "train", None, ("dropout=.25",)).dropout == 0.25


def test_a_file_is_read_and_changed(tmp_path: Path) -> None:
    file = tmp_path / "tune.toml"
    file.write_text(describe(TuneSettings(train="lora", minutes=3), "tune-text"))
    assert read_settings(TuneSettings, "tune-text", file, ("rank=4", "checkpoint_activations=true")) == TuneSettings(
        train="lora", minutes=3, rank=4, checkpoint_activations=True
    )


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("learning_rte = 1", "did you mean 'learning_rate'"),
        ('train = "everything"', "--print-settings"),
        ("batch = 1", ">= 2"),
        ('prompt = "no place"', "must hold {} once"),
        ('train = "prefix"\ncheckpoint_activations = true', "turn one off"),
        ('train = "adalora"\nparallel = "fsdp"', "need whole weights"),
        ('train = "adalora"\naverage = 0.9', "soup = 1"),
        ("batch = ", "not TOML"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_can(tmp_path: Path, written: str, said: str) -> None:
    file = tmp_path / "tune.toml"
    file.write_text(written)
    with pytest.raises(Misuse) as refused:
        read_settings(TuneSettings, "tune-text", file)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
