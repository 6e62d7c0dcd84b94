"""`slatecast releases`: what rankers can serve, which one they do, and what may go."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from recsys.errors import Misuse, ModelRejected
from streams.cli.options import bare_table, home_options, json_option, print_json, stderr
from streams.cli.printable import printable
from streams.settings import Settings

if TYPE_CHECKING:
    from models.registry import Release


@click.group()
def releases() -> None:
    """Releases: list, choose the champion, remove old ones. Each is a folder in HOME/releases."""


@releases.command(name="list")
@home_options
@json_option
def list_(settings: Settings, as_json: bool) -> None:
    """List all releases, oldest first, and which is champion.

    \b
    Example:  slatecast releases list
    """
    from models.registry import list_releases

    home = Path(settings.home)
    found, unreadable = list_releases(home)
    if unreadable:
        stderr.print(f"left out, without a manifest that can be read: {', '.join(unreadable)}", markup=False)
    serving = _champion(home)
    if as_json:
        print_json([_about(release) | {"champion": release.folder == serving} for release in found])
        return
    table = bare_table("release", "made", "data until", "NDCG@10", "MB", "")
    for release in found:
        manifest, role = release.manifest, "champion" if release.folder == serving else ""
        figure = manifest.metrics.get("ndcg_at_10")
        table.add_row(
            release.id,
            _when(manifest.created_ts_ms),
            _when(manifest.data_until_ts_ms),
            "" if figure is None else f"{figure:.4f}",
            f"{_size(release) / 1e6:.0f}",
            role,
        )
    Console(highlight=False, width=160).print(table if found else "no releases yet; `slatecast train` makes one")


@releases.command()
@click.argument("release")
@home_options
@json_option
def promote(settings: Settings, release: str, as_json: bool) -> None:
    """Make a release the champion: rankers take it up between two batches. The way back from a bad one.

    RELEASE is its id, or how it begins. It is opened first: one that cannot serve changes nothing.

    \b
    Example:  slatecast releases promote 3f2a
    """
    from models.registry import list_releases
    from models.registry import promote as make_champion
    from models.serving import open_models

    home = Path(settings.home)
    found = [one for one in list_releases(home)[0] if one.id.startswith(release)]
    if len(found) != 1:
        many = f"{len(found)} releases begin so" if found else "there is no such release"
        raise Misuse(f"{printable(release)}: {many}; `slatecast releases list` has them")
    [chosen] = found
    before = _champion(home)
    open_models(chosen.folder)  # also that its features are those of this version
    make_champion(home, chosen.id)
    if as_json:
        print_json({"champion": chosen.id, "before": before.name if before else None})
    else:
        stderr.print(f"{chosen.id} is champion, {before.name if before else 'none'} was", markup=False)


@releases.command()
@click.option("--keep", type=click.IntRange(min=1), default=5, show_default=True, help="The newest that stay.")
@click.option("--execute", is_flag=True, help="Do it. Without this, only say what would be done.")
@home_options
@json_option
def prune(settings: Settings, keep: int, execute: bool, as_json: bool) -> None:
    """Remove old releases. The champion stays, and so does the one that a ranker opened last.

    \b
    Example:  slatecast releases prune --keep 3 --execute
    """
    from models.registry import outdated, remove

    home = Path(settings.home)
    gone = outdated(home, keep)
    freed = sum(map(_size, gone))
    if execute:
        remove(home, gone)
    if as_json:
        print_json({"removed" if execute else "would_remove": [release.id for release in gone], "bytes": freed})
        return
    for release in gone:
        click.echo(f"{release.id}  made {_when(release.manifest.created_ts_ms)}")
    said = "removed" if execute else "would be removed; --execute does it"
    stderr.print(f"{len(gone)} releases of {freed / 1e6:.0f} MB {said}", markup=False)


def _champion(home: Path) -> Path | None:
    """What serves; a pointer that is damaged does not bar the way to a whole release."""
    from models.registry import champion

    try:
        return champion(home)
    except ModelRejected as error:
        stderr.print(str(error), markup=False, highlight=False)
        return None


def _about(release: "Release") -> dict[str, object]:
    manifest = release.manifest
    return {
        "release": release.id,
        "created_ts_ms": manifest.created_ts_ms,
        "data": manifest.data,
        "data_until_ts_ms": manifest.data_until_ts_ms,
        "metrics": manifest.metrics,
        "bytes": _size(release),
    }


def _size(release: "Release") -> int:
    return sum(entry.size for entry in release.manifest.files.values())


def _when(ts_ms: int) -> str:
    return datetime.fromtimestamp(ts_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
