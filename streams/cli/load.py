"""`slatecast load events|items FILE` and `slatecast validate FILE`: a shop's files, loaded or only looked at."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from models.files import Row, header_of, parse_map, read_rows
from models.presets import PRESETS, SLATECAST, Kind, find_complete_journey
from recsys.errors import BadEvent, Misuse, SlatecastError
from recsys.events import Impression, Search
from streams.cli.options import connection_options, json_option, print_json, progress, stderr
from streams.cli.printable import printable
from streams.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
SHOWN = 10  # enough to see what is wrong with a file; the rejects file has all
JOURNEY = "completejourney"  # stands for the wheel's own files, whose path nobody knows by heart
EVENT_TYPES = ("click", "view", "cart", "purchase", "search", "impression")


class File(msgspec.Struct, frozen=True):
    """A file as the options describe it."""

    path: Path
    preset: str
    columns: dict[str, str]
    event_type: str

    def rows(self, kind: Kind) -> Iterator[Row]:
        """Its rows. Raises Misuse."""
        return read_rows(self.path, kind, PRESETS[self.preset], self.columns, self.event_type)


def file_options(command: F) -> F:
    """Give a command FILE and what says how its columns are meant."""
    about = "; ".join(f"{preset.name}: {preset.about}" for preset in PRESETS.values())
    for option in (
        click.argument("file", type=click.Path(path_type=Path)),
        click.option("--preset", type=click.Choice(list(PRESETS)), default=SLATECAST.name, help=f"Layout. {about}."),
        click.option("--map", "maps", multiple=True, metavar="FIELD=COLUMN,…", help="Columns of other names. A time"
                     " says its unit: ts_s=, ts_ms=, ts_us=, ts_ns= (of items first_ts_s= …); ISO 8601 text is known as"
                     " such."),
        click.option("--type", "event_type", type=click.Choice(EVENT_TYPES), help="What every row is, if no column says"),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group()
def load() -> None:
    """Load events or items from a file (JSONL, CSV, parquet) into Kafka."""


@load.command()
@file_options
@click.option("--backfill", is_flag=True, help="History: profiles learn from it, no lists are made because of it.")
@click.option("--rejects", type=click.Path(path_type=Path), help="Where bad rows go  [HOME/NAME.rejects.jsonl or .csv]")
@click.option("--strict", is_flag=True, help="Stop at the first bad row.")
@json_option
@connection_options
def events(
    settings: Settings,
    file: Path,
    preset: str,
    maps: tuple[str, ...],
    event_type: str | None,
    backfill: bool,
    **rest: Any,
) -> None:
    """Load what users did.

    \b
    Example:  slatecast load events clicks.jsonl.gz
              slatecast load events sales.csv --map user=customer,item=sku,ts_s=time --type purchase --backfill
              slatecast load events 'Online Retail.csv' --preset online-retail --backfill
              slatecast load events completejourney --backfill
    """
    from streams.loading import load_events

    def produce(**hooks: Any) -> Any:
        return load_events(settings, backfill=backfill, **hooks)

    _load(settings, "events", _file("events", file, preset, maps, event_type), produce, **rest)


@load.command()
@file_options
@click.option("--rejects", type=click.Path(path_type=Path), help="Where bad rows go  [HOME/NAME.rejects.jsonl or .csv]")
@click.option("--strict", is_flag=True, help="Stop at the first bad row.")
@json_option
@connection_options
def items(
    settings: Settings, file: Path, preset: str, maps: tuple[str, ...], event_type: str | None, **rest: Any
) -> None:
    """Load the catalogue; an item that is there already is replaced.

    \b
    Example:  slatecast load items items.jsonl.gz
              slatecast load items completejourney
    """
    from streams.loading import load_items

    def produce(**hooks: Any) -> Any:
        return load_items(settings, **hooks)

    _load(settings, "items", _file("items", file, preset, maps, event_type), produce, **rest)


@click.command()
@file_options
@click.option("--kind", type=click.Choice(["events", "items"]), default="events", help="What the rows are")
@click.option("--limit", type=click.IntRange(min=0), default=SHOWN, help="Lines shown of each outcome; 0: all  [10]")
@json_option
def validate(
    file: Path, preset: str, maps: tuple[str, ...], event_type: str | None, kind: Kind, limit: int, as_json: bool
) -> None:
    """Say line by line what is wrong with a file and what loading would do; load nothing.

    Exit code 0: every row would be loaded; 1: some would be rejected; 2: the file cannot be read as asked.

    \b
    Example:  slatecast validate clicks.jsonl
              slatecast validate 'Online Retail.csv' --preset online-retail --limit 3
    """
    chosen = _file(kind, file, preset, maps, event_type)
    outcomes, reasons = Counter[str](), Counter[str]()
    lines = []
    for row in chosen.rows(kind):
        outcome, text = _outcome(row)
        outcomes[outcome] += 1
        if row.error is not None:
            reasons[row.error.reason_class] += 1
        if limit and outcomes[outcome] > limit:
            continue
        if as_json:
            reason = {"class": row.error.reason_class} if row.error else {}
            lines.append({"line": row.line, "outcome": outcome, "message": text, **reason})
        else:
            click.echo(printable(f"line {row.line:<8} {outcome:<8} {text}"))
    summary = {name: outcomes[name] for name in ("load", "convert", "fold", "reject")}
    if as_json:
        about = {"file": str(chosen.path), "kind": kind, "preset": chosen.preset, "rows": outcomes.total()}
        print_json({**about, **summary, "reasons": reasons, "lines": lines})
    else:
        click.echo(
            f"{outcomes.total()} rows: {summary['load'] + summary['convert']} would be loaded "
            f"({summary['convert']} of them converted), {summary['fold']} folded into others, "
            f"{summary['reject']} rejected{_list_reasons(reasons)}"
        )
    if summary["reject"]:
        sys.exit(1)


def _file(kind: Kind, path: Path, preset: str, maps: tuple[str, ...], event_type: str | None) -> File:
    if str(path) == JOURNEY and not path.exists():
        name = "transactions.parquet" if kind == "events" else "products.parquet"
        path, preset = find_complete_journey() / name, "complete-journey"
    return File(path, preset, parse_map(maps), event_type or "")


def _load(
    settings: Settings,
    kind: Kind,
    file: File,
    produce: Callable[..., Any],
    rejects: Path | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Load with progress; bad rows shown (the first few) and written to the rejects file."""
    from streams.loading import rejects_file

    rows, header = file.rows(kind), header_of(file.path)
    aside = rejects or _free_name(Path(settings.home), file.path, ".csv" if header else ".jsonl")
    if aside.resolve() == file.path.resolve():
        raise Misuse(f"--rejects {aside} is the file to load; name another")
    shown = 0
    with (
        rejects_file(aside, header) as write,
        progress(f"{kind} from {file.path.name}", quiet=not stderr.is_terminal) as bar,
    ):

        def on_reject(row: Row) -> None:
            nonlocal shown
            assert row.error is not None  # noqa: S101 - that is why it is here
            if strict:
                error = f"line {row.line}: {row.error} (what came before it is loaded)"
                raise BadEvent(row.error.reason_class, error)
            write(row)
            shown += 1
            if shown <= SHOWN:
                _say(f"line {row.line}: rejected, {row.error.reason_class}: {row.error}")
            elif shown == SHOWN + 1:
                _say("further rejected rows are not shown")

        done = produce(rows=rows, on_reject=on_reject, progress=lambda count: bar(count, 0))
    said = f"; bad rows are in {aside}" if done.rejected else ""
    if as_json:
        about = {"file": str(file.path), "kind": kind, "rejects": str(aside) if done.rejected else None}
        print_json({**about, **msgspec.to_builtins(done)})
    if not done.loaded:
        reasons = _list_reasons(Counter(done.reasons))
        raise SlatecastError(f"nothing loaded: all {done.rejected} rows of {file.path} were rejected{reasons}{said}")
    _say(
        f"{done.loaded} {kind} loaded in {done.wall_s:.1f} s ({done.converted} converted), {done.folded} rows folded into "
        f"others, {done.rejected} rejected{_list_reasons(Counter(done.reasons))}{said}"
    )


def _free_name(folder: Path, path: Path, ending: str) -> Path:
    """NAME.rejects.jsonl, or NAME.rejects.2.jsonl and so on: files of two folders may have one name, and bytes put aside
    earlier may wait to be mended.
    """
    name = f"{Path(path.name.removesuffix('.gz')).stem}.rejects"
    numbered = (folder / f"{name}.{number}{ending}" for number in count(2))
    return next(aside for aside in chain([folder / f"{name}{ending}"], numbered) if not aside.exists())


def _outcome(row: Row) -> tuple[str, str]:
    """What would become of a row, and in which words."""
    if row.error is not None:
        return "reject", f"{row.error.reason_class}: {row.error}"
    if (event := row.event) is not None:
        subject = (
            repr(event.query) if isinstance(event, Search)
            else f"{len(event.items)} items" if isinstance(event, Impression)
            else event.item
        )  # fmt: skip
        when = datetime.fromtimestamp(event.ts_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        text = f"{type(event).__name__.lower()} of {subject} by {event.user} at {when}"
    elif row.item is not None:
        text = f"{row.item.item}: {row.item.title}"
    else:
        return "fold", row.note
    return ("convert", f"{text} ({row.note})") if row.note else ("load", text)


def _list_reasons(reasons: Counter[str]) -> str:
    return f" ({', '.join(f'{name} {count}' for name, count in reasons.most_common())})" if reasons else ""


def _say(text: str) -> None:
    stderr.print(text, markup=False, highlight=False, soft_wrap=True)
