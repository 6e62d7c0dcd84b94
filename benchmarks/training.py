"""What each technique of training the scorer brings: the rows of docs/training.md, on one shop's history.

    python benchmarks/training.py FOLDER --origin 2011-08-05 --seeds 3 --min-buyers 5 > rows.md

Lists are made once, by the code that serves; every variant is fitted on the weeks before the origin and judged on lists
of the origin, whose next sessions lie after it. Gains over the default are paired over lists (95 %, bootstrap), figures
are means over the seeds. Within the candidates and without policy: what a shop gets is for `slatecast evaluate` to say.
"""

import argparse
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from models.examples import Lists, make_lists
from models.history import only_items, read_history, sold_items
from models.item_vectors import build_text
from models.list_worth import before, judge_scores, ndcgs
from models.origins import WINDOW_S, parse_origins
from models.train_settings import TrainSettings
from models.training import Learner
from recsys.catalogue import item_text
from recsys.metrics import interval, resample_means

DEFAULT = "the default"
VARIANTS: dict[str, dict[str, object]] = {
    DEFAULT: {},
    "the default, other seeds": {"seed": 100},
    "linear: `hidden = []`": {"hidden": ()},
    "`hidden = [128, 64]`": {"hidden": (128, 64)},
    "`optimiser = sgd`, rate .1": {"optimiser": "sgd", "learning_rate": 0.1},
    "`optimiser = adafactor`, rate 1e-2": {"optimiser": "adafactor", "learning_rate": 1e-2},
    "`schedule = cosine`": {"schedule": "cosine"},
    "`schedule = linear`": {"schedule": "linear"},
    "`schedule = constant`": {"schedule": "constant"},
    "`warm_up = 0.1`": {"warm_up": 0.1},
    "`learning_rate = 1e-3`": {"learning_rate": 1e-3},
    "`batch = 32`": {"batch": 32},
    "`epochs = 4`": {"epochs": 4},
    "`epochs = 16`": {"epochs": 16},
    "`weight_decay = 0`": {"weight_decay": 0.0},
    "`dropout = 0`": {"dropout": 0.0},
    "`dropout = 0.4`": {"dropout": 0.4},
    "early stopping: `patience = 3`": {"patience": 3},
    "`epochs = 16, patience = 3`": {"epochs": 16, "patience": 3},
    "`drop_features = 0.05`": {"drop_features": 0.05},
    "`drop_features = 0.2`": {"drop_features": 0.2},
    "`adversarial = 0.3`": {"adversarial": 0.3},
    "`adversarial = 1`": {"adversarial": 1.0},
    "`average = 0.99`": {"average": 0.99},
    "`average = 0.99, schedule = constant`": {"average": 0.99, "schedule": "constant"},
    "`members = 3`": {"members": 3},
    "`beta = 0.03`": {"beta": 0.03},
    "`beta = 0.1`": {"beta": 0.1},
    "`beta = 0.3`": {"beta": 0.3},
    "`beta = 1`": {"beta": 1.0},
    "`beta = 10`": {"beta": 10.0},
    "`beta = 10, patience = 3`": {"beta": 10.0, "patience": 3},
    "`tower_width = 64`": {"tower_width": 64},
    "`tower_width = 64, tower_crop = 0.5`": {"tower_width": 64, "tower_crop": 0.5},
    "`tower_width = 64, tower_mask = 0.2`": {"tower_width": 64, "tower_mask": 0.2},
    "`tower_width = 64, adversarial = 0.3`": {"tower_width": 64, "adversarial": 0.3},
}


def main() -> None:
    """Print a row a variant as each is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="FOLDER|completejourney")
    parser.add_argument("--origin", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--min-buyers", type=int, default=5)
    parser.add_argument("--home", type=Path, default=Path("var"))
    parser.add_argument("--only", default="", help="Variants whose names hold this, and the default.")
    asked = parser.parse_args()
    learner, held = prepare(asked.source, parse_origins(asked.origin)[-1], asked.min_buyers, asked.home)
    print("| setting | all | gain | new | gain | distance | overlap | L_disp | s a fit | MiB |\n" + "|---" * 10 + "|")
    chosen = {name: change for name, change in VARIANTS.items() if asked.only in name or name == DEFAULT}
    reference: NDArray[np.float64] | None = None
    for name, change in {"before: own frequency, popularity": None, **chosen}.items():
        row, each = judge(learner, held, change, asked.seeds, reference)
        reference = each if name == DEFAULT else reference
        print(f"| {name} | {row}", flush=True)


def prepare(source: str, at_s: int, min_buyers: int, home: Path) -> tuple[Learner, Lists]:
    """A learner that has lived until the origin, and the lists it is judged on."""

    def tell(what: str, done: int, of: int) -> None:
        if done == of:
            print(what, file=sys.stderr)

    history = read_history(source)
    history = only_items(history, sold_items(history, min_buyers))
    side = build_text(home, [item_text(item) for item in history.items], progress=lambda done, of: None)
    settings = TrainSettings()
    learner = Learner(history, side.vectors, settings, tell)
    learner.live_until(at_s)
    rng = np.random.default_rng(settings.seed)
    held = make_lists(learner.world, at_s, at_s + WINDOW_S, learner.sources, learner.policy, 10_000, rng)
    return learner, held


def judge(
    learner: Learner,
    held: Lists,
    change: Mapping[str, object] | None,
    seeds: int,
    reference: NDArray[np.float64] | None,
) -> tuple[str, NDArray[np.float64]]:
    """A row of the table, and each list's NDCG by head, (2, lists), its gain over that of the reference beside it."""
    began_s, scores = time.process_time(), [before(held)]
    if change is not None:
        scores = []
        for seed in range(seeds):
            turned = {**change, "seed": seed + int(str(change.get("seed", 0)))}
            fitted = learner.fit(settings=replace(TrainSettings(), **turned))
            scores.append(fitted.score(held, learner.vectors))
    took_s = (time.process_time() - began_s) / len(scores)
    worths = [judge_scores({"": one}, held, learner.vectors, learner.world.shop.catalogue)[""] for one in scores]
    each = [np.mean([ndcgs(one, held, head) for one in scores], axis=0) for head in (0, 1)]
    cells = []
    for head in (0, 1):
        cells.append(f"{np.mean(each[head]):.4f}")
        cells.append("" if reference is None else _gain(each[head], reference[head]))
    mean = {name: float(np.mean([getattr(one, name) for one in worths])) for name in ("distance", "overlap", "l_disp")}
    cells += [f"{mean['distance']:.3f}", f"{mean['overlap']:.4f}", f"{mean['l_disp']:.3f}"]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return " | ".join([*cells, f"{took_s:.0f}", f"{memory:,.0f} |"]), each  # type: ignore[return-value]


def _gain(of: NDArray[np.float64], over: NDArray[np.float64]) -> str:
    """Relative, in percent, with its interval."""
    low, high = interval(resample_means((of - over)[:, None], np.random.default_rng(0))[:, 0])
    base = float(np.mean(over)) / 100
    return f"{float(np.mean(of - over)) / base:+.1f} % [{low / base:+.1f}, {high / base:+.1f}]"


if __name__ == "__main__":
    main()
