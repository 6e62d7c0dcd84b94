"""Times in shops' files: converted where their unit is said, and otherwise a named error that proposes one."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from file_helpers import read, write
from hypothesis import given
from hypothesis import strategies as st

from models.presets import Kind
from models.times import to_ms
from recsys.errors import BadEvent
from recsys.events import TS_MAX_MS, TS_MIN_MS


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


@given(st.integers(TS_MIN_MS, TS_MAX_MS))
def test_a_time_in_any_unit_is_the_same_time(ms: int) -> None:
    assert to_ms(ms, "ms") == to_ms(ms * 1000, "us") == to_ms(ms * 1_000_000, "ns") == ms
    assert to_ms(ms // 1000, "s") == ms // 1000 * 1000


@given(st.none() | st.booleans() | st.floats() | st.text() | st.integers() | st.lists(st.integers()))
def test_any_time_is_a_time_in_range_or_a_named_error(value: Any) -> None:
    with contextlib.suppress(BadEvent):
        assert TS_MIN_MS <= to_ms(value, "s") <= TS_MAX_MS


def test_an_event_of_a_day_that_has_not_come_is_rejected_as_rankers_would(tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    row = {"type": "click", "user": "u1", "item": "i1"}
    lines = [{**row, "ts_ms": now_ms + hours * 3_600_000} for hours in (-1, 20, 30)]
    rows = read(write(tmp_path / "e.jsonl", "\n".join(map(json.dumps, lines))))
    assert [row.event is not None for row in rows] == [True, True, False]
    assert isinstance(rows[2].error, BadEvent)
    assert rows[2].error.reason_class == "range"
    assert rows[2].raw == json.dumps(lines[2]).encode()
