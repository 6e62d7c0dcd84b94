"""`slatecast train`: history in, a release out."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.table import Table

from recsys.errors import Misuse
from streams.cli.options import (
    connection_options,
    json_option,
    print_json,
    set_option,
    stderr,
    steps,
    wandb_option,
)
from streams.settings import Settings

if TYPE_CHECKING:
    from models.history import History
    from models.list_worth import Worth


@click.command()
@click.argument("source", metavar="FOLDER|completejourney", required=False)
@click.option(
    "--tower", type=click.Path(path_type=Path), help="Text tower: of `slatecast export`, or a Hugging Face folder."
)
@click.option("--from-topic", is_flag=True, help="Learn from what lies on the topics events and items.")
@click.option("--min-buyers", type=click.IntRange(min=1), help="Leave out items that fewer distinct users bought  [5;"
              " completejourney 30]")  # fmt: skip
@click.option("--until", help="Learn from what came before this day only, as in 2011-08-05.")
@click.option("--settings", "file", type=click.Path(path_type=Path), help="TOML; see --print-settings.")
@set_option
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Time budget, as the setting  [none]")
@click.option("--print-settings", is_flag=True, help="Print all settings with unit and reason, and end.")
@wandb_option
@connection_options
@json_option
def train(
    settings: Settings,
    source: str | None,
    tower: Path | None,
    from_topic: bool,
    min_buyers: int | None,
    until: str | None,
    file: Path | None,
    changes: tuple[str, ...],
    minutes: float | None,
    print_settings: bool,
    wandb: bool,
    as_json: bool,
) -> None:
    """Train on history and make the release that rankers load when they start.

    SOURCE is a folder with events.jsonl.gz and items.jsonl.gz, or the word completejourney. Ctrl-C while the scorer is
    fitted keeps the best so far.

    \b
    Example:  slatecast train shop/ --min-buyers 5
              slatecast train completejourney --set cuts=4 --minutes 10
              slatecast train --from-topic --until 2026-11-01
    """
    from models.settings_file import describe, read_settings
    from models.train_settings import TrainSettings

    chosen = read_settings(TrainSettings, "train", file, (*changes, *([f"minutes={minutes}"] if minutes else [])))
    if print_settings:
        click.echo(describe(chosen, "train"))
        return
    if (source is None) is not from_topic:
        raise Misuse("train needs one source: a folder, completejourney, or --from-topic; --help has an example")
    # Here, not above: torch takes seconds to import, and `slatecast --help` must not wait for it.
    from models.history import only_items, read_history, sold_items
    from models.origins import parse_day
    from models.runs import start_run, window_of
    from models.training import train
    from streams.cli.learn import least_buyers

    with stderr.status(f"reading {source or 'the topics'}"):
        source, history = _from_topic(settings) if source is None else (source, read_history(source))
        history = history.before(parse_day(until, "--until")) if until else history
        least, whole = min_buyers or least_buyers(source), history
        history = only_items(whole, sold_items(whole, least))
    if not len(history):
        raise Misuse(f"no item of {source} has {least} buyers{f' before {until}' if until else ''}; lower --min-buyers")
    stderr.print(
        f"{len(history.items)} of {len(whole.items)} items have {least} buyers, {len(history)} of {len(whole)} events are on them"
    )
    home, now_ms = Path(settings.home), time.time_ns() // 1_000_000
    with steps() as step, start_run(home, "train", chosen, window_of(source, history), now_ms, wandb) as run:
        trained = train(history, home, source, now_ms, chosen, tower, step, run.log)
        release = trained.release
        run.close(
            "stopped" if trained.ended == "stopped" else "done", {"release": release.id, **release.manifest.metrics}
        )
    if as_json:
        found = {"release": release.id, "folder": str(release.folder), "ended": trained.ended, "worth": trained.worth}
        print_json({**found, **release.manifest.metrics, "run": str(run.folder)})
        return
    if trained.ended:
        stderr.print(f"ended by {ENDED[trained.ended]}: the release is of what had been learned so far")
    stderr.print(_table(trained.worth))
    stderr.print(f"release {release.id} in {release.folder}; the run in {run.folder}")


def _from_topic(settings: Settings) -> "tuple[str, History]":
    """The name of the source, and its history; what is left out is said."""
    from streams.past import read_past

    read = read_past(settings)
    stderr.print(
        f"{len(read.history)} events on items; left out: {read.repeated} sent twice, {read.unknown} on unknown items, "
        f"{read.rejected} that rankers put aside"
    )
    return f"topic {settings.prefix}events", read.history


ENDED = {"early": "patience", "minutes": "time", "stopped": "Ctrl-C"}


def _table(worth: "dict[str, Worth]") -> Table:
    """A row a scorer, on the newest week, which was held out."""
    table = Table(title="newest week, held out", title_justify="left", box=None, pad_edge=False, padding=(0, 0, 0, 1))
    for name in ("", "NDCG", "new", "F1", "MAP", "distance", "overlap", "coverage", "L_acc", "L_disp", "click"):
        table.add_column(name, justify="right" if name else "left")
    for scorer, of in worth.items():
        table.add_row(scorer, *("–" if value is None else f"{value:.3f}" for value in msgspec.structs.astuple(of)))
    return table
