"""What a tuning run came to: a folder of the base's shape, with a report beside its weights. Written by text_tuning.py."""

import resource
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

    from models.text_tuning import Run

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


def report(run: "Run", ended: str, souped: int) -> Tuned:
    """What a run came to. ended, souped: as in `Tuned`."""
    at, held = run.at, run.held is not None
    return Tuned(
        folder=str(run.out),
        settings=run.settings,
        ended=ended,
        steps=at.step,
        best_step=at.best_step if held else at.step,
        souped=souped,
        loss_before=at.curve[0][1] if at.curve else None,
        loss=at.best,
        trainable=run.trainable,
        parameters=run.parameters,
        precision=str(run.precision)[6:],
        live_tokens=at.live,
        took_s=at.took_s,
        tokens_per_s=at.tokens * run.world / max(at.took_s, 1e-9),
        rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        merged=run.learner.inside is None,
        curve=at.curve,
    )


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
