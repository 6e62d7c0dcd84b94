"""Tuning runs of several processes, in one start: torchrun shared_tuning.py BASE HOME. Started by test_text_processes.py."""

import shutil
import sys
from pathlib import Path

import msgspec
from torch import distributed
from tune_helpers import SHORT, coloured_past

from models.text_resume import STATE
from models.text_tuning import tune

SETTINGS = msgspec.structs.replace(SHORT, steps=3, accumulate=2, dropout=0.0, hold_out=0.0, save_every=2)
# SGD, since AdamW makes a whole step of the rounding of a gradient that is nearly nothing.
RICH = msgspec.structs.replace(
    SETTINGS,
    optimiser="sgd",
    learning_rate=0.02,
    hold_out=0.2,
    validate_every=1,
    soup=2,
    average=0.5,
    adversarial=0.02,
    token_budget=48,
    accumulate=1,
)
CASES = {
    "ddp": SETTINGS,
    "fsdp": msgspec.structs.replace(SETTINGS, parallel="fsdp"),
    "ddp-rich": RICH,
    "fsdp-rich": msgspec.structs.replace(RICH, parallel="fsdp"),
    "fsdp-lora": msgspec.structs.replace(RICH, parallel="fsdp", train="lora", loss="words"),
    "ddp-lora": msgspec.structs.replace(RICH, train="lora", loss="words"),
}


class Killed(Exception):
    """In all processes at once."""


def kill(what: str, done: int, of: int) -> None:
    if done == 2:
        raise Killed


if __name__ == "__main__":
    base, home = Path(sys.argv[1]), Path(sys.argv[2])
    distributed.init_process_group("gloo")
    for name, settings in CASES.items():
        try:
            tune(base, home / name, coloured_past(), settings, kill)
        except Killed:
            distributed.barrier()
        if distributed.get_rank() == 0:
            shutil.copy(home / f"{name}.part" / STATE, home / f"{name}.state")
        tune(base, home / name, coloured_past(), settings, lambda what, done, of: None)
    distributed.destroy_process_group()
