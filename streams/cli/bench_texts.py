"""`slatecast bench texts` and `bench tune-text`: what a reading of texts is worth, with intervals. No broker, no clock."""

from pathlib import Path
from typing import Literal

import click
from rich.console import Console
from rich.table import Table

from streams.cli.options import home_options, json_option, print_json, stderr, steps
from streams.settings import Settings


@click.command()
@click.argument("source", metavar="FOLDER|completejourney")
@click.option("--tower", "towers", multiple=True, metavar="NAME|FOLDER", help="Compare this one: of `slatecast export`,"
              " a Hugging Face folder, or a model in a package; again for more  [all-MiniLM-L6-v2]")  # fmt: skip
@click.option("--origin", help="Moment to judge at  [as the last one of `slatecast evaluate`]")
@click.option("--min-buyers", type=click.IntRange(min=1), help="As in `slatecast evaluate`  [5; completejourney 30]")
@click.option("--text", type=click.Choice(["title", "item"]), default="item", show_default=True, help="What a tower reads of"
              " an item: its title, or what rankers read.")  # fmt: skip
@click.option("--dim", default=384, show_default=True, type=click.IntRange(1), help="Whiten to so many dimensions.")
@click.option("--seed", default=0, show_default=True, help="Of what is cold when, and of the bootstrap.")
@home_options
@json_option
def texts(
    settings: Settings,
    source: str,
    towers: tuple[str, ...],
    origin: str | None,
    min_buyers: int | None,
    text: Literal["title", "item"],
    dim: int,
    seed: int,
    as_json: bool,
) -> None:
    """Text alone: towers raw and whitened, words, both; for items known and cold, against random order.

    No broker. A user is the mean of the last 20 items; NDCG@10 by what was bought next, with 95 % intervals over users.
    Cold items are ranked among themselves, a tenth of the catalogue at a time.

    \b
    Example:  slatecast bench texts shop/ --origin 2011-08-19 --text title
              slatecast bench texts completejourney --tower all-MiniLM-L6-v2 --tower towers/smollm --json
    """
    from models.export import DEFAULT_MODEL, find_weights
    from models.origins import parse_day
    from streams.bench.text_towers import measure
    from streams.cli.learn import least_buyers

    least = min_buyers or least_buyers(source)
    at_s = parse_day(origin, "--origin") if origin else None
    folders = {Path(name).name: find_weights(name) for name in towers or (DEFAULT_MODEL,)}
    with stderr.status("beginning") as status:
        found = measure(source, Path(settings.home), folders, at_s, least, text, dim, seed, status.update)
    if as_json:
        print_json(found)
        return
    rows = Table(box=None, pad_edge=False)
    for name in ("", *(f"{name}, {users} users" for name, users in found.users.items()), "cold / random"):
        rows.add_column(name, no_wrap=True)
    for line in found.table:
        figures = (f"{of.ndcg:.4f} {_ends(of.ndcg_95, 4)}" for of in (line.new, line.all, line.cold, line.cold_new))
        rows.add_row(line.side, *figures, f"{line.cold.times_random:.1f} {_ends(line.cold.times_random_95, 1)}")
    console = Console(highlight=False, width=160)
    console.print(f"{found.at}: {found.items} items; NDCG@10, 95 %", rows)


@click.command(name="tune-text")
@click.argument("source", metavar="FOLDER|completejourney")
@click.option("--model", default="all-MiniLM-L6-v2", show_default=True, help="Base, as in `slatecast tune-text`.")
@click.option("--settings", "file", type=click.Path(path_type=Path), help="Of the tuning, TOML.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change one setting; again for more.")
@click.option("--origin", help="Moment to tune and judge at  [as the last one of `slatecast evaluate`]")
@click.option("--min-buyers", type=click.IntRange(min=1), help="As in `slatecast evaluate`  [5; completejourney 30]")
@click.option("--seed", default=0, show_default=True, help="Of what is cold, and of the bootstrap.")
@home_options
@json_option
def tune_text(
    settings: Settings,
    source: str,
    model: str,
    file: Path | None,
    changes: tuple[str, ...],
    origin: str | None,
    min_buyers: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """What tuning brings to items that it has not seen: whitened towers before and after, and words.

    No broker. A tenth of the catalogue is cold: nothing of it is tuned on. At most ten minutes and an export.

    \b
    Example:  slatecast bench tune-text shop/ --origin 2011-08-05 --set train=lora --json
    """
    from models.export import find_weights
    from models.origins import parse_day
    from models.settings_file import read_settings
    from models.text_settings import TuneSettings
    from streams.bench.tuned_texts import measure
    from streams.cli.learn import least_buyers

    chosen = read_settings(TuneSettings, "tune-text", file, changes)
    at_s = parse_day(origin, "--origin") if origin else None
    home, least = Path(settings.home), min_buyers or least_buyers(source)
    home.mkdir(parents=True, exist_ok=True)
    with steps() as step:
        found = measure(source, home, find_weights(model), chosen, at_s, least, seed, stderr.print, step)
    if as_json:
        print_json(found)
        return
    rows = Table("", "users", "words", "base", "tuned", "gain, 95 %", box=None, pad_edge=False)
    for name, of in (("new", found.new), ("all", found.all), ("cold", found.cold), ("cold, new", found.cold_new)):
        gain = f"{of.gain:+.4f} {_ends(of.gain_95, 4)}"
        rows.add_row(name, str(of.users), *(f"{ndcg:.4f}" for ndcg in (of.words, of.base, of.tuned)), gain)
    console = Console(highlight=False, width=160)
    console.print(f"{found.at}: {found.hidden} of {found.items} items cold; NDCG@10, whitened", rows)


def _ends(ends: tuple[float, float], digits: int) -> str:
    """An interval; a dash, as square brackets are Rich's own."""
    return f"{ends[0]:.{digits}f}–{ends[1]:.{digits}f}"
