"""What each part of the scorer is worth: the table of ablations in docs/experiments.md, on one shop's history.

    python benchmarks/ablations.py FOLDER --origins 2011-09-02,2011-09-16 --seeds 1 > rows.md

Each row is trained without one part from the lists on, and judged by the protocol of `slatecast evaluate` (the whole
catalogue, the next session, relevance alone). Ratios are over the first row, paired over users (95 %).
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from models.evaluate import Evaluation, evaluate
from models.origins import parse_origins
from models.ours import Ours, Scorers
from models.train_settings import TrainSettings
from recsys.policy import Policy
from streams.cli.learn import least_buyers, past_and_texts
from streams.cli.options import steps
from streams.settings import Settings

VARIANTS: dict[str, Mapping[str, object]] = {
    "the default: no tower": {},
    "the same, another seed": {"seed": 100},
    "no text: `dim = 0`": {"dim": 0},
    "no whitening: `whiten = false`": {"whiten": False},
    "no item models: `items = 0`": {"items": 0},
    "no hidden layers: `hidden = []`": {"hidden": ()},
    "with a tower, `tower_width = 32`": {"tower_width": 32},
    "with a tower, `tower_width = 64`": {"tower_width": 64},
    "with a tower, `tower_width = 128`": {"tower_width": 128},
}
BARE = Policy(diversity="none", exposure_penalty=0)


def main() -> None:
    """Print the table when all is judged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="FOLDER|completejourney")
    parser.add_argument("--origins", required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--home", type=Path, default=Path("var"))
    parser.add_argument(
        "--only", nargs="*", default=[""], help="Variants whose names hold one of these, and the default."
    )
    asked = parser.parse_args()
    least, settings = least_buyers(asked.source), Settings(home=str(asked.home))
    first = next(iter(VARIANTS))
    ours = {}
    with steps() as step:
        for name, change in VARIANTS.items():
            if name == first or any(part in name for part in asked.only):
                chosen = replace(TrainSettings(), **change)
                history, vectors = past_and_texts(settings, asked.source, least, chosen, None, step)
                ours[name] = Ours(Scorers(history, vectors, BARE, chosen, step, asked.seeds), BARE)
        found = evaluate(history, asked.source, parse_origins(asked.origins), ours, min_buyers=least, step=step)
    show(found)


def show(found: Evaluation) -> None:
    """A row a variant: each task's NDCG@10, over the best baseline, and over the first row."""
    over = {(one.task, one.setting): one for one in found.variants}
    print("| | new | over EASE or better | over the default | all | over own frequency or better | over the default |")
    print("|---" * 7 + "|")
    rows: dict[str, list[str]] = {}
    for line in found.table:
        if line.model == "slatecast" and line.accuracy and line.ratio and line.ratio_95:
            one = over.get((line.task, line.setting))
            change = f"{one.ratio:.3f} {_ends(one.ratio_95)}" if one and one.ratio and one.ratio_95 else "1"
            cells = [f"{line.accuracy.ndcg:.4f}", f"{line.ratio:.3f} {_ends(line.ratio_95)}", change]
            rows.setdefault(line.setting, []).extend(cells)
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def _ends(of: tuple[float, float]) -> str:
    return f"[{of[0]:.3f}, {of[1]:.3f}]"


if __name__ == "__main__":
    main()
