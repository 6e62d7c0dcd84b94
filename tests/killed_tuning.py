"""Tuning runs that are killed where it hurts, each in a process of its own: python killed_tuning.py BASE HOME.

Everything is imported once, then a process is forked for each run, so that five kills cost no five starts. Prints what
each kill left. Started by test_text_killed.py.
"""

import itertools
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from tune_helpers import SHORT, coloured_past

import models.text_tuned
import models.text_tuning
from models import text_resume
from models.text_objective import Objective
from models.text_tuning import tune
from recsys.errors import SlatecastError
from streams.cli import main

SETTINGS = msgspec.structs.replace(
    SHORT, steps=8, validate_every=2, save_every=2, patience=9, average=0.8, soup=2, adversarial=0.1
)


def kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(
    owner: Any, name: str, passage: int, when: Callable[..., bool] = lambda *_: True, first: Any = None
) -> None:
    """End the process at a passage of a function; `first` is what it has done by then."""
    real, passages = getattr(owner, name), itertools.count(1)

    def cut(*args: Any, **named: Any) -> Any:
        if when(*args) and next(passages) == passage:
            if first is not None:
                first(*args, **named)
            kill()
        return real(*args, **named)

    setattr(owner, name, cut)


def half_a_file(path: Path, data: bytes) -> None:
    path.with_name(f"{path.name}.part").write_bytes(data[: len(data) // 2])


def half_a_folder(part: Path) -> None:
    weights = part / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


def is_state(path: Path, _data: bytes) -> bool:
    return path.name == text_resume.STATE


PLACES: dict[str, Callable[[], None]] = {
    "in a step": lambda: kill_at(torch.nn.utils, "clip_grad_norm_", 4),
    "after loading": lambda: kill_at(models.text_tuning, "load_state", 1, first=text_resume.load_state),
    "in validation": lambda: kill_at(Objective, "whole", 3),
    "while saving": lambda: kill_at(text_resume, "_write", 2, is_state, half_a_file),
    "while writing the folder": lambda: kill_at(models.text_tuned, "sync_folder", 1, first=half_a_folder),
}


def in_process(work: Callable[[], object]) -> int:
    """A signal's number, less than nothing, or an exit status."""
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        try:
            work()
        except SlatecastError as error:
            sys.stderr.write(f"{error}\n")
            os._exit(error.exit_code)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(base: Path, out: Path, before: Callable[[], None] = lambda: None) -> int:
    def work() -> None:
        before()
        tune(base, out, coloured_past(), SETTINGS, lambda what, done, of: None)

    return in_process(work)


def on_a_full_disk(base: Path, out: Path, said: Path) -> int:
    """By a limit on the size of files, which the system enforces as it does a full disk; through the command's own end."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), 2)
        main.cli.main = lambda **_: tune(base, out, coloured_past(), SETTINGS, lambda *_: None)  # type: ignore[method-assign,assignment]
        try:
            main.main()
        except SystemExit as ended:
            os._exit(int(str(ended.code)))

    return in_process(work)


if __name__ == "__main__":
    base, home = Path(sys.argv[1]), Path(sys.argv[2])
    left: dict[str, Any] = {"whole": run(base, home / "whole")}
    for place, before in PLACES.items():
        status = run(base, home / "cut", before)
        files = {str(path.relative_to(home)): path.stat().st_size for path in home.rglob("cut.part/**/*") if path.is_file()}  # fmt: skip
        left[place] = [status, files]
    left["cut"] = run(base, home / "cut")
    left["full"] = on_a_full_disk(base, home / "full", home / "said")
    sys.stdout.write(json.dumps(left))
