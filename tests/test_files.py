"""Reading shops' files: the same events in any format, and columns that are called otherwise."""

import doctest
import gzip
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from file_helpers import CLICK, RETAIL, loaded, read, write, write_csv
from hypothesis import HealthCheck, given
from hypothesis import settings as trials
from hypothesis import strategies as st
from pyarrow import parquet

import models.files
import models.presets
from models.files import event_id, parse_map, read_rows
from recsys.errors import Misuse
from recsys.events import (
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

# Cells of a CSV are trimmed, and | separates a list: texts that stay themselves in every format.
texts = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="|"), min_size=1, max_size=20
)
ids = texts.map(str.strip).filter(bool)
times = st.integers(TS_MIN_MS, time.time_ns() // 1_000_000)  # later ones are rejected
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


@given(events)
def test_every_event_survives_encoding_and_decoding(event: Event) -> None:
    assert decode_event(encode_event(event)) == event


def plain(event: Event) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.json.decode(encode_event(event))
    return fields


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


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl"])
def test_a_type_for_every_row_is_for_those_whose_column_says_none(tmp_path: Path, name: str) -> None:
    cells = [("click", "i1"), ("", "i2"), ("view", "i3")]
    table = "type,user,item,ts\n" + "".join(f"{kind},u1,{item},1700000000\n" for kind, item in cells)
    objects = [{"type": kind or None, "user": "u1", "item": item, "ts": 1700000000} for kind, item in cells]
    text = table if name.endswith("csv") else "\n".join(map(json.dumps, objects))
    found = loaded(write(tmp_path / name, text), event_type="purchase")
    assert list(map(type, found)) == [Click, Purchase, View]


def test_fields_that_first_appear_late_in_a_file_are_read(tmp_path: Path) -> None:
    late = '{"type":"search","user":"u1","query":"mug","ts_ms":1700000000000}'
    assert isinstance(loaded(write(tmp_path / "e.jsonl", f"{CLICK}\n" * 1500 + late))[-1], Search)


def test_json_in_our_own_fields_is_as_strict_as_kafka(tmp_path: Path) -> None:
    lines = [
        CLICK.replace('"u1"', "17"),
        CLICK.replace("}", ',"price":"9.5"}'),
        CLICK.replace("}", ',"price":-1}'),
        CLICK.replace("}", ',"colour":"red"}'),
    ]
    rows = read(write(tmp_path / "e.jsonl", "\n".join(lines)))
    assert [row.error.reason_class if row.error else "ok" for row in rows] == ["schema", "schema", "range", "ok"]


@pytest.mark.parametrize("text", ["Crème brûlée", "naïve £5 mug", "Blåbærgrød", "“Smørrebrød” – ½", "££ off"])
def test_western_text_of_a_spreadsheet_is_read(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "items.csv").write_bytes(f"item,title\na,{text}\n".encode("cp1252"))
    (row,) = read_rows(path, "items")
    assert row.item is not None
    assert row.item.title == text


@pytest.mark.parametrize("module", [models.files, models.presets])
def test_the_examples_in_the_docstrings_are_true(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
