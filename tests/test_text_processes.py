"""Several processes under torchrun: copies and shards take the same steps, save the same, and end in the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from shared_tuning import SETTINGS
from tune_helpers import coloured_past, make_base

from models.text_tuned import Tuned
from models.text_tuning import tune

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("shared")
    make_base(home / "base", "bert")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    child = str(Path(__file__).with_name("shared_tuning.py"))
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-W", "ignore", *launch, child, str(home / "base"), str(home)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return home


def learned(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def moved(home: Path, name: str) -> float:
    """How far a weight went at most, to say what is near."""
    after = learned(home / name)
    return max(float((after[key] - value).abs().max()) for key, value in learned(home / "base").items())


def test_two_processes_take_the_steps_that_one_takes_with_their_batches(home: Path, tmp_path: Path) -> None:
    # One process that accumulates the same four batches takes the same steps: the mean of gradients is one.
    tune(home / "base", tmp_path / "one", coloured_past(), msgspec.structs.replace(SETTINGS, accumulate=4), _quiet)
    one, two = learned(tmp_path / "one"), learned(home / "ddp")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=moved(home, "ddp") / 100, rtol=1e-3)


@pytest.mark.parametrize("case", ["", "-rich", "-lora"])
def test_shards_save_the_same_state_as_copies_and_end_in_the_same_weights(home: Path, case: str) -> None:
    near = moved(home, f"ddp{case}") / 100
    assert near > 1e-6
    states = [load_file(home / f"{kind}{case}.state") for kind in ("ddp", "fsdp")]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert states[1][name].shape == value.shape
        # Of each tensor's own size: an attack follows a text's gradient however small, and so its rounding.
        torch.testing.assert_close(states[1][name], value, atol=max(near, float(value.abs().max()) / 100), rtol=1e-3)
    copies, shards = learned(home / f"ddp{case}"), learned(home / f"fsdp{case}")
    for name, value in copies.items():
        torch.testing.assert_close(shards[name], value, atol=near, rtol=1e-3)
    told = [
        msgspec.json.decode((home / f"{kind}{case}" / "tuning.json").read_bytes(), type=Tuned)
        for kind in ("ddp", "fsdp")
    ]
    assert told[0].trainable == told[1].trainable > 0
    assert told[0].steps == told[1].steps == 3
    if told[0].loss is not None:
        assert told[1].loss == pytest.approx(told[0].loss, rel=1e-3)


def test_only_safetensors_and_json_are_written(home: Path) -> None:
    kinds = {path.suffix for path in (home / "fsdp").iterdir()}
    assert kinds == {".safetensors", ".json"}
    assert not list(home.glob("*.part"))


def _quiet(what: str, done: int, of: int) -> None:
    """Nobody is told."""
