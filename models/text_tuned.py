"""What a tuning run came to: a folder of the base's shape, with a report beside its weights. Written by text_tuning.py."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from safetensors import SafetensorError

from models.registry import sync_folder
from models.text_adapters import Learner
from models.text_settings import TuneSettings
from recsys.errors import Unavailable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ABOUT = "tuning.json"


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to; also tuning.json in its folder. Losses are of the held-out slice, None without one.

    ended: by what. souped: of how many validations' weights it is the mean. trainable, parameters: weights that learned, of
    all. live_tokens: that had activations at once, None: a batch's. took_s: without loading; rss_mib: at most.
    """

    folder: str
    settings: TuneSettings
    ended: str
    steps: int
    best_step: int
    souped: int
    loss_before: float | None
    loss: float | None
    trainable: int
    parameters: int
    precision: str
    live_tokens: int | None
    took_s: float
    tokens_per_s: float
    rss_mib: float
    merged: bool
    curve: list[tuple[int, float]]


def write_folder(learner: Learner, tokenizer: "PreTrainedTokenizerBase", part: Path, out: Path, tuned: Tuned) -> None:
    """The folder, at `part` and renamed. Raises Unavailable if the disk is full."""
    shutil.rmtree(part, ignore_errors=True)  # what a killed run left
    part.mkdir(parents=True)
    try:
        learner.write(part)
        tokenizer.save_pretrained(part)
        (part / ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(tuned)))
        sync_folder(part)
        part.replace(out)
    except SafetensorError as error:  # wraps what the system said
        raise Unavailable(f"{out} cannot be written ({error}): make room; the same command then goes on") from None
