"""What each way to compress the text tower costs and brings: the table of docs/training.md, on one shop.

    python benchmarks/compression.py FOLDER --origin 2011-08-05 > rows.md

Every tower beside the one of the untouched weights: size, speed (processor time, one thread, taking turns), how alike the
vectors are, and what a shop would feel: NDCG@10 of cold items by text alone. The gate's own limits say which may ship.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from models.compression import How, Limits, judge, make
from models.export import export_tower, find_weights
from models.history import read_history
from models.origins import parse_origins
from models.text_tower import PLAIN

VARIANTS = {
    "int8, all maps": How(int8=True, exact=0.0),
    "int8, a quarter of the maps exact": How(int8=True),
    "int8, half of the maps exact": How(int8=True, exact=0.5),
    "5 of 6 layers": How(layers=5),
    "4 of 6 layers": How(layers=4),
    "3 of 6 layers": How(layers=3),
    "a quarter of the heads out": How(heads=0.25),
    "half of the heads out": How(heads=0.5),
    "2 of 6 layers": How(layers=2),
    "5 layers, int8": How(layers=5, int8=True),
    "4 layers, int8": How(layers=4, int8=True),
    "4 layers, taught 5 minutes": How(layers=4, distil=5),
    "3 layers, taught 5 minutes": How(layers=3, distil=5),
    "2 layers, taught 5 minutes": How(layers=2, distil=5),
    "half of the heads out, taught 5 minutes": How(heads=0.5, distil=5),
    "4 layers, taught 5 minutes, int8": How(layers=4, distil=5, int8=True),
    "3 layers, taught 5 minutes, int8": How(layers=3, distil=5, int8=True),
}


def main() -> None:
    """Print a row a variant as each is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="FOLDER|completejourney")
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--origin", required=True)
    parser.add_argument("--min-buyers", type=int, default=5)
    parser.add_argument("--home", type=Path, default=Path("var"))
    parser.add_argument(
        "--only", action="append", choices=list(VARIANTS), help="a row by its name; again for more  [all]"
    )
    asked = parser.parse_args()
    history, at_s, weights = read_history(asked.source), parse_origins(asked.origin)[-1], find_weights(asked.model)
    original = export_tower(weights, asked.home / "towers")
    print("| what | MiB | times as fast | cosine | neighbours kept | cold | change | may ship |\n" + "|---" * 8 + "|")
    for name in asked.only or VARIANTS:
        how = VARIANTS[name]
        with tempfile.TemporaryDirectory() as scratch:
            made = make(weights, PLAIN, Path(scratch) / "tower", history, at_s, asked.min_buyers, how, _tell)
            if how.distil:
                # The table has no column for how near to the teacher it is on texts that were not learned from.
                print((made.folder / "weights" / "tuning.json").read_text(), file=sys.stderr)
            found = judge(made, original, history, at_s, asked.min_buyers, Limits(), _tell)
        low, high = found.change_95
        print(
            f"| {name} | {found.mib:.0f} | {found.faster:.2f} | {found.cosine:.3f} | {found.neighbours:.2f} | {found.cold:.4f} | "
            f"{found.change:+.1%} [{low:+.1%}, {high:+.1%}] | {'no' if found.refused else 'yes'} |".replace("%", " %"),
            flush=True,
        )


def _tell(what: str, done: int, of: int) -> None:
    if done == of:
        print(what, file=sys.stderr)


if __name__ == "__main__":
    main()
