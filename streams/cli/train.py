"""`slatecast train`: history in, a release out."""

import time
from pathlib import Path

import click

from recsys.errors import Misuse
from streams.cli.options import changed, connection_options, json_option, print_json, set_option, stderr, steps
from streams.settings import Settings


@click.command()
@click.argument("source")
@click.option(
    "--tower", type=click.Path(path_type=Path), help="Text tower: of `slatecast export`, or a Hugging Face folder."
)
@click.option("--min-buyers", default=5, show_default=True, help="Leave out items that fewer distinct users bought.")
@set_option
@connection_options
@json_option
def train(
    settings: Settings, source: str, tower: Path | None, min_buyers: int, changes: tuple[str, ...], as_json: bool
) -> None:
    """Train on history and make the release that rankers load when they start.

    SOURCE is a folder with events.jsonl.gz and items.jsonl.gz, or the word completejourney.

    \b
    Example:  slatecast train shop/ --min-buyers 5
              slatecast train completejourney --min-buyers 30 --set cuts=4
    """
    # Here, not above: torch takes seconds to import, and `slatecast --help` must not wait for it.
    from models.history import only_items, read_history, sold_items
    from models.train_settings import TrainSettings
    from models.training import train

    chosen = changed(changes, TrainSettings)
    with stderr.status(f"reading {source}"):
        history = read_history(source)
        history = only_items(history, sold_items(history, min_buyers))
    if not len(history):
        raise Misuse(f"no item of {source} has {min_buyers} buyers; lower --min-buyers")
    with steps() as step:
        release = train(history, Path(settings.home), source, time.time_ns() // 1_000_000, chosen, tower, step)
    if as_json:
        print_json({"release": release.id, "folder": str(release.folder), **release.manifest.metrics})
        return
    stderr.print(f"release {release.id} in {release.folder}")
    for name, value in release.manifest.metrics.items():
        stderr.print(f"  {name:28} {value:.4f}   (newest cut, held out)")
