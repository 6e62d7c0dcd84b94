"""Options that several commands share, and how long work is shown on the terminal."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from streams.settings import load_settings

F = TypeVar("F", bound=Callable[..., Any])
stderr = Console(stderr=True)
if not stderr.is_terminal and "COLUMNS" not in os.environ:
    stderr.width = 200  # in a log, sentences and rows stay on their line
CONFIG = Path("slatecast.toml")


_OPTIONS = {
    "bootstrap": click.option(
        "--bootstrap", help="Kafka, host:port[,…]  [SLATECAST_BOOTSTRAP; default: what `slatecast up` runs]"
    ),
    "redis": click.option("--redis", help="Redis, redis://host:port/0  [SLATECAST_REDIS]"),
    "prefix": click.option(
        "--prefix", help="Prefix of topics and keys, one per tenant  [SLATECAST_PREFIX; slatecast.]"
    ),
    "home": click.option("--home", help="Folder of models, jars and embedded data  [SLATECAST_HOME; var]"),
    "config": click.option(
        "--config", type=click.Path(path_type=Path), help="Settings file  [slatecast.toml, if there]"
    ),
}


def settings_options(*names: str) -> Callable[[F], F]:
    """Give a command these options, and --config, as one argument `settings`."""

    def decorate(command: F) -> F:
        @wraps(command)
        def with_settings(config: Path | None, **rest: Any) -> Any:
            file = config or (CONFIG if CONFIG.is_file() else None)
            chosen = {name: rest.pop(name) for name in names}
            return command(settings=load_settings(file, chosen, os.environ), **rest)

        for name in ("config", *reversed(names)):
            with_settings = _OPTIONS[name](with_settings)
        return with_settings  # type: ignore[return-value]

    return decorate


connection_options = settings_options("bootstrap", "redis", "prefix", "home")
home_options = settings_options("home")  # where neither Kafka nor Redis is asked


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, for programs.")


set_option = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of `train --print-settings`; again for more.",
)

wandb_option = click.option(
    "--wandb", is_flag=True, help="Send the run's figures to Weights & Biases too, if installed."
)


def bare_table(*columns: str) -> Table:
    """A table without lines, for lists that people and `grep` read."""
    return Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))


def print_json(value: object) -> None:
    """One JSON object on stdout."""
    click.echo(msgspec.json.encode(value))


def log_to_stderr(level: int = logging.INFO) -> None:
    """Plain lines for operators; no payloads, no user names."""
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")


@contextmanager
def progress(label: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr: call it with (done, of); of = 0 while the total is unknown."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr, disable=quiet, transient=not sys.stderr.isatty()) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, of: bars.update(task, completed=done, total=of or None)


@contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """Bars of several steps, one below the other: call it with (what, done, of). Plain lines without a terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
                if not stderr.is_terminal:
                    stderr.print(what)
            bars.update(tasks[what], completed=done, total=of)

        yield show
