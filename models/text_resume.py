"""A tuning run on disk: what was learned so far, so that a killed run goes on at the step of its last save, to the bit.

    OUT.part/plan.json              what is being done; another plan in the same place is refused
             state.safetensors      weights that learn, the optimiser's, the step and the rest in its header
             best-STEP.safetensors  the weights that were validated at a step, of the best steps
             folder/              the tuned folder, while it is written

Safetensors and JSON only. Each file is written beside its place and renamed. What a saved state names stays until the next
one is there. Tensors are whole on disk, however processes share them: all of them have to save, the first writes.
Called by text_tuning.py.
"""

import os
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from models.text_averaging import Tensors, mean
from models.text_processes import fill, like, whole
from recsys.errors import Misuse

STATE, PLAN = "state.safetensors", "plan.json"


class Progress(msgspec.Struct, frozen=True):
    """How far a run is. curve: (step, validation loss); took_s: of all its processes so far; ranks: AdaLoRA's.

    kept: of the best validations (loss, step), the best first. live: tokens whose activations are kept at once, None: any.
    """

    step: int = 0
    best: float | None = None  # no infinity, which JSON does not know
    best_step: int = 0
    worse: int = 0
    took_s: float = 0.0
    tokens: int = 0
    scale: float = 1.0
    curve: list[tuple[int, float]] = []
    ranks: dict[str, list[bool]] | None = None
    kept: list[tuple[float, int]] = []
    live: int | None = None


def open_run(folder: Path, plan: dict[str, str]) -> None:
    """Begin a run, or go on with it. Raises Misuse if another one is there."""
    file = folder / PLAN
    if file.is_file():
        known = msgspec.json.decode(file.read_bytes(), type=dict[str, str])
        if changed := [name for name in plan if known.get(name) != plan[name]]:
            raise Misuse(
                f"{folder} holds a run of other {', '.join(changed)}: delete it, or name another --out; "
                "the same command as before goes on with it"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write(file, msgspec.json.encode(plan))


def save_state(
    folder: Path, weights: Tensors, optimiser: torch.optim.Optimizer, more: Tensors, at: Progress, writes: bool
) -> None:
    """The whole state in one file; then what it does not name goes. more: what else has to be remembered."""
    found = {f"weight|{name}": value for name, value in weights.items()} | {f"more|{n}": v for n, v in more.items()}
    for number, held in optimiser.state_dict()["state"].items():
        found |= {f"optimiser|{number}|{name}": value for name, value in held.items()}
    found = _whole(found)
    if writes:
        _write(folder / STATE, save(found, {"progress": msgspec.json.encode(at).decode()}))
        named = {_best(folder, step) for _, step in at.kept}
        for path in folder.glob(_best(folder, "*").name):
            if path not in named:
                path.unlink()


def load_state(folder: Path, weights: Tensors, optimiser: torch.optim.Optimizer) -> tuple[Progress, Tensors]:
    """Fill in weights and optimiser; what else was remembered. A run without a state begins. Raises Misuse."""
    if not (folder / STATE).is_file():
        return Progress(), {}
    try:
        with safe_open(folder / STATE, "pt") as held:
            progress = msgspec.json.decode((held.metadata() or {})["progress"], type=Progress)
        found = load((folder / STATE).read_bytes())  # copied: a mapped file must not change below a run
    except (SafetensorError, KeyError, msgspec.DecodeError) as error:
        raise Misuse(f"{folder / STATE} cannot be read ({error}): delete {folder} to begin again") from None
    learning = [weight for group in optimiser.param_groups for weight in group["params"]]
    state: dict[int, Tensors] = {}
    more: Tensors = {}
    for key, value in found.items():
        kind, _, name = key.partition("|")
        if kind == "more":
            more[name] = value
        elif kind == "optimiser":
            number, _, name = name.partition("|")
            state.setdefault(int(number), {})[name] = like(value, learning[int(number)])
    fill(weights, {name: found[f"weight|{name}"] for name in weights})
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return progress, more


def save_best(folder: Path, weights: Tensors, step: int, writes: bool) -> None:
    """Keep the weights that were validated at a step."""
    found = _whole(weights)
    if writes:
        _write(_best(folder, step), save(found))


def load_best(folder: Path, weights: Tensors, *steps: int) -> None:
    """Go back to the weights of a step, or to the mean of several."""
    fill(weights, mean([load(_best(folder, step).read_bytes()) for step in steps]))


def _best(folder: Path, step: int | str) -> Path:
    return folder / f"best-{step}.safetensors"


def _whole(tensors: Tensors) -> Tensors:
    # Sorted: processes gather in step, and a state that was loaded has its file's order, another in each process.
    return {name: whole(tensors[name]) for name in sorted(tensors)}


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
