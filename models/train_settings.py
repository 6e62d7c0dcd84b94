"""What may be turned in `slatecast train`: one struct, its defaults chosen on moments before those that are reported.

How it is read from a file: settings_file.py. Read by training and evaluation.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import msgspec

from models.settings_file import setting

Step = Callable[[str, int, int], None]  # (what, done, of)
Optimiser = Literal["adamw", "sgd", "adafactor"]
Schedule = Literal["one_cycle", "cosine", "linear", "constant"]


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be turned; `slatecast train --print-settings` prints it. What each brings: docs/training.md."""

    cuts: Annotated[int, setting("weeks", "lists are made at so many weekly cuts: more help new items (+3 to 5 % from 4–9"
        " to 8–20), and cost their time", ge=2)] = 8  # fmt: skip
    per_cut: Annotated[int, setting("lists", "of each cut: beyond that the weights no longer move", ge=1)] = 1000
    warm_up_days: Annotated[float, setting("days", "of history before the first cut: one half-life of the slow signals", ge=0)] = 56  # fmt: skip
    dim: Annotated[int, setting("dimensions", "of the whitened vectors: worth rises up to all 384 of MiniLM; 0: lists without texts", ge=0)] = 384  # fmt: skip
    whiten: Annotated[bool, setting("", "false: the tower's vectors as they are; for comparison")] = True
    items: Annotated[int, setting("items", "in item models, those with most buyers: time grows with the cube; 0: none", ge=0)] = 6000  # fmt: skip
    penalty: Annotated[float, setting("λ", "of item models; 1000 is as good", gt=0)] = 300.0
    refit_days: Annotated[float, setting("days", "item models are fitted anew for lists of past weeks this far apart", gt=0)] = 14  # fmt: skip

    epochs: Annotated[int, setting("times", "every list is seen", ge=1)] = 8
    batch: Annotated[int, setting("lists", "a step", ge=1)] = 64
    hidden: Annotated[tuple[int, ...], setting("widths", "of the network beside the linear part; empty for none")] = (64, 32)  # fmt: skip
    optimiser: Annotated[Optimiser, setting("", "adafactor keeps least; sgd has a momentum of .9 and wants a rate a hundred times higher")] = "adamw"  # fmt: skip
    learning_rate: Annotated[float, setting("", "the highest; with 1e-3 eight epochs are too short", gt=0)] = 3e-3
    schedule: Annotated[Schedule, setting("", "after the warm-up, down to nothing; one_cycle: along a cosine both ways")] = "one_cycle"  # fmt: skip
    warm_up: Annotated[float, setting("share", "of the steps in which the rate rises", gt=0, lt=1)] = 0.3
    weight_decay: Annotated[float, setting("a step", "times the learning rate", ge=0)] = 5e-2
    clip: Annotated[float, setting("norm", "longest gradient", gt=0)] = 1.0
    dropout: Annotated[float, setting("share", "of hidden units left out in a step", ge=0, lt=1)] = 0.2
    patience: Annotated[int, setting("validations", "end after so many without a better NDCG@10 on the newest week, and keep the best; 0: all epochs", ge=0)] = 0  # fmt: skip
    validate_every: Annotated[int, setting("steps", "between two looks at the newest week", ge=1)] = 100

    beta: Annotated[float, setting("weight", "of dispersion in the loss, beside accuracy's alpha: what is likely and like the rest of its list costs", ge=0)] = 0.0  # fmt: skip
    alpha: Annotated[float, setting("weight", "of accuracy in the loss", gt=0)] = 1.0
    drop_features: Annotated[float, setting("share", "of a list's features hidden in a step, as if they were average", ge=0, lt=1)] = 0.0  # fmt: skip
    adversarial: Annotated[float, setting("deviations", "a second look at each list with its features moved so far where it hurts most", ge=0)] = 0.0  # fmt: skip
    average: Annotated[float, setting("share", "of the old kept a step in a running mean of the weights, which is what serves; 0: the last weights", ge=0, lt=1)] = 0.0  # fmt: skip
    members: Annotated[int, setting("networks", "of other seeds, whose mean is one scorer; each costs the fit's time again", ge=1)] = 1  # fmt: skip

    # Of the sequence tower's tokens: at the tuning origin it gains nothing and takes 3 ms a list (docs/experiments.md).
    tower_width: Annotated[int, setting("units", "of the sequence tower, divisible by 4; 0 for no tower; 64 is what `bench scorer` times", ge=0, multiple_of=4)] = 0  # fmt: skip
    tower_layers: Annotated[int, setting("layers", "of the tower", ge=1)] = 2
    tower_epochs: Annotated[int, setting("times", "every list is seen by the tower", ge=1)] = 3
    tower_batch: Annotated[int, setting("lists", "a step of the tower", ge=1)] = 32
    tower_rate: Annotated[float, setting("", "the tower's highest learning rate", gt=0)] = 1e-3
    tower_dropout: Annotated[float, setting("share", "of the tower's units left out in a step", ge=0, lt=1)] = 0.1
    tower_crop: Annotated[float, setting("share", "of the tower's trails cut to their newer part, at a random place", ge=0, le=1)] = 0.0  # fmt: skip
    tower_mask: Annotated[float, setting("share", "of a trail's items hidden in a step", ge=0, lt=1)] = 0.0

    minutes: Annotated[float, setting("minutes", "time budget: first fewer cuts, then fewer steps; 0: none", ge=0)] = (
        0.0
    )
    seed: Annotated[int, setting("", "of draws, batches and dropout", ge=0)] = 0
