"""What a training was and how it went: a folder a run, for people, for TensorBoard and for the next run to be held against.

    runs/20261126-141503-train/
      run.json        command, settings, data window, environment, how it ended, what came of it
      metrics.jsonl   a line a figure: name, step, value, seconds since the start
      events.out…     the same for TensorBoard
      curves.svg      the same as a picture, where matplotlib is installed

Nothing here trains. Written by `train`, `tune-text` and `tune-training`; read by `slatecast runs`.
"""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec.structs import replace

from models.history import History
from recsys.errors import UNREADABLE, Misuse

Ended = Literal["running", "done", "stopped", "failed"]
ABOUT, METRICS = "run.json", "metrics.jsonl"
PACKAGES = ("torch", "numpy", "numba", "onnxruntime-gpu", "onnxruntime", "transformers", "peft", "optuna")


class Window(msgspec.Struct, frozen=True):
    """Of what was learned. Times are of the first and the last event."""

    source: str
    from_ts_ms: int
    until_ts_ms: int
    events: int
    users: int
    items: int


def window_of(source: str, history: History) -> Window:
    """What a history holds. Raises IndexError for an empty one."""
    first_s, last_s = int(history.ts_s[0]), int(history.ts_s[-1])
    users = len(np.unique(history.user))
    return Window(source, first_s * 1000, last_s * 1000, len(history), users, len(history.items))


class About(msgspec.Struct, frozen=True):
    """run.json. settings: all of them, the seed among them; result: what the command found; reason: of a failure."""

    id: str
    command: str
    started_ts_ms: int
    settings: dict[str, Any]
    window: Window
    environment: dict[str, Any]
    ended: Ended = "running"
    took_s: float = 0.0
    result: dict[str, Any] = {}
    reason: str = ""


class Line(msgspec.Struct, frozen=True):
    """A line of metrics.jsonl."""

    name: str
    step: int
    value: float
    after_s: float


class Run:
    """An open run. Each figure is on disk before `log` returns, so a killed run has what it had."""

    def __init__(self, folder: Path, about: About, wandb: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter  # seconds: only who trains waits for it

        self.folder, self.about = folder, about
        self._began_s = time.monotonic()
        self._metrics = (folder / METRICS).open("ab")
        self._board = SummaryWriter(str(folder))
        self._wandb = _open_wandb(about, folder) if wandb else None
        self._write()

    def log(self, name: str, step: int, value: float) -> None:
        """One figure. names: as in `fitting the scorer/loss`."""
        line = Line(name, step, value, round(time.monotonic() - self._began_s, 3))
        self._metrics.write(msgspec.json.encode(line) + b"\n")
        self._metrics.flush()
        self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({name: value, "step": step})

    def close(self, ended: Ended, result: dict[str, Any] | None = None, reason: str = "") -> None:
        """Say how it ended, and draw it. A plot that cannot be drawn is left out."""
        from models.plots import can_plot, plot_curves

        took_s = round(time.monotonic() - self._began_s, 1)
        self.about = replace(self.about, ended=ended, took_s=took_s, result=result or {}, reason=reason)
        self._metrics.close()
        self._board.close()
        self._write()
        if can_plot():
            lines = read_metrics(self.folder)
            plot_curves({name: [(one.step, one.value) for one in of] for name, of in lines.items()}, self.folder)
        if self._wandb is not None:
            self._wandb.summary.update(self.about.result)
            self._wandb.finish(exit_code=int(ended == "failed"))

    def _write(self) -> None:
        part = self.folder / (ABOUT + ".part")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(self.about)))
        part.replace(self.folder / ABOUT)


@contextmanager
def start_run(
    home: Path, command: str, settings: msgspec.Struct, window: Window, now_ms: int, wandb: bool = False
) -> Iterator[Run]:
    """A run's folder for as long as it goes on; what ends it by an exception is named in it, and raised again.

    Who opens it closes it with its result. now_ms: when it began. wandb: also to Weights & Biases; raises Misuse where that
    is not installed.
    """
    if wandb and not _installed("wandb"):
        raise Misuse("Weights & Biases is not installed: pip install wandb, or leave --wandb out")
    stamp = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y%m%d-%H%M%S")
    number, folder = 1, home / "runs" / f"{stamp}-{command}"
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{stamp}-{command}-{number}")
    folder.mkdir(parents=True)
    about = About(folder.name, command, now_ms, msgspec.to_builtins(settings), window, environment())
    run = Run(folder, about, wandb)
    try:
        yield run
    except BaseException as error:
        if run.about.ended == "running":
            stopped = isinstance(error, KeyboardInterrupt)
            run.close("stopped" if stopped else "failed", reason="" if stopped else f"{type(error).__name__}: {error}")
        raise
    if run.about.ended == "running":
        run.close("done")


def list_runs(home: Path) -> tuple[list[About], list[str]]:
    """All runs, oldest first; and the names of folders that cannot be read: `show` says what is wrong with one."""
    found, unreadable = [], []
    for file in sorted((home / "runs").glob("*/" + ABOUT)):
        try:
            found.append(msgspec.json.decode(file.read_bytes(), type=About))
        except UNREADABLE:
            unreadable.append(file.parent.name)
    return found, unreadable


def read_run(home: Path, name: str) -> tuple[Path, About]:
    """A run by its id, by how its id begins, or as `last`. Raises Misuse naming those there are."""
    folders = sorted(path.parent for path in (home / "runs").glob("*/" + ABOUT))
    fitting = [one for one in folders if one.name == name] or [one for one in folders if one.name.startswith(name)]
    fitting = folders[-1:] if name == "last" else fitting
    if len(fitting) != 1:
        newest = ", ".join(one.name for one in folders[-5:]) or "none; `slatecast train` makes one"
        several = "several runs begin" if fitting else "no run begins"
        raise Misuse(f"{several} with {name!r}; the newest: {newest}")
    try:
        return fitting[0], msgspec.json.decode((fitting[0] / ABOUT).read_bytes(), type=About)
    except UNREADABLE as error:
        raise Misuse(f"{fitting[0] / ABOUT}: {error}; it is damaged, or was written by another version") from None


def check_same(about: About, command: str, settings: msgspec.Struct, window: Window) -> None:
    """Raise Misuse where a run is not one that may go on with these settings and data: what differs first, and how."""
    now = msgspec.json.decode(msgspec.json.encode({"command": command, "settings": settings, "window": window}))
    was = flatten({name: msgspec.to_builtins(getattr(about, name)) for name in now})
    for name, value in flatten(now).items():
        if was.get(name) != value:
            raise Misuse(f"{about.id} had {name} = {was.get(name)}, not {value}: resume with the same, or begin anew")


def read_metrics(folder: Path) -> dict[str, list[Line]]:
    """A run's figures by name, in the order of their steps; a last line that was cut off is left out."""
    found: dict[str, list[Line]] = {}
    raw = (folder / METRICS).read_bytes()
    for line in raw[: raw.rfind(b"\n") + 1].splitlines():
        one = msgspec.json.decode(line, type=Line)
        found.setdefault(one.name, []).append(one)
    return found


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings and results by dotted name, for people and for `diff`.

    >>> flatten({"a": {"b": 1, "c": [2, 3]}, "d": None})
    {'a.b': 1, 'a.c': [2, 3], 'd': None}
    """
    if not isinstance(value, dict):
        return {name: value}
    return {
        path: inner
        for key, of in value.items()
        for path, inner in flatten(of, f"{name}.{key}" if name else key).items()
    }


def environment() -> dict[str, Any]:
    """On what it runs: versions, cores, the accelerator, and the commit where the package lies in a checkout."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name, distribution=True)}
    found: dict[str, Any] = {
        "slatecast": importlib.metadata.version("slatecast"),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cores": os.cpu_count(),
        "packages": versions,
        "accelerator": _accelerator(),
    }
    root = Path(__file__).parent.parent
    if (root / ".git").exists():
        said = [_git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")]
        found["commit"] = (said[0] or "unknown") + (" and changes" if said[1] else "")
    return found


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _git(root: Path, *words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):  # no git here: then the commit is unknown
        return ""


def _installed(name: str, distribution: bool = False) -> bool:
    if not distribution:
        return importlib.util.find_spec(name) is not None
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _open_wandb(about: About, folder: Path) -> Any:
    import wandb

    # Its files lie in the run's folder, not where the command was typed.
    own = os.environ.get("WANDB_DIR", str(folder))
    return wandb.init(project="slatecast", id=about.id, config=about.settings, dir=own)
