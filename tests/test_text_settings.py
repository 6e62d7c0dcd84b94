"""Settings of tuning: documented whole, read from TOML, refused with what was meant."""

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from models.text_settings import TuneSettings, document, read_settings
from recsys.errors import Misuse
from streams.cli.tune_text import tune_text


def test_what_is_printed_is_a_file_that_says_the_defaults() -> None:
    printed = CliRunner().invoke(tune_text, ["--print-settings"], catch_exceptions=False).output
    assert list(tomllib.loads(printed)) == list(TuneSettings.__struct_fields__)
    comments = [line for line in printed.splitlines() if line.startswith("# ")][1:]
    assert len(comments) == len(TuneSettings.__struct_fields__)
    assert all(": " in line for line in comments), "a reason each"


def test_a_file_is_read_and_changed(tmp_path: Path) -> None:
    file = tmp_path / "tune.toml"
    file.write_text(document(TuneSettings(train="lora", minutes=3)))
    assert read_settings(file, ("rank=4", "checkpoint_activations=true")) == TuneSettings(
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
        ("batch = ", "not TOML"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_can(tmp_path: Path, written: str, said: str) -> None:
    file = tmp_path / "tune.toml"
    file.write_text(written)
    with pytest.raises(Misuse) as refused:
        read_settings(file)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
