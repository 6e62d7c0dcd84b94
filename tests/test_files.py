"""Reading shops' files: three formats, two public layouts, and every way a file can be wrong."""

import contextlib
import csv
import doctest
import gzip
import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as trials
from hypothesis import strategies as st
from pyarrow import parquet

import models.files
import models.presets
from models.files import Row, event_id, parse_map, read_rows
from models.presets import PRESETS, Kind, find_complete_journey
from models.times import to_ms
from recsys.errors import BadEvent, Misuse
from recsys.events import (
    TS_MAX_MS,
    TS_MIN_MS,
    Cart,
    Click,
    Event,
    Impression,
    Purchase,
    Search,
    View,
    decode_event,
    encode_event,
)

RETAIL = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
CLICK = '{"type":"click","user":"u1","item":"i1","ts_ms":1700000000000}'

# Cells of a CSV are trimmed, and | separates a list: texts that stay themselves in every format.
texts = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="|"), min_size=1, max_size=20
)
ids = texts.map(str.strip).filter(bool)
times = st.integers(TS_MIN_MS, TS_MAX_MS)
amounts = st.floats(0, 1e9)
sessions = st.none() | ids
base: dict[str, Any] = {"user": ids, "ts_ms": times, "session": sessions, "id": ids}
on_item = {**base, "item": ids, "slate": sessions, "price": st.none() | amounts}
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Click, **on_item),
    st.builds(View, **on_item),
    st.builds(Cart, **on_item, quantity=amounts),
    st.builds(Purchase, **on_item, quantity=amounts),
    st.builds(Search, **base, query=ids),
    st.builds(Impression, **base, items=st.lists(ids, min_size=1, max_size=5).map(tuple), slate=sessions),
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def read(path: Path, *args: Any, **more: Any) -> list[Row]:
    return list(read_rows(path, *args, **more))


def loaded(path: Path, *args: Any, **more: Any) -> list[Event]:
    rows = read(path, *args, **more)
    assert [row.error for row in rows if row.error] == []
    return [row.event for row in rows if row.event]


def plain(event: Event) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.json.decode(encode_event(event))
    return fields


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as out:
        table = csv.DictWriter(out, names, delimiter=delimiter)
        table.writeheader()
        for row in rows:
            table.writerow({key: "|".join(v) if isinstance(v, list) else v for key, v in row.items()})
    return path


@given(events)
def test_every_event_survives_encoding_and_decoding(event: Event) -> None:
    assert decode_event(encode_event(event)) == event


@given(st.lists(events, min_size=1, max_size=8))
@trials(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_same_rows_in_any_format_are_the_same_events(wanted: list[Event]) -> None:
    rows = [plain(event) for event in wanted]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with tempfile.TemporaryDirectory() as folder:
        lines = b"".join(encode_event(event) + b"\n" for event in wanted)
        (jsonl := Path(folder, "e.jsonl")).write_bytes(lines)
        Path(folder, "e.jsonl.gz").write_bytes(gzip.compress(lines))
        table = write_csv(Path(folder, "e.csv"), rows)
        Path(folder, "e.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
        parquet.write_table(
            pa.table({name: [row.get(name) for row in rows] for name in names}), Path(folder, "e.parquet")
        )
        assert loaded(jsonl) == wanted
        for name in ("e.jsonl.gz", "e.csv", "e.csv.gz", "e.parquet"):
            assert loaded(Path(folder, name)) == wanted, name


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_may_be_separated_by_comma_semicolon_or_tab(tmp_path: Path, delimiter: str) -> None:
    rows = [{"type": "search", "user": "u1", "ts_ms": 1700000000000, "query": 'a "red", mug; big\nand\tround'}]
    [event] = loaded(write_csv(tmp_path / "e.csv", rows, delimiter))
    assert isinstance(event, Search)
    assert event.query == rows[0]["query"]


def test_an_event_without_an_id_gets_the_same_one_in_every_format_and_at_every_reading(tmp_path: Path) -> None:
    rows = [{"type": "click", "user": "u1", "item": "i1", "ts_ms": 1700000000000}]
    [one] = loaded(write(tmp_path / "e.jsonl", CLICK + "\n"))
    [two] = loaded(write_csv(tmp_path / "e.csv", rows))
    [view] = loaded(write(tmp_path / "v.jsonl", CLICK.replace("click", "view")))
    assert one == two
    assert one.id == event_id(one)
    assert view.id != one.id  # a click and a view in one second are two events


def test_times_are_converted_only_where_their_unit_is_said(tmp_path: Path) -> None:
    row = {"type": "click", "user": "u1", "item": "i1"}
    lines = [
        {**row, "ts": 1700000000},
        {**row, "ts": 1700000000.5},
        {**row, "ts_us": 1700000000000000},
        {**row, "ts_ms": "2023-11-14T23:13:20+01:00"},
        {**row, "ts_ms": 1700000000000},
        {**row, "ts_ms": 1700000000},
        {**row, "ts_ms": "1700000000000"},
        {**row, "ts": 1700000000000},
        {**row, "ts": "yesterday"},
        {**row, "ts": 10**400},
        {**row, "ts": True},
    ]
    rows = read(write(tmp_path / "e.jsonl", "\n".join(map(json.dumps, lines))))
    assert [row.event.ts_ms - 1700000000000 for row in rows if row.event] == [0, 500, 0, 0, 0]
    assert [row.note for row in rows[:5]] == [
        "ts: s to ms",
        "ts: s to ms",
        "ts_us: us to ms",
        "ts_ms: ISO 8601 to ms",
        "",
    ]
    errors = [(row.error.reason_class, str(row.error)) for row in rows if row.error]
    assert [reason for reason, _ in errors] == ["range", "schema", "range", "schema", "range", "schema"]
    assert "multiply seconds by 1000" in errors[0][1]
    assert errors[2][1].endswith("it looks like ms: map it as ts_ms")


@pytest.mark.parametrize(("kind", "field"), [("events", "ts"), ("items", "first_ts")])
def test_the_unit_that_an_error_proposes_can_be_mapped_so(tmp_path: Path, kind: Kind, field: str) -> None:
    for unit, value in (("s", 1700000000), ("us", 1700000000000000), ("ns", 1700000000000000000)):
        path = write(tmp_path / "e.csv", f"type,user,item,title,when\nclick,u1,i1,Mug,{value}\n")
        [row] = read(path, kind, columns={f"{field}_ms": "when"})
        proposed = str(row.error).rpartition("map it as ")[2]
        [row] = read(path, kind, columns={proposed: "when"})
        assert row.note == f"when: {unit} to ms"


def test_columns_of_other_names_are_mapped_and_numbers_serve_as_ids(tmp_path: Path) -> None:
    table = write(tmp_path / "sales.csv", "\ufeffcustomer, sku ,when,n\n17, a ,1700000000,2\n18,b,1700000001,\n")
    columns = parse_map(["user=customer,item=sku", "ts_s=when", "quantity=n"])
    one, two = loaded(table, columns=columns, event_type="purchase")
    assert (one.user, one.ts_ms) == ("17", 1700000000000)
    assert isinstance(one, Purchase)
    assert (one.item, one.quantity) == ("a", 2.0)
    assert isinstance(two, Purchase)
    assert two.quantity == 1.0
    parquet.write_table(
        pa.table(
            {
                "customer": [17.0, 18.0],  # what pandas makes of integers beside a gap
                "sku": ["a", "b"],
                "when": pa.array([1700000000000, 1700000001000], pa.timestamp("ms")),
                "n": [2, None],
            }
        ),
        tmp_path / "sales.parquet",
    )
    columns = parse_map(["user=customer,item=sku,ts_ms=when,quantity=n"])
    assert loaded(tmp_path / "sales.parquet", columns=columns, event_type="purchase") == [one, two]


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl"])
def test_a_type_for_every_row_is_for_those_whose_column_says_none(tmp_path: Path, name: str) -> None:
    cells = [("click", "i1"), ("", "i2"), ("view", "i3")]
    table = "type,user,item,ts\n" + "".join(f"{kind},u1,{item},1700000000\n" for kind, item in cells)
    objects = [{"type": kind or None, "user": "u1", "item": item, "ts": 1700000000} for kind, item in cells]
    text = table if name.endswith("csv") else "\n".join(map(json.dumps, objects))
    found = loaded(write(tmp_path / name, text), event_type="purchase")
    assert list(map(type, found)) == [Click, Purchase, View]


def test_json_in_our_own_fields_is_as_strict_as_kafka(tmp_path: Path) -> None:
    lines = [
        CLICK.replace('"u1"', "17"),
        CLICK.replace("}", ',"price":"9.5"}'),
        CLICK.replace("}", ',"price":-1}'),
        CLICK.replace("}", ',"colour":"red"}'),
    ]
    rows = read(write(tmp_path / "e.jsonl", "\n".join(lines)))
    assert [row.error.reason_class if row.error else "ok" for row in rows] == ["schema", "schema", "range", "ok"]


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


def test_an_oversize_line_is_put_aside_whole(tmp_path: Path) -> None:
    long = CLICK.replace("}", f',"note":"{"x" * 300_000}"}}')
    [row, _] = read(write(tmp_path / "e.jsonl", f"{long}\n{CLICK}\n"))
    assert row.error is not None
    assert row.error.reason_class == "oversize"
    assert row.raw == long.encode()


@pytest.mark.parametrize(
    ("text", "encoding"), [("红色马克杯", "gb18030"), ("빨간 머그컵", "euc-kr"), ("赤い杯", "euc-jp")]
)
def test_a_two_byte_encoding_is_refused_and_not_read_as_nonsense(tmp_path: Path, text: str, encoding: str) -> None:
    (path := tmp_path / "items.csv").write_bytes(f"item,title\na,Red mug\nb,{text}\n".encode(encoding))
    with pytest.raises(Misuse, match=r"items\.csv line 3 is neither UTF-8 nor Windows-1252: .*iconv"):
        list(read_rows(path, "items"))


@pytest.mark.parametrize("text", ["Crème brûlée", "naïve £5 mug", "Blåbærgrød", "“Smørrebrød” – ½", "££ off"])
def test_western_text_of_a_spreadsheet_is_read(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "items.csv").write_bytes(f"item,title\na,{text}\n".encode("cp1252"))
    (row,) = read_rows(path, "items")
    assert row.item is not None
    assert row.item.title == text


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


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": "CustomerId"}, "no column 'CustomerId' (did you mean 'CustomerID'?)"),
        ({"usr": "CustomerID"}, "no field 'usr' (did you mean 'user'?)"),
    ],
)
def test_a_wrong_mapping_names_the_nearest(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    with pytest.raises(Misuse) as error:
        read(write(tmp_path / "r.csv", RETAIL + "\n"), columns=columns)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["user", "user=", "=x", ""])
def test_a_mapping_must_be_field_equals_column(text: str) -> None:
    with pytest.raises(Misuse, match="write field=column"):
        parse_map([text])


def test_fields_that_first_appear_late_in_a_file_are_read(tmp_path: Path) -> None:
    late = '{"type":"search","user":"u1","query":"mug","ts_ms":1700000000000}'
    assert isinstance(loaded(write(tmp_path / "e.jsonl", f"{CLICK}\n" * 1500 + late))[-1], Search)


# --- the public layouts -----------------------------------------------------------------------------------------------


def retail(tmp_path: Path, *lines: str) -> Path:
    (path := tmp_path / "Online Retail.csv").write_bytes("\r\n".join([RETAIL, *lines, ""]).encode("cp1252"))
    return path


def test_online_retail_keeps_sales_of_products_to_customers(tmp_path: Path) -> None:
    path = retail(
        tmp_path,
        '536365,85123a,"WHITE  HANGING ""HEART"", £2 ",6,12/1/2010 8:26,2.55,17850,United Kingdom',
        "536365,POST,POSTAGE,1,12/1/2010 8:26,18,17850,United Kingdom",
        "536365,71053,WHITE METAL LANTERN,6,12/1/2010 8:26,3.39,17850,United Kingdom",
        "536365,85123A,WHITE HANGING HEART,2,12/1/2010 8:26,2.95,17850,United Kingdom",
        "C536366,71053,WHITE METAL LANTERN,-6,12/1/2010 8:28,3.39,17850,United Kingdom",
        "536367,71053,WHITE METAL LANTERN,6,12/1/2010 8:34,3.39,,United Kingdom",
        "536368,71053,WHITE METAL LANTERN,-6,12/1/2010 8:34,3.39,13047,United Kingdom",
        "536369,71053,WHITE METAL LANTERN,6,12/1/2010 8:34,0,13047,United Kingdom",
        "536370,71053,WHITE METAL LANTERN,6,2010-12-01 08:45:00,3.39,12583.0,France",
        "536371,71053,WHITE METAL LANTERN,6,13/12/2010 8:45,3.39,12583.0,France",
        "536372,71053,WHITE METAL LANTERN,six,12/1/2010 8:45,3.39,12583.0,France",
    )
    rows = read(path, preset=PRESETS["online-retail"])
    by_line = {row.line: row for row in rows}
    assert len(rows) == len(by_line) == 11
    sale = by_line[2].event
    assert isinstance(sale, Purchase)
    assert (sale.user, sale.item, sale.session, sale.ts_ms) == ("17850", "85123A", "536365", 1291191960000)
    assert (sale.quantity, sale.price) == (8.0, 2.65)  # (6 · 2.55 + 2 · 2.95) / 8
    assert by_line[5].note == "merged into line 2"
    assert by_line[10].event is not None
    assert (by_line[10].event.user, by_line[10].event.ts_ms) == ("12583", 1291193100000)
    reasons = {line: str(row.error).split(":")[0] for line, row in by_line.items() if row.error}
    assert reasons == {
        3: "StockCode 'POST' is no product (postage, fee, correction)",
        6: "InvoiceNo 'C536366'",
        7: "CustomerID",
        8: "Quantity",
        9: "UnitPrice",
        11: "InvoiceDate '13/12/2010 8",
        12: "Quantity",
    }
    assert by_line[7].raw == b"536367,71053,WHITE METAL LANTERN,6,12/1/2010 8:34,3.39,,United Kingdom\r"
    items = [row.item for row in read(path, "items", PRESETS["online-retail"]) if row.item]
    assert [(item.item, item.title, item.first_ts_ms) for item in items] == [
        ("85123A", 'White hanging "heart", £2', 1291191960000),
        ("71053", "White metal lantern", 1291191960000),
    ]


def test_complete_journey_is_read_from_its_wheel() -> None:
    folder, preset = find_complete_journey(), PRESETS["complete-journey"]
    rows = list(itertools.islice(read_rows(folder / "transactions.parquet", "events", preset), 200))
    sale = rows[0].event
    assert isinstance(sale, Purchase)
    assert (sale.user, sale.item, sale.session) == ("900", "1095275", "31198570044")
    assert (sale.ts_ms, sale.price, sale.quantity) == (1483271606000, 0.5, 1.0)  # 2017-01-01 11:53:26
    [fuel] = [row for row in rows if row.line == 52]
    assert str(fuel.error) == "product 6534178 is of department FUEL"
    assert json.loads(fuel.raw)["sales_value"] == 20.06
    items = list(itertools.islice(read_rows(folder / "products.parquet", "items", preset), 5))
    first = items[0].item
    assert first is not None
    assert (first.title, first.category) == (
        "Ice - crushed/cubed, 22 lb, maker 2",
        "grocery > frzn ice > ice - crushed/cubed",
    )
    assert str(items[1].error) == "product 26081 is of department MISCELLANEOUS"
    assert items[2].item is not None
    assert items[2].item.title == "Bread:italian/french, maker 69, own brand"


def test_complete_journey_needs_both_files(tmp_path: Path) -> None:
    source = find_complete_journey() / "transactions.parquet"
    (tmp_path / "transactions.parquet").symlink_to(source)
    with pytest.raises(Misuse, match=r"need products.parquet beside them"):
        read_rows(tmp_path / "transactions.parquet", "events", PRESETS["complete-journey"])


@given(st.integers(TS_MIN_MS, TS_MAX_MS))
def test_a_time_in_any_unit_is_the_same_time(ms: int) -> None:
    assert to_ms(ms, "ms") == to_ms(ms * 1000, "us") == to_ms(ms * 1_000_000, "ns") == ms
    assert to_ms(ms // 1000, "s") == ms // 1000 * 1000


@given(st.none() | st.booleans() | st.floats() | st.text() | st.integers() | st.lists(st.integers()))
def test_any_time_is_a_time_in_range_or_a_named_error(value: Any) -> None:
    with contextlib.suppress(BadEvent):
        assert TS_MIN_MS <= to_ms(value, "s") <= TS_MAX_MS


@pytest.mark.parametrize("module", [models.files, models.presets])
def test_the_examples_in_the_docstrings_are_true(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
