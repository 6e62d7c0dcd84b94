"""A tuning run on disk: what was learned so far, so that a killed run goes on at the step of its last save, to the bit.

    OUT.part/plan.json            what is being done; another plan in the same place is refused
             state.safetensors    weights that learn, the optimiser's, the step and the rest in its header
             best.safetensors     the same weights at the best validation

Safetensors and JSON only. Each file is written beside its place and renamed. Called by text_tuning.py.
"""

import os
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from recsys.errors import Misuse

Tensors = dict[str, torch.Tensor]
STATE, BEST, PLAN = "state.safetensors", "best.safetensors", "plan.json"


class Progress(msgspec.Struct, frozen=True):
    """How far a run is. curve: (step, validation loss); took_s: of all its processes so far; ranks: AdaLoRA's."""

    step: int = 0
    best: float = float("inf")
    best_step: int = 0
    worse: int = 0
    took_s: float = 0.0
    tokens: int = 0
    scale: float = 1.0
    curve: list[tuple[int, float]] = []
    ranks: dict[str, list[bool]] | None = None


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


def save_state(folder: Path, weights: Tensors, optimiser: torch.optim.Optimizer, more: Tensors, at: Progress) -> None:
    """The whole state in one file. more: what else has to be remembered."""
    found = {f"weight|{name}": value for name, value in weights.items()} | {f"more|{n}": v for n, v in more.items()}
    for number, held in optimiser.state_dict()["state"].items():
        found |= {f"optimiser|{number}|{name}": value for name, value in held.items()}
    _write(folder / STATE, save(_plain(found), {"progress": msgspec.json.encode(at).decode()}))


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
    state: dict[int, Tensors] = {}
    more: Tensors = {}
    for key, value in found.items():
        kind, _, name = key.partition("|")
        if kind == "more":
            more[name] = value
        elif kind == "optimiser":
            number, _, name = name.partition("|")
            state.setdefault(int(number), {})[name] = value
    set_weights(weights, {name: found[f"weight|{name}"] for name in weights})
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return progress, more


def save_best(folder: Path, weights: Tensors) -> None:
    """Keep these weights as the best."""
    _write(folder / BEST, save(_plain(weights)))


def load_best(folder: Path, weights: Tensors) -> None:
    """Go back to the best weights."""
    set_weights(weights, load((folder / BEST).read_bytes()))


def set_weights(weights: Tensors, found: Tensors) -> None:
    """Values into tensors that a model holds."""
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(found[name])


def _plain(tensors: Tensors) -> Tensors:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
