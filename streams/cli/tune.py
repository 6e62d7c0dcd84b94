"""`slatecast tune`: the most varied policy for what may be lost of accuracy, found on history."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console

from recsys.errors import Misuse, how_to_install
from streams.cli.learn import least_buyers, past_and_texts, show_compared, table_of
from streams.cli.options import home_options, json_option, print_json, set_option, stderr, steps
from streams.settings import Settings

if TYPE_CHECKING:
    from models.tuning import Tuned

SHOWN = 12  # of the policies tried, on a terminal; the file has all


@click.command()
@click.argument("source", metavar="FOLDER|completejourney")
@click.option("--lose", type=click.FloatRange(0, 1, max_open=True), default=0.02, show_default=True, help="Of NDCG@10 of"
              " relevance alone, at most so much.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("tuned"), show_default=True, help="Folder for"
              " policy.toml, tried.json and, with matplotlib, tuned.svg.")  # fmt: skip
@click.option("--origins", metavar="DATE,…", help="Tune at the first, judge at the others, four weeks later at least"
              "  [eight and four weeks before the end of the data]")  # fmt: skip
@click.option(
    "--sliders", is_flag=True, help="Choose nothing: try each knob by itself, others off, at the last moment."
)
@click.option("--min-buyers", type=click.IntRange(min=1), help="As of `evaluate`.")
@click.option("--seed", default=0, show_default=True, help="Of the bootstrap.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(min=1), help="Fit the scorer so often.")
@click.option("--tower", type=click.Path(path_type=Path), help="Text tower, as of `train`.")
@set_option
@home_options
@json_option
def tune(
    settings: Settings,
    source: str,
    lose: float,
    out: Path,
    origins: str | None,
    sliders: bool,
    min_buyers: int | None,
    seed: int,
    seeds: int,
    tower: Path | None,
    changes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Find the policy that makes lists least alike and loses at most so much NDCG@10, on history.

    Turns strength, exposure_penalty and coverage at a moment in the past, then judges what it chose at a later one.
    policy.toml is a settings file: `slatecast run --config tuned/policy.toml`. What is not turned is as in --config.

    \b
    Example:  slatecast tune shop/ --lose 0.02 --out tuned/
              slatecast tune shop/ --sliders --json
    """
    from models.comparing import compare
    from models.judging import Shop
    from models.origins import default_origins, parse_origins
    from models.ours import Scorers
    from models.plots import plot_tuned
    from models.settings_file import read_settings
    from models.train_settings import TrainSettings
    from models.tuning import as_toml
    from models.tuning import sliders as single
    from models.tuning import tune as search

    chosen = read_settings(TrainSettings, "train", None, changes)
    asked = parse_origins(origins) if origins else None
    if asked and len(asked) < 2 and not sliders:
        raise Misuse(f"--origins {origins}: name two or more moments, to tune at the first and judge at the others")
    least, policy = min_buyers or least_buyers(source), settings.policy
    if not sliders:
        out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    with steps() as step:
        history, vectors = past_and_texts(settings, source, least, chosen, tower, step)
        asked = asked or default_origins(history)[1:]
        shop = Shop(history, vectors if chosen.dim else None)
        scorers = Scorers(history, vectors, policy, chosen, step, seeds)
        if sliders:
            each, task = single(policy), policy.repeats
            found = compare(scorers, each, asked[-1:], task, shop, source, least, seed, False, step)
        else:
            result = search(scorers, policy, asked[0], asked[1:], lose, shop, source, least, seed, step)
    if sliders:
        print_json(found) if as_json else show_compared(found)
        return
    about = f"slatecast tune, {source}: {result.chosen} loses at most {lose:g} at {result.tuned.days[0]}"
    (out / "policy.toml").write_text(as_toml(result.policy, about))
    (out / "tried.json").write_bytes(msgspec.json.format(msgspec.json.encode(result.tried)))
    try:
        plot_tuned(result, out)
    except ImportError:
        stderr.print(f"no plot: {how_to_install('plots')}", markup=False)
    if as_json:
        print_json(result)
    else:
        _show(result, out)


def _show(result: "Tuned", out: Path) -> None:
    """The best of what was tried, then what the choice is worth later."""
    console = Console(highlight=False)
    allowed = sum(one.within for one in result.tried)
    console.print(
        f"tuned at {result.tuned.days[0]}: {len(result.tried)} policies, {allowed} lose at most {result.lose:g}; the "
        f"best of them by"
    )
    console.print(f"  {result.objective}")
    table = table_of("ratio", "ILD", "pair", "overlap", "gain")
    for one in sorted(result.tried, key=lambda one: (not one.within, -one.gain))[:SHOWN]:
        cells = (f"{one.ratio:.3f}", f"{one.category_distance:.3f}", f"{one.closest:.3f}", f"{one.overlap:.4f}")
        table.add_row(one.name, *cells, f"{one.gain:.2f}" if one.within else "–")
    console.print(table)
    console.print("judged where nothing was tuned:")
    show_compared(result.judged)
    console.print(f"{out / 'policy.toml'}: {result.chosen}")
