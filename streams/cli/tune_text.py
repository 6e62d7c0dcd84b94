"""`slatecast tune-text`: a language model and a shop's history in, the same model for this shop out."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from recsys.errors import Misuse
from streams.cli.options import home_options, json_option, print_json, stderr, steps, wandb_option
from streams.settings import Settings

if TYPE_CHECKING:
    from models.runs import Run, Window
    from models.text_settings import TuneSettings


@click.command(name="tune-text")
@click.argument("source", metavar="FOLDER|completejourney", required=False)
@click.option("--model", default="all-MiniLM-L6-v2", show_default=True, help="As in `slatecast export`: a local Hugging"
              " Face folder, encoder or decoder, or a model in a package.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, resolve_path=True), help="Folder to make, for `slatecast export"
              " --model`.")  # fmt: skip
@click.option("--settings", "file", type=click.Path(path_type=Path), help="TOML; see --print-settings.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change one setting; again for more.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Time budget, as the setting  [10]")
@click.option("--min-buyers", type=click.IntRange(min=1), help="Leave out items that fewer distinct users bought  [5;"
              " completejourney 30]")  # fmt: skip
@click.option("--until", help="Learn from what came before this day only, as in 2011-08-05.")
@click.option("--print-settings", is_flag=True, help="Print all settings with unit and reason, and end.")
@wandb_option
@home_options
@json_option
def tune_text(
    settings: Settings,
    source: str | None,
    model: str,
    out: Path | None,
    file: Path | None,
    changes: tuple[str, ...],
    minutes: float | None,
    min_buyers: int | None,
    until: str | None,
    print_settings: bool,
    wandb: bool,
    as_json: bool,
) -> None:
    """Tune a text tower on the shop's own texts and baskets; `slatecast export --model` then makes the tower.

    Ctrl-C keeps the best so far; the same command again goes on where a killed one was. Several processes:
    torchrun --nproc-per-node 2 --no-python slatecast tune-text … (--set parallel=fsdp shards instead of copying).

    \b
    Example:  slatecast tune-text shop/ --out tuned --until 2011-08-05
              slatecast tune-text completejourney --out tuned --set train=lora --minutes 5
    """
    from models.settings_file import describe, read_settings
    from models.text_settings import TuneSettings

    chosen = read_settings(TuneSettings, "tune-text", file, (*changes, *([f"minutes={minutes}"] if minutes else [])))
    if print_settings:
        click.echo(describe(chosen, "tune-text"))
        return
    if source is None or out is None:
        raise Misuse("tune-text needs a source, a folder or completejourney, and --out; --help has an example")
    from models.export import find_weights
    from models.history import only_items, read_history, sold_items
    from models.origins import parse_day
    from models.runs import window_of
    from models.text_tuning import tune
    from streams.cli.learn import least_buyers

    base = find_weights(model)
    with stderr.status(f"reading {source}"):
        history = read_history(source)
        history = history.before(parse_day(until, "--until")) if until else history
        least = min_buyers or least_buyers(source)
        history = only_items(history, sold_items(history, least))
    if not len(history):
        raise Misuse(f"no item of {source} has {least} buyers{f' before {until}' if until else ''}; lower --min-buyers")
    with steps() as step, _run(Path(settings.home), chosen, window_of(source, history), wandb) as run:
        tuned = tune(base, out, history, chosen, step, run.log if run else lambda name, at, value: None)
        if run:
            run.close("stopped" if tuned.ended == "stopped" else "done", msgspec.to_builtins(tuned))
    if as_json:
        print_json(msgspec.to_builtins(tuned))
        return
    held = f"loss on the newest slice {tuned.loss_before:.4f} → {tuned.loss:.4f}; " if tuned.loss is not None and tuned.loss_before is not None else ""  # fmt: skip
    stderr.print(
        f"{held}best at step {tuned.best_step} of {tuned.steps} (ended by {tuned.ended}, {tuned.took_s:.0f} s)"
    )
    if tuned.souped > 1:
        stderr.print(f"the mean of the best {tuned.souped} validations' weights is kept: better than the best alone")
    stderr.print(f"{tuned.trainable:,} of {tuned.parameters:,} weights learned, {tuned.precision}")
    if not tuned.merged:
        stderr.print(f"a {chosen.train} cannot be merged: it lies beside the weights and is exported inside the tower")
    reading = f" --pooling {chosen.pooling} --prompt {chosen.prompt!r}" if (chosen.pooling, chosen.prompt) != ("mean", "{}") else ""  # fmt: skip
    stderr.print(f"now: slatecast export --model {out}{reading} --out TOWER, then slatecast train --tower TOWER")


@contextmanager
def _run(home: Path, chosen: "TuneSettings", window: "Window", wandb: bool) -> "Iterator[Run | None]":
    """The run's folder, kept by the first of several processes only."""
    from models.runs import start_run

    if int(os.environ.get("RANK", "0")):
        yield None
        return
    with start_run(home, "tune-text", chosen, window, time.time_ns() // 1_000_000, wandb) as run:
        yield run
