"""What may be turned in `slatecast train`: one struct, its defaults chosen on moments before those that are reported.

Read by training and evaluation; unknown keys are refused.
"""

from collections.abc import Callable

import msgspec

Step = Callable[[str, int, int], None]  # (what, done, of)


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be turned. Reasons beside the numbers; chosen on an origin before the ones that are reported."""

    cuts: int = 8  # weekly; more cuts help new items (+3 to 5 % from 4–9 to 8–20), and cost their time
    per_cut: int = 1000  # lists a cut: beyond that the weights no longer move
    epochs: int = 8
    learning_rate: float = 3e-3
    weight_decay: float = 5e-2
    hidden: tuple[int, ...] = (64, 32)  # of the network beside the linear part; () for none
    dropout: float = 0.2
    batch: int = 64  # lists
    dim: int = 384  # of the whitened vectors: worth rises up to all 384 of MiniLM; 0 for lists without texts
    whiten: bool = True  # false: the tower's vectors as they are; for comparison
    warm_up_days: int = 56  # of history before the first cut: one half-life of the slow signals
    items: int = 6000  # in item models, those with most buyers: time grows with the cube
    penalty: float = 300.0  # λ of item models; 1000 is as good
    refit_days: int = 14  # item models are fitted anew for lists of past weeks this far apart
    # Of the sequence tower's tokens; 0 for none: at the tuning origin it gains nothing and takes 3 ms a list
    # (docs/experiments.md). 64 is what `bench scorer` times.
    tower_width: int = 0
    tower_layers: int = 2
    tower_epochs: int = 3
    tower_batch: int = 32  # lists
    tower_rate: float = 1e-3
    tower_dropout: float = 0.1
    seed: int = 0
