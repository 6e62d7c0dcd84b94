"""Every way a shop's file can be wrong: a bad row keeps its bytes and its line, a bad file is one clear line."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from file_helpers import CLICK, RETAIL, read, write
from pyarrow import parquet

from models.files import Row, read_rows
from recsys.errors import Misuse

# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_bad_row_keeps_its_bytes_and_its_line_number(tmp_path: Path) -> None:
    bad = [
        b"{",
        b"\xff\xfe",
        b'{"type":"click"}\r',
        b'{"a":' * 5000,
        b'{"type":"click","user":"\\ud800"}',
        b'{"a":NaN}',
    ]
    (path := tmp_path / "e.jsonl").write_bytes(CLICK.encode() + b"\n\n" + b"\n".join(bad))
    rows = read(path)
    assert rows[0].event is not None
    assert [(row.line, row.raw) for row in rows[1:]] == list(zip(range(3, 9), bad, strict=True))
    assert [row.error.reason_class for row in rows[1:] if row.error] == [
        "decode", "decode", "schema", "decode", "decode", "decode",
    ]  # fmt: skip


def test_a_bad_csv_row_keeps_its_bytes_over_several_lines(tmp_path: Path) -> None:
    bad = b'click,"u\r\n1",i1,seventeen'
    text = b"type,user,item,ts_ms\r\n" + bad + b"\r\nclick,u1,i1\r\nclick,u2,i1,1700000000000\r\n" + b'click,"u2'
    (path := tmp_path / "e.csv").write_bytes(text)
    rows = read(path)
    assert [row.line for row in rows] == [2, 4, 5, 6]
    assert rows[0].raw == bad + b"\r"
    assert str(rows[1].error) == "3 cells where the header has 4"
    assert rows[2].event is not None
    assert rows[3].raw == b'click,"u2'


def test_a_quote_that_is_never_closed_says_how_many_lines_it_took(tmp_path: Path) -> None:
    lines = ["type,user,item,ts", 'click,u1,"i1,1700000000', *(f"click,u{n},i1,1700000000" for n in range(6000))]
    rows = read(write(tmp_path / "e.csv", "\n".join(lines)))
    bad = rows[0]
    swallowed = bad.raw.count(b"\n") + 1
    assert (bad.line, len(rows) - 1 + swallowed) == (2, 6001)
    assert f"; the {swallowed} lines from here are one row: a quote is not closed" in str(bad.error)
    assert all(row.event for row in rows[1:])


def test_a_bad_row_of_parquet_keeps_texts_that_their_writer_did_not_mark(tmp_path: Path) -> None:
    table = {"type": [b"click"], "user": ["u\u00e9".encode()], "item": [b"i1"], "ts_ms": [17], "other": [b"\xff"]}
    parquet.write_table(pa.table(table), tmp_path / "e.parquet")
    [row] = read(tmp_path / "e.parquet")
    fields = {"type": "click", "user": "u\u00e9", "item": "i1", "ts_ms": 17, "other": "\ufffd"}
    assert (row.error is not None, json.loads(row.raw)) == (True, fields)


def test_an_oversize_line_is_put_aside_whole(tmp_path: Path) -> None:
    long = CLICK.replace("}", f',"note":"{"x" * 300_000}"}}')
    [row, _] = read(write(tmp_path / "e.jsonl", f"{long}\n{CLICK}\n"))
    assert row.error is not None
    assert row.error.reason_class == "oversize"
    assert row.raw == long.encode()


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (bytes(range(256)) * 8, "binary"),
        (b"PK\x03\x04....", "save the sheet as CSV"),
        (b"PAR1....", "no parquet file"),
        ("type,user".encode("utf-16"), "UTF-16"),
        (b'[{"type":"click"}]', "one JSON array"),
        (b"type,user,item,ts_ms\n", "has no rows"),
        (b"type,user,user,ts_ms\n1,2,3,4\n", "two columns named 'user'"),
        (
            b"type,usr,item,ts_ms\nclick,u,i,1\n",
            "no column 'user' (did you mean 'usr'?); it has: type, usr, item, ts_ms",
        ),
        (b'{"kind":"click","user":"u","ts":1}', "no column 'type'"),
        (b'{"item":"i","title":"Mug"}', "if these are items, `slatecast load items`, or `validate --kind items`"),
        (RETAIL.encode() + b"\n", "--preset online-retail: these look like its columns"),
        (gzip.compress(CLICK.encode() * 1000, mtime=0)[:60], "cut short"),
        (b"\x1f\x8b damaged", "cut short"),
        (gzip.compress(b"", mtime=0), "is empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_misuse(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "some.file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Misuse) as error:
        read(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "encoding"), [("红色马克杯", "gb18030"), ("빨간 머그컵", "euc-kr"), ("赤い杯", "euc-jp")]
)
def test_a_two_byte_encoding_is_refused_and_not_read_as_nonsense(tmp_path: Path, text: str, encoding: str) -> None:
    (path := tmp_path / "items.csv").write_bytes(f"item,title\na,Red mug\nb,{text}\n".encode(encoding))
    with pytest.raises(Misuse, match=r"items\.csv line 3 is neither UTF-8 nor Windows-1252: .*iconv"):
        list(read_rows(path, "items"))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="is a folder"):
        read(tmp_path)


def test_a_pipe_is_refused_before_a_byte_of_it_is_gone() -> None:
    outlet, inlet = os.pipe()
    os.write(inlet, CLICK.encode())
    os.close(inlet)
    with pytest.raises(Misuse, match="is a pipe"):
        read(Path(f"/dev/fd/{outlet}"))
    assert os.read(outlet, 1000) == CLICK.encode()
    os.close(outlet)


def test_a_gzip_cut_in_the_middle_gives_its_rows_and_then_says_so(tmp_path: Path) -> None:
    lines = "".join(CLICK.replace("i1", f"i{number * 7919 % 100_003}") + "\n" for number in range(20_000))
    packed = gzip.compress(lines.encode())
    (path := tmp_path / "e.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    seen: list[Row] = []
    with pytest.raises(Misuse, match=r"cut short or damaged \(gzip\) after line \d+; copy it again"):
        seen.extend(read_rows(path))
    assert len(seen) > 1000
