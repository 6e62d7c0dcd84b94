"""`slatecast compress`: a language model and a shop in, a smaller and faster text tower out, if it loses little."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from recsys.errors import Misuse, ModelRejected
from streams.cli.options import home_options, json_option, print_json, stderr, steps
from streams.settings import Settings

if TYPE_CHECKING:
    from models.text_tower import Pooling


@click.command()
@click.argument("source", metavar="FOLDER|completejourney")
@click.option("--model", default="all-MiniLM-L6-v2", show_default=True, help="As in `slatecast export`.")
@click.option("--out", required=True, type=click.Path(path_type=Path, resolve_path=True), help="Tower folder to make.")
@click.option(
    "--pooling", type=click.Choice(["mean", "last"]), default="mean", show_default=True, help="As in `export`."
)
@click.option("--prompt", default="{}", show_default=True, help="As in `export`.")
@click.option("--int8", is_flag=True, help="Linear maps in eight bits, their scales fixed on the shop's texts.")
@click.option("--exact", type=click.FloatRange(0, 1, max_open=True), default=0.25, show_default=True, help="With --int8: this"
              " share of the maps stays float32, those that eight bits change most.")  # fmt: skip
@click.option("--layers", type=click.IntRange(min=1), help="Leave so many layers: those without which it changes most.")
@click.option("--heads", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="Take out this share of heads.")
@click.option("--distil", type=click.FloatRange(0), default=0.0, metavar="MINUTES", help="Teach what --layers and --heads leave"
              " to read the shop's texts as the whole did  [0: do not]")  # fmt: skip
@click.option("--lose", type=click.FloatRange(0, 1), default=0.02, show_default=True, help="Of the NDCG@10 of cold items,"
              " at most so much.")  # fmt: skip
@click.option("--sure", type=click.FloatRange(0, 1), default=0.10, show_default=True, help="The same at the unlucky end of"
              " the 95 % interval.")  # fmt: skip
@click.option("--faster", type=click.FloatRange(0), default=1.2, show_default=True, help="At least so many times.")
@click.option("--origin", help="The moment to judge at; calibration reads what is in the shop by then  [four weeks before"
              " the end]")  # fmt: skip
@click.option("--min-buyers", type=click.IntRange(min=1), help="As of `evaluate`.")
@home_options
@json_option
def compress(
    settings: Settings,
    source: str,
    model: str,
    out: Path,
    pooling: "Pooling",
    prompt: str,
    int8: bool,
    exact: float,
    layers: int | None,
    heads: float,
    distil: float,
    lose: float,
    sure: float,
    faster: float,
    origin: str | None,
    min_buyers: int | None,
    as_json: bool,
) -> None:
    """Make a smaller, faster text tower for CPUs, and refuse it where cold items would lose by it.

    SOURCE is the shop on whose texts it is calibrated and on whose purchases it is judged. A refused tower is not left
    behind. What was pruned is beside the tower, in OUT/weights, for `tune-text` to heal.

    \b
    Example:  slatecast compress shop/ --out towers/int8 --int8
              slatecast compress shop/ --out towers/small --layers 4 --distil 5
    """
    from models.compression import How, Limits, judge, make
    from models.export import export_tower, find_weights, make_tower, source_digest
    from models.history import read_history
    from models.origins import default_origins, parse_day
    from models.text_tower import PLAIN, Reading
    from streams.cli.learn import least_buyers

    if out.exists():
        raise Misuse(f"--out {out} is there already; name a new folder")
    try:
        reading = Reading(pooling, prompt)
    except ValueError as error:
        raise Misuse(f"--prompt: {error}") from None
    weights, least = find_weights(model), min_buyers or least_buyers(source)
    how = How(layers=layers, heads=heads, distil=distil, int8=int8, exact=exact)
    towers = Path(settings.home) / "towers"
    with stderr.status(f"reading {source}"):
        history = read_history(source)
        at_s = parse_day(origin, "--origin") if origin else default_origins(history)[-1]
    with steps() as step:
        if reading == PLAIN:
            original = export_tower(weights, towers)
        else:
            digest = source_digest(weights, reading)
            original = towers / digest[:16]
            if not original.exists():
                make_tower(weights, original, digest, reading)
        made = make(weights, reading, out, history, at_s, least, how, step)
        try:
            found = judge(made, original, history, at_s, least, Limits(lose, sure, faster), step)
        except BaseException:  # Ctrl-C too: what was not judged does not ship
            made.remove()
            raise
    if as_json:
        print_json({**msgspec.structs.asdict(found), "folder": None if found.refused else str(out)})
    else:
        low, high = found.change_95
        stderr.print(
            f"{found.mib:.0f} MiB, was {found.mib_before:.0f}; {found.faster:.2f} times as fast; cold items {found.change:+.1%} "
            f"(95 %: {low:+.1%} to {high:+.1%}) of NDCG@10 {found.cold_before:.4f}; {found.neighbours:.0%} of neighbours kept"
        )
    if found.refused:
        made.remove()
        raise ModelRejected(f"not shipped: {found.refused}; take out less, or allow more by --lose, --sure, --faster")
    stderr.print(f"now: slatecast train {source} --tower {out}")
