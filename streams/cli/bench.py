"""`slatecast bench`: what it costs, as ratios."""

import os
from pathlib import Path

import click
import msgspec
from rich.table import Table

from streams import embedded
from streams.cli.options import connection_options, json_option, print_json, stderr
from streams.cli.services import fetch_jars
from streams.settings import Settings


@click.group()
def bench() -> None:
    """Benchmarks: ratios against peers and floors, measured here and now."""


@bench.command(name="hot-path")
@click.option("--rounds", default=3, show_default=True, help="Interleaved repeats; medians are compared.")
@connection_options
@json_option
def hot_path(settings: Settings, rounds: int, as_json: bool) -> None:
    """Events to profiles to commit, against Faust and a bare loop; then with lists of 200 candidates.

    \b
    Example:  slatecast bench hot-path --json
    """
    from streams.bench.hot_path import compare

    home = Path(settings.home)
    fetch_jars(home)
    services = None
    with stderr.status("starting Kafka") as status:
        if not settings.bootstrap:
            services = embedded.Embedded(home)
            settings = msgspec.structs.replace(settings, bootstrap=services.bootstrap, redis=services.redis_url)
            if hasattr(os, "sched_setaffinity"):  # the engine has a core to itself
                os.sched_setaffinity(services.pids["kafka"], set(os.sched_getaffinity(0)) - {1} or {0})
        try:
            found = compare(settings, rounds, lambda what: status.update(what))
        finally:
            if services is not None:
                services.stop()
    if as_json:
        print_json(found)
        return
    table = Table("", "", box=None)
    for name, value in found.items():
        table.add_row(name, f"{value:,.2f}" if isinstance(value, float) else str(value))
    stderr.print(table)
