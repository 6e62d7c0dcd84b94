"""`slatecast bench`: what it costs, as ratios."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
import msgspec
from rich.table import Table

from streams import embedded
from streams.bench.ground import ENGINE_CORE
from streams.cli.bench_texts import texts, tune_text
from streams.cli.options import connection_options, home_options, json_option, print_json, stderr
from streams.cli.services import fetch_jars
from streams.settings import Settings

rounds_option = click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1), help="Interleaved repeats; medians are compared."
)


@click.group()
def bench() -> None:
    """Benchmarks: ratios against peers and floors, measured here and now."""


bench.add_command(texts)
bench.add_command(tune_text)


@bench.command(name="hot-path")
@rounds_option
@connection_options
@json_option
def hot_path(settings: Settings, rounds: int, as_json: bool) -> None:
    """Events to profiles to commit, against Faust and a bare loop; then with lists of 200 candidates.

    \b
    Example:  slatecast bench hot-path --json
    """
    from streams.bench.hot_path import compare

    with started(settings, engine_core=True) as (own, _, tell):
        found = compare(own, rounds, tell)
    show(found, as_json)


@bench.command()
@click.option("--profiles", default=1_000_000, show_default=True, type=click.IntRange(1000), help="Users in the state.")
@rounds_option
@connection_options
@json_option
def restore(settings: Settings, profiles: int, rounds: int, as_json: bool) -> None:
    """State from its changelog and from the store on disk; the hot path with state on disk against in memory.

    About four minutes, 2 GB of disk and as much memory.

    \b
    Example:  slatecast bench restore --json
              slatecast bench restore --profiles 100000 --rounds 1
    """
    from streams.bench.restore import measure

    with started(settings, engine_core=True) as (own, _, tell):
        found = measure(own, profiles, rounds, tell)
    show(found, as_json)


@bench.command()
@click.option("--transactions", default=200, show_default=True, type=click.IntRange(1), help="Of each size in a round.")
@rounds_option
@connection_options
@json_option
def commit(settings: Settings, transactions: int, rounds: int, as_json: bool) -> None:
    """A transaction's time by the number of its events, against the same without transactions.

    \b
    Example:  slatecast bench commit --json
    """
    from streams.bench.commit import measure

    with started(settings, engine_core=True) as (own, _, tell):
        found = measure(own, transactions, rounds, tell)
    show(found, as_json)


@bench.command()
@click.option("--seconds", default=8.0, show_default=True, type=click.FloatRange(0.1), help="How long each is watched.")
@rounds_option
@connection_options
@json_option
def scale(settings: Settings, seconds: float, rounds: int, as_json: bool) -> None:
    """Two workers against one, both making lists of their own partitions; and what the limit was.

    \b
    Example:  slatecast bench scale --json
    """
    from streams.bench.scale import measure

    with started(settings, engine_core=False) as (own, broker_pid, tell):
        found = measure(own, seconds, rounds, tell, broker_pid)
    show(found, as_json)


@bench.command()
@click.option("--texts", default=1000, show_default=True, type=click.IntRange(220), help="Titles to embed in a round.")
@click.option(
    "--pairs", default=32, show_default=True, type=click.IntRange(1, 200), help="Of 200 a cross-encoder is timed on."
)
@click.option("--tower", type=click.Path(path_type=Path), help="Text tower: a local Hugging Face encoder folder.")
@rounds_option
@home_options
@json_option
def scorer(settings: Settings, texts: int, pairs: int, tower: Path | None, rounds: int, as_json: bool) -> None:
    """The scores of a list against a cross-encoder; embedding against fastembed; bits, start-up, memory.

    About four minutes, without a broker. Needs the extra `bench`.

    \b
    Example:  slatecast bench scorer --json
              slatecast bench scorer --texts 220 --pairs 4 --rounds 1
    """
    from streams.bench.scorer import measure

    with stderr.status("beginning") as status:
        found = measure(Path(settings.home), tower, texts, pairs, rounds, status.update)
    show(found, as_json)


@bench.command()
@click.option("--lists", default=48, show_default=True, type=click.IntRange(1), help="Of each of the sixteen shapes.")
@rounds_option
@json_option
def diversify(lists: int, rounds: int, as_json: bool) -> None:
    """Re-ranking against pyversity: MMR, DPP, SSD, SSD in a window; 200 and 1000 candidates, lists of 20 and 50.

    One process, one core, 384 dimensions, half a minute, no broker. Vectors are normalised once, as the catalogue does;
    pyversity normalises at each call. Lists are compared one by one.

    \b
    Example:  slatecast bench diversify --json
              slatecast bench diversify --lists 200 --rounds 5
    """
    from streams.bench.diversify import measure

    with stderr.status("beginning") as status:
        found = measure(lists, rounds, status.update)
    show(found, as_json)


@bench.command(name="train")
@click.option("--model", default="all-MiniLM-L6-v2", show_default=True, help="Base, as in `slatecast tune-text`.")
@click.option(
    "--steps", "count", default=12, show_default=True, type=click.IntRange(4), help="Of each engine in a round."
)
@click.option(
    "--batch", default=32, show_default=True, type=click.IntRange(2), help="Texts of a step, each read twice."
)
@rounds_option
@json_option
def tuning(model: str, count: int, batch: int, rounds: int, as_json: bool) -> None:
    """Our contrastive step against sentence-transformers', on the same model, texts of mixed lengths, loss and batch.

    About five minutes, without a broker. Needs the extra `bench`.

    \b
    Example:  slatecast bench train --json
    """
    from models.export import find_weights
    from streams.bench.tuning_speed import measure

    with stderr.status("beginning") as status:
        found = measure(find_weights(model), count, batch, rounds, status.update)
    show(found, as_json)


@contextlib.contextmanager
def started(settings: Settings, *, engine_core: bool) -> Iterator[tuple[Settings, int, Callable[[str], None]]]:
    """A broker for the length of a block, unless one is named; its process id, if it is ours, else 0; whom to tell.

    engine_core: keep our broker from the core on which engines are pinned.
    """
    with contextlib.ExitStack() as stack:
        broker_pid = 0
        if not settings.bootstrap:
            fetch_jars(Path(settings.home))
            with stderr.status("starting Kafka"):
                services = stack.enter_context(embedded.Embedded(Path(settings.home)))
            settings = msgspec.structs.replace(settings, bootstrap=services.bootstrap, redis=services.redis_url)
            broker_pid = services.pids["kafka"]
            if engine_core:
                keep_from_engines(broker_pid)
        status = stack.enter_context(stderr.status("beginning"))
        yield settings, broker_pid, lambda what: status.update(what)


def keep_from_engines(pid: int) -> None:
    """A running process to the other cores, thread by thread: the system's call moves one thread only."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = os.sched_getaffinity(0)
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), cores - {ENGINE_CORE} or cores)


def show(found: Mapping[str, object], as_json: bool) -> None:
    """What was measured: JSON, or a table of the figures and one for each list of rows."""
    if as_json:
        print_json(found)
        return
    table = Table("", "", box=None)
    for name, value in found.items():
        if not isinstance(value, list):
            table.add_row(name, _said(value))
    stderr.print(table)
    for value in found.values():
        if isinstance(value, list):
            rows = Table(*value[0], box=None)
            for row in value:
                rows.add_row(*map(_said, row.values()))
            stderr.print(rows)


def _said(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
