"""`slatecast runs`: what was trained, how it went, and what two runs did otherwise."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console

from recsys.errors import Misuse
from streams.cli.options import bare_table, home_options, json_option, print_json, stderr
from streams.cli.printable import printable
from streams.settings import Settings

if TYPE_CHECKING:
    from models.runs import About


@click.group()
def runs() -> None:
    """Trainings that were: list, show, compare. Each is a folder in HOME/runs."""


@runs.command(name="list")
@home_options
@json_option
def list_(settings: Settings, as_json: bool) -> None:
    """List all runs, oldest first.

    \b
    Example:  slatecast runs list
    """
    from models.runs import list_runs

    found, unreadable = list_runs(Path(settings.home))
    if unreadable:
        stderr.print(f"left out, written by another version: {', '.join(unreadable)}", markup=False)
    if as_json:
        print_json(found)
        return
    table = bare_table("run", "source", "until", "ended", "took", "result")
    for about in found:
        until = _day(about.window.until_ts_ms)
        table.add_row(
            about.id, printable(about.window.source), until, about.ended, f"{about.took_s:.0f} s", _brief(about)
        )
    Console(highlight=False, width=160).print(table if found else "no runs yet; `slatecast train` makes one")


@runs.command()
@click.argument("run", default="last")
@home_options
@json_option
def show(settings: Settings, run: str, as_json: bool) -> None:
    """Show a run: its settings, data, environment, figures, result.

    RUN is its id, how its id begins, or the word last.

    \b
    Example:  slatecast runs show
              slatecast runs show 20261126-1415
    """
    from models.runs import flatten, read_metrics, read_run

    folder, about = read_run(Path(settings.home), run)
    lines = read_metrics(folder)
    if as_json:
        print_json({"folder": str(folder), "run": about, "metrics": lines})
        return
    console = Console(highlight=False, width=160)
    console.print(f"{folder}: {about.ended}" + (f", {printable(about.reason)}" if about.reason else ""))
    for path, value in flatten(msgspec.to_builtins(about)).items():
        console.print(f"  {path:40} {printable(str(value))}", markup=False)
    table = bare_table("figure", "steps", "first", "last", "least", "most")
    for name, of in lines.items():
        values = [one.value for one in of]
        table.add_row(
            name, str(len(of)), *(f"{value:.5g}" for value in (values[0], values[-1], min(values), max(values)))
        )
    console.print(table)


@runs.command()
@click.argument("first")
@click.argument("second", default="last")
@home_options
@json_option
def diff(settings: Settings, first: str, second: str, as_json: bool) -> None:
    """Show what two runs did otherwise and what came of it: only what differs.

    \b
    Example:  slatecast runs diff 20261125-0930 last
    """
    from models.runs import read_run

    one, other = (read_run(Path(settings.home), name)[1] for name in (first, second))
    if one.id == other.id:
        raise Misuse(f"both are {one.id}; name two runs, `slatecast runs list` has them")
    found = _differences(one, other)
    if as_json:
        print_json({"first": one.id, "second": other.id, "differences": found})
        return
    table = bare_table("", one.id, other.id)
    for path, values in found.items():
        table.add_row(path, *(printable(str(value)) for value in values))
    Console(highlight=False, width=160).print(table)


def _differences(one: "About", other: "About") -> dict[str, tuple[Any, Any]]:
    """By dotted name, both values where they differ; what only one has stands beside None."""
    from models.runs import flatten

    both = [flatten(msgspec.to_builtins(about)) for about in (one, other)]
    names = [name for name in {**both[0], **both[1]} if name not in ("id", "started_ts_ms")]
    return {name: (both[0].get(name), both[1].get(name)) for name in names if both[0].get(name) != both[1].get(name)}


def _brief(about: "About") -> str:
    """What a list has room for."""
    names = ("ndcg_at_10", "ndcg_at_10_new", "loss_before", "loss", "best")
    shown = [f"{name} {about.result[name]:.4f}" for name in names if isinstance(about.result.get(name), float)]
    return ", ".join(shown) or printable(about.reason)


def _day(ts_ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(ts_ms / 1000, UTC).strftime("%Y-%m-%d")
