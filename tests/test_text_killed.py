"""A tuning run is killed in the midst of a step, a validation, a save: the same command ends in the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tune_helpers import make_base


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def left(home: Path) -> dict[str, Any]:
    base = make_base(home / "base", "gpt2")
    child = Path(__file__).with_name("killed_tuning.py")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-P", "-W", "ignore", str(child), str(base), str(home)]
    done = subprocess.run(command, capture_output=True, env=environ)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_killed_at_five_places_it_ends_in_the_bytes_of_a_run_that_was_not(home: Path, left: dict[str, Any]) -> None:
    killed = {place: found for place, found in left.items() if isinstance(found, list)}
    assert [status for status, _ in killed.values()] == [-9] * 5, killed
    assert (left["whole"], left["cut"]) == (0, 0)
    for name in ("model.safetensors", "config.json"):
        assert (home / "cut" / name).read_bytes() == (home / "whole" / name).read_bytes()
    told = [json.loads((home / name / "tuning.json").read_bytes()) for name in ("whole", "cut")]
    assert told[0]["curve"] == told[1]["curve"]
    assert told[0]["souped"] == told[1]["souped"]
    assert not (home / "cut.part").exists()


def test_each_kill_fell_where_it_should(left: dict[str, Any]) -> None:
    files = {place: found[1] for place, found in left.items() if isinstance(found, list)}
    assert "cut.part/state.safetensors" in files["in a step"]
    assert files["after loading"] == files["in a step"]
    torn = files["while saving"]
    assert 0 < torn["cut.part/state.safetensors.part"] < torn["cut.part/state.safetensors"]
    assert files["while writing the folder"]["cut.part/folder/model.safetensors"] > 0


def test_what_a_saved_state_names_is_kept_and_no_more(left: dict[str, Any]) -> None:
    last = left["while writing the folder"][1]
    assert sum("best-" in name for name in last) == 2, "a soup of two"


def test_a_full_disk_is_one_line(home: Path, left: dict[str, Any]) -> None:
    said = (home / "said").read_text()
    assert left["full"] == 1, said
    assert "ake room" in said
    assert "Traceback" not in said
    assert not (home / "full").exists()
