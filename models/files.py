"""Shops' files as events and items, row by row: JSONL, CSV and parquet, gzipped or not.

A row that is no event becomes a `Row` with the error and its bytes; a file that cannot be read at all is a Misuse.
What a column means is said in `models/presets.py`; how bytes become rows in `models/formats.py`.
Nothing is held in memory but one batch. Called by the loader, by `validate` and by training.

JSONL in our own fields is as strict as Kafka. A cell of a CSV or a column of a parquet file has no type worth
arguing with: there, and wherever columns are mapped, numbers serve as ids and digits as numbers.
"""

import difflib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from models.formats import Source, open_source
from models.presets import OWN_FIELDS, PRESETS, SLATECAST, TIME_FIELDS, Fields, Kind, Preset
from models.times import to_ms
from recsys.catalogue import Item, decode_item
from recsys.errors import BadEvent, Misuse
from recsys.events import Event, Purchase, check_arrival, decode_event, decode_with, encode_event

_LISTS: dict[Kind, str] = {"events": "items", "items": "tags"}  # in one cell, parts separated by |
_TEXTS: dict[Kind, tuple[str, ...]] = {
    "events": ("id", "user", "session", "item", "slate", "query"),
    "items": ("item", "title", "category", "brand", "description"),
}
_REQUIRED: dict[Kind, tuple[str, ...]] = {"events": ("type", "user"), "items": ("item", "title")}
_CLOSE = 0.7  # for "did you mean": InvoiceDat and InvoiceDate are, title and item (.67) are not

_loose_event: "msgspec.json.Decoder[Event]" = msgspec.json.Decoder(Event, strict=False)
_loose_item = msgspec.json.Decoder(Item, strict=False)


class Row(msgspec.Struct, frozen=True):
    """One row of a file: an event or an item, or the error, or neither if `note` says where it went.

    line: the line it begins on, from 1 (of parquet: the row). raw: its bytes without the line feed, where it was
    rejected (of parquet: as JSON). note: what had to be done to it.
    """

    line: int
    event: Event | None = None
    item: Item | None = None
    error: BadEvent | None = None
    raw: bytes = b""
    note: str = ""


def read_rows(
    path: Path,
    kind: Kind = "events",
    preset: Preset = SLATECAST,
    columns: Mapping[str, str] | None = None,
    event_type: str = "",
) -> Iterator[Row]:
    """The rows of a file, in its order.

    columns: our field -> the file's column, over the preset's. event_type: what every row is, where no column says.
    Events without an id get one that depends on their content only, so loading a file twice adds nothing.
    Raises Misuse: missing, empty, binary or cut file, unknown column. 10–13 µs a row.
    """
    source = open_source(path)
    pairs = _match(path, kind, preset, columns or {}, event_type, source)
    exact = source.typed and preset is SLATECAST and not columns
    rows = _rows(source, pairs, kind, preset.rules(kind, path), event_type, exact)
    if preset.invoice_lines:
        rows = _merge_lines(rows) if kind == "events" else _first_of_each(rows)
    return _not_empty(path, rows)


def header_of(path: Path) -> bytes:
    """The header line of a CSV file, which its rejected rows need to be loadable; empty for other formats."""
    return open_source(path).header


def parse_map(texts: Iterable[str]) -> dict[str, str]:
    """`field=column,field=column` as a mapping. Raises Misuse.

    >>> parse_map(["ts_s=created,user=customer", "item=sku"])
    {'ts_s': 'created', 'user': 'customer', 'item': 'sku'}
    """
    pairs = [pair.partition("=") for text in texts for pair in text.split(",")]
    for field, _, column in pairs:
        if not field.strip() or not column.strip():
            raise Misuse(f"--map {field}: write field=column, as in --map ts_s=created,user=customer")
    return {field.strip(): column.strip() for field, _, column in pairs}


def event_id(event: Event) -> str:
    """The id of an event whose shop gave none: of all that it says.

    >>> event_id(Purchase(user="u", item="i", ts_ms=1_700_000_000_000))
    '99a41f7c233394bf'
    """
    nameless = msgspec.structs.replace(event, id="")
    return hashlib.blake2b(encode_event(nameless), digest_size=8).hexdigest()


def _match(
    path: Path, kind: Kind, preset: Preset, columns: Mapping[str, str], event_type: str, source: Source
) -> list[tuple[str, str]]:
    """(our field, the file's column) for every column that will be read. Raises Misuse with the nearest name."""
    named = preset.events if kind == "events" else preset.items
    known = (*OWN_FIELDS[kind], *TIME_FIELDS[kind], *named)
    given = {**named, **columns}
    for field, column in given.items():
        if field not in known:
            raise Misuse(
                f"there is no field {field!r}{_nearest(field, known)}; fields: {', '.join(dict.fromkeys(known))}"
            )
        if source.columns and column not in source.columns:
            raise Misuse(f"{path.name} has no column {column!r}{_nearest(column, source.columns)}; {_has(source)}")
    if named:
        return list(given.items())
    own = [f for f in dict.fromkeys(known) if f not in given and (source.typed or f in source.columns)]
    pairs = [*given.items(), *((field, field) for field in own)]
    needed = [(f,) for f in _REQUIRED[kind] if not (f == "type" and event_type)]
    for fields in [*needed, *([tuple(TIME_FIELDS[kind])] if kind == "events" else [])]:
        if source.columns and not any(column in source.columns for field, column in pairs if field in fields):
            field = fields[0]
            hint = ", or give --type" if field == "type" else ""
            if kind == "events" and "title" in source.columns:
                hint += "; if these are items, `slatecast load items`, or `validate --kind items`"
            for other in PRESETS.values():
                if other.events and set(other.events.values()) <= set(source.columns):
                    hint += f", or give --preset {other.name}: these look like its columns"
            if path.name == f"{kind}.jsonl.gz":  # of a folder, perhaps
                hint += "; `train` and what else reads a folder has no --map: rename the field there"
            raise Misuse(
                f"{path.name} has no column {field!r}{_nearest(field, source.columns)}; {_has(source)}. "
                f"Name it: --map {field}=COLUMN{hint}"
            )
    return pairs


def _nearest(name: str, names: Iterable[str]) -> str:
    by_lower = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=_CLOSE)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


def _has(source: Source) -> str:
    return "it has: " + ", ".join(source.columns[:30])  # enough to see what file it is


def _rows(
    source: Source,
    pairs: list[tuple[str, str]],
    kind: Kind,
    convert: Callable[[Fields], Fields],
    event_type: str,
    exact: bool,
) -> Iterator[Row]:
    """Record by record: pick, apply the preset, read the time, decode."""
    units, now_ms = TIME_FIELDS[kind], time.time_ns() // 1_000_000
    times = [(field, column, source.units.get(column, units[field])) for field, column in pairs if field in units]
    for line, record, raw in source.read([column for _, column in pairs]):
        try:
            if isinstance(record, BadEvent):
                raise record
            if exact:
                fields = {field: record[column] for field, column in pairs if column in record}
            else:
                get = record.get
                # a missing value is an empty cell, a null or NaN (which is not equal to itself)
                present = {field: v for field, column in pairs if (v := get(column)) is not None and v != "" and v == v}
                fields = convert(present)
            if event_type and fields.get("type") is None:
                fields["type"] = event_type
            note = _read_time(fields, times, kind, exact)
            made = _make(fields, kind, exact)
            if not isinstance(made, Item):
                # Rankers would reject it; and what is learned is judged by the last weeks before the newest event.
                check_arrival(made, now_ms)
        except BadEvent as error:
            yield Row(line, error=error, raw=raw if isinstance(raw, bytes) else raw())
        else:
            yield Row(line, None, made, note=note) if isinstance(made, Item) else Row(line, made, note=note)


def _read_time(fields: Fields, times: list[tuple[str, str, str]], kind: Kind, exact: bool) -> str:
    """Put the time under its own name in milliseconds; what was converted. times: (field, column, unit)."""
    for field, column, unit in times:
        if (value := fields.get(field)) is None:
            continue
        target = "ts_ms" if kind == "events" else "first_ts_ms"
        iso = isinstance(value, str) and not value.lstrip("-").replace(".", "", 1).isdigit()
        if exact and field == target and not iso:
            return ""  # for the decoder to judge, as on Kafka
        fields[target] = to_ms(value, unit, target.removesuffix("_ms"))
        return f"{column}: {'ISO 8601' if iso else unit} to ms" if iso or unit != "ms" else ""
    return ""


def _make(fields: Fields, kind: Kind, exact: bool) -> Event | Item:
    """Fields as an event or item, by the decoder that reads Kafka: one set of rules, one set of messages."""
    if not exact:
        for field in _TEXTS[kind]:
            value = fields.get(field)
            if isinstance(value, float) and value.is_integer():  # an id that went through pandas with gaps
                fields[field] = str(int(value))
            elif isinstance(value, (int, float)):
                fields[field] = str(value)
        if isinstance(value := fields.get(_LISTS[kind]), str):
            fields[_LISTS[kind]] = value.split("|")
    try:
        data = msgspec.json.encode(fields)
    except OverflowError:
        raise BadEvent("range", "a number is beyond 64 bits") from None
    if kind == "items":
        return decode_item(data) if exact else decode_with(_loose_item, data)
    event = decode_event(data) if exact else decode_with(_loose_event, data)
    return event if event.id else msgspec.structs.replace(event, id=event_id(event))


def _merge_lines(rows: Iterable[Row]) -> Iterator[Row]:
    """Lines of one product in one basket as one purchase at the first of them: quantities added, prices averaged.

    The lines of a basket stand together in these files, so one basket is held; rejected rows pass at once.
    """
    basket: list[Row] = []
    place: dict[str, int] = {}
    session: str | None = None
    for row in rows:
        event = row.event
        if not isinstance(event, Purchase):
            yield row
            continue
        if event.session != session:
            yield from basket
            basket, place, session = [], {}, event.session
        at = place.setdefault(event.item, len(basket))
        if at < len(basket):
            first = basket[at]
            basket[at] = msgspec.structs.replace(first, event=_add(first.event, event))
            row = Row(row.line, note=f"merged into line {first.line}")
        basket.append(row)
    yield from basket


def _add(one: Event | None, two: Purchase) -> Purchase:
    assert isinstance(one, Purchase)  # noqa: S101  (only purchases are remembered)
    quantity = one.quantity + two.quantity
    price = one.price
    if one.price is not None and two.price is not None:
        price = round((one.price * one.quantity + two.price * two.quantity) / quantity, 4)
    return msgspec.structs.replace(one, quantity=quantity, price=price)


def _first_of_each(rows: Iterable[Row]) -> Iterator[Row]:
    """The first row of each item; the others only say so. O(items) memory."""
    line_of: dict[str, int] = {}
    for row in rows:
        if row.item and (line := line_of.setdefault(row.item.item, row.line)) != row.line:
            yield Row(row.line, note=f"the same item as line {line}")
        else:
            yield row


def _not_empty(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    row = None
    for row in rows:
        yield row
    if row is None:
        raise Misuse(f"{path} has no rows")
