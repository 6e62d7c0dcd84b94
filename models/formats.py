"""Bytes of a file as records: JSONL, CSV (comma, semicolon or tab) and parquet, found out by content.

Says nothing about what a column means. A line that cannot be taken apart becomes a BadEvent in its place; a file that
cannot be read at all is a Misuse. Called by `models/files.py` only.
"""

import contextlib
import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from recsys.errors import BadEvent, Misuse
from recsys.events import decode_with

LINE_MAX = 64 * 1024 * 1024  # a file without line feeds must not fill the memory; a real line is 256 KB at most
HEAD = 4096
LOOK_AHEAD = 1000  # JSON lines looked at to learn which fields a file has
BATCH_ROWS = 16_384  # of parquet; about 10 MB of Python objects

Raw = bytes | Callable[[], bytes]  # parquet has no bytes of a row; they are made if it is rejected
Record = tuple[int, dict[str, Any] | BadEvent, Raw]


class Source(msgspec.Struct, frozen=True):
    """An opened file.

    columns: names, empty if not even one record could be read. units: unit of a column which is a timestamp.
    read: the records, given the columns wanted. header: what a file of rejected rows must begin with to be loadable.
    typed: values have the types that their writer chose, one by one (JSON).
    """

    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[Record]]
    units: Mapping[str, str] = {}
    header: bytes = b""
    typed: bool = False


def open_source(path: Path) -> Source:
    """A file, whatever its format. Raises Misuse with what to do, if it is none of the three."""
    head = _head(path)
    if head.startswith(b"PAR1"):
        return _parquet(path)
    if head.startswith(b"PK\x03\x04"):
        raise Misuse(
            f"{path} is an Excel workbook (or a zip): save the sheet as CSV UTF-8 in your spreadsheet program, "
            "or run `soffice --headless --convert-to csv FILE`, and load that"
        )
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Misuse(f"{path} is UTF-16: save it as UTF-8, e.g. `iconv -f UTF-16 -t UTF-8 FILE > NEW`")
    if sum(byte < 9 or 13 < byte < 32 for byte in head) > len(head) / 20:  # text has none, noise has 10 %
        raise Misuse(f"{path} is a binary file: JSONL, CSV or parquet is needed, gzipped or not")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise Misuse(f"{path} is empty")
    if text.startswith(b"["):
        raise Misuse(f"{path} is one JSON array: write one object a line, e.g. `jq -c '.[]' FILE > NEW.jsonl`")
    names = {suffix.lower() for suffix in path.suffixes}
    is_json = text.startswith(b"{") or names & {".jsonl", ".ndjson", ".json"}
    return _jsonl(path) if is_json else _csv(path, text.splitlines()[0])


def _open(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked if it is gzip by its first bytes, whatever its name."""
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")


def _head(path: Path) -> bytes:
    if path.is_fifo():  # it can be read once: what this look takes would be missing from the rows
        raise Misuse(f"{path} is a pipe: write it to a file first, gzipped if it is large, and name that")
    try:
        with _open(path) as stream:
            return stream.read(HEAD)
    except FileNotFoundError:
        raise Misuse(f"{path}: no such file") from None
    except IsADirectoryError:
        raise Misuse(f"{path} is a folder; name a file in it") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise _cut(path, 0) from None
    except OSError as error:
        raise Misuse(f"{path} cannot be read: {error.strerror or error}") from None


def _cut(path: Path, line: int) -> Misuse:
    return Misuse(f"{path} is cut short or damaged (gzip) after line {line}; copy it again")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines with their line feeds, without the byte order mark."""
    number = 0
    try:
        with _open(path) as stream:
            while line := stream.readline(LINE_MAX):
                number += 1
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if len(line) == LINE_MAX:
                    raise Misuse(f"{path}: line {number} is over {LINE_MAX >> 20} MiB; is this one record a line?")
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise _cut(path, number) from None


def _bare(line: bytes) -> bytes:
    return line.removesuffix(b"\n")


# --- JSONL ------------------------------------------------------------------------------------------------------------

_object = msgspec.json.Decoder(dict[str, Any])


def _jsonl(path: Path) -> Source:
    records = _json_records(path)
    first = list(islice(records, LOOK_AHEAD))
    columns = dict.fromkeys(key for _, record, _ in first if isinstance(record, dict) for key in record)
    return Source(tuple(columns), lambda wanted: chain(first, records), typed=True)


def _json_records(path: Path) -> Iterator[Record]:
    for number, line in _lines(path):
        raw = _bare(line)
        if not raw.strip():
            continue
        try:
            yield number, decode_with(_object, raw), raw
        except BadEvent as error:
            yield number, error, raw


# --- CSV --------------------------------------------------------------------------------------------------------------


def _csv(path: Path, first_line: bytes) -> Source:
    delimiter = max(",;\t", key=lambda sign: first_line.count(sign.encode()))
    held: list[tuple[int, bytes]] = []  # lines of the row being read: one, or more where a quoted cell has line feeds
    reader = csv.reader(_held_text(path, held), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader)]
    except csv.Error as error:
        raise Misuse(f"{path}: the first line is no header of a CSV file: {error}") from None
    header = b"".join(line for _, line in held)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise Misuse(f"{path} has two columns named {doubled[0]!r}; rename one")
    return Source(tuple(names), lambda wanted: _csv_records(reader, names, held), header=_bare(header))


def _held_text(path: Path, held: list[tuple[int, bytes]]) -> Iterator[str]:
    """Lines as text: UTF-8, else Windows-1252, as spreadsheets and the original Online Retail file are written."""
    for number, line in _lines(path):
        held.append((number, line))
        try:
            yield line.decode()
        except UnicodeDecodeError:
            yield _western(path, number, line)


def _western(path: Path, number: int, line: bytes) -> str:
    """A line of Windows-1252. Raises Misuse for one that is none, or looks like Chinese or Korean: most of that can be
    decoded too, into nonsense that nobody would notice.
    """
    if not (_PAIRS.fullmatch(line) and _WORD.search(line)):
        with contextlib.suppress(UnicodeDecodeError):
            return line.decode("cp1252")
    raise Misuse(
        f"{path} line {number} is neither UTF-8 nor Windows-1252: convert the file, as by iconv -f GB18030 -t UTF-8 (or "
        "-f BIG5, EUC-KR, SHIFT_JIS: what it was saved as)"
    )


# GB2312, EUC-KR, EUC-JP: high bytes in pairs only, and two characters side by side somewhere.
_PAIRS, _WORD = re.compile(rb"(?:[\x00-\x7f]|[\xa1-\xfe]{2})*+"), re.compile(rb"[\xa1-\xfe]{4}")


def _csv_records(reader: Iterator[list[str]], names: list[str], held: list[tuple[int, bytes]]) -> Iterator[Record]:
    while True:
        held.clear()
        record: dict[str, Any] | BadEvent
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            many = len(held)
            swallowed = f"; the {many} lines from here are one row: a quote is not closed" if many > 1 else ""
            record = BadEvent("decode", f"not CSV: {error}{swallowed}")
        else:
            if not cells:  # a blank line
                continue
            if len(cells) == len(names):
                record = dict(zip(names, map(str.strip, cells), strict=True))
            else:
                record = BadEvent("decode", f"{len(cells)} cells where the header has {len(names)}")
        yield held[0][0], record, _bare(b"".join(line for _, line in held))


# --- parquet ----------------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> Source:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise Misuse(f"{path} is no parquet file that can be read: {str(error).splitlines()[0]}") from None
    times = {f.name for f in file.schema_arrow if pa.types.is_timestamp(f.type) or pa.types.is_date(f.type)}
    # some writers do not mark a column of text as such
    texts = {f.name for f in file.schema_arrow if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)}

    def read(wanted: Sequence[str]) -> Iterator[Record]:
        row = 0
        try:
            for batch in file.iter_batches(BATCH_ROWS):
                columns = {name: batch.column(name) for name in wanted}
                for name in times & columns.keys():
                    columns[name] = columns[name].cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
                for name in texts & columns.keys():
                    columns[name] = columns[name].cast(pa.string())
                values = [column.to_pylist() for column in columns.values()]
                for at, cells in enumerate(zip(*values, strict=True)):
                    row += 1
                    yield row, dict(zip(columns, cells, strict=True)), partial(_as_json, batch, at, times)
        except (pa.ArrowException, OSError) as error:
            raise Misuse(f"{path} is damaged after row {row}: {str(error).splitlines()[0]}; copy it again") from None

    return Source(tuple(file.schema_arrow.names), read, units=dict.fromkeys(times, "ms"))


def _as_json(batch: Any, at: int, times: set[str]) -> bytes:
    """A row of a batch as JSON, every column of it, times as ISO 8601."""
    import pyarrow as pa

    row = batch.slice(at, 1)
    values = {
        # microseconds: for nanoseconds pyarrow would want pandas
        name: (column.cast(pa.timestamp("us"), safe=False) if name in times else column).to_pylist()[0]
        for name, column in zip(row.schema.names, row.columns, strict=True)
    }
    texts = {name: value.decode(errors="replace") for name, value in values.items() if isinstance(value, bytes)}
    return msgspec.json.encode({**values, **texts}, enc_hook=str)  # of bytes it would make base64
