"""`slatecast rejects`: look at what could not be used, and send it again."""

from collections.abc import Sequence
from datetime import UTC, datetime

import click

from recsys.errors import REASON_CLASSES, Misuse
from streams import rejects as topic
from streams.cli.options import connection_options, json_option, print_json, stderr
from streams.cli.printable import printable
from streams.settings import Settings


@click.group()
def rejects() -> None:
    """Records that were put aside: list, show, send again."""


@rejects.command(name="list")
@connection_options
@click.option("--class", "reason_class", help=f"Only one class: {', '.join(REASON_CLASSES)}")
@json_option
def list_rejects(settings: Settings, reason_class: str | None, as_json: bool) -> None:
    """List rejects, a line each.

    \b
    Example:  slatecast rejects list --class range
    """
    kept = topic.read_rejects(settings)
    _check_class(reason_class, kept)
    found = [r for r in kept if reason_class in (None, r.reason_class)]
    if as_json:
        print_json(
            [
                {"id": r.id, "ts_ms": r.ts_ms, "source": r.source, "class": r.reason_class, "message": r.message}
                for r in found
            ]
        )
        return
    for reject in found:
        click.echo(printable(f"{reject.id}  {reject.source}  {reject.reason_class}: {reject.message}"))
    if not found:
        stderr.print("No rejects.")


@rejects.command()
@connection_options
@click.argument("name")
def show(settings: Settings, name: str) -> None:
    """Print one reject: what was wrong on stderr, its original bytes on stdout.

    \b
    Example:  slatecast rejects show 0:17 > bad.json
    """
    reject = topic.find_reject(settings, name)
    click.echo(printable(f"{reject.source}  {reject.reason_class}: {reject.message}"), err=True)
    click.echo(f"put aside {datetime.fromtimestamp(reject.ts_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC", err=True)
    click.echo(f"key {reject.key!r}, headers {reject.headers}", err=True)
    click.echo(reject.value or b"", nl=False)


@rejects.command()
@connection_options
@click.argument("names", nargs=-1)
@click.option("--class", "reason_class", help="All of one class instead of names; of a record, its newest reject")
def requeue(settings: Settings, names: tuple[str, ...], reason_class: str | None) -> None:
    """Send rejects to their topic again, after the cause was mended.

    \b
    Example:  slatecast rejects requeue 0:17 0:18
              slatecast rejects requeue --class schema
    """
    if bool(names) == (reason_class is not None):
        raise Misuse("name rejects (see `slatecast rejects list`), or a --class, not both")
    found = topic.read_rejects(settings)
    _check_class(reason_class, found)
    candidates = found if names else topic.newest_of_each(found)
    chosen = [r for r in candidates if r.id in names or r.reason_class == reason_class]
    missing = set(names) - {r.id for r in chosen}
    if missing:
        raise Misuse(f"no reject {', '.join(sorted(missing))}; `slatecast rejects list` shows those that are kept")
    stderr.print(f"{topic.requeue(settings, chosen)} records sent again.")


def _check_class(reason_class: str | None, found: Sequence[topic.Reject]) -> None:
    """A word mistyped must not read as `there are none`. What others have put aside may have classes of its own."""
    known = [*REASON_CLASSES, *sorted({r.reason_class for r in found} - set(REASON_CLASSES))]
    if reason_class is not None and reason_class not in known:
        raise Misuse(f"there is no class {reason_class!r}; there are {', '.join(known)}")
