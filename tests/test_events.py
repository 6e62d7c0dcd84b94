"""Bytes are an event or a BadEvent that names its class, its field and what to do; nothing in between."""

import contextlib
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import BadEvent, Misuse
from recsys.events import (
    MAX_EVENT_BYTES,
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
    event_hash,
)

T = 1_700_000_000_000
IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128)
COMMON = {"user": IDS, "ts_ms": st.integers(TS_MIN_MS, TS_MAX_MS), "session": st.none() | IDS, "id": IDS | st.just("")}
ON_ITEM = COMMON | {"item": IDS, "slate": st.none() | IDS, "price": st.none() | st.floats(0, 1e9)}
QUANTITY = {"quantity": st.floats(0, 1e9)}
EVENTS = st.one_of(
    st.builds(Click, **ON_ITEM),
    st.builds(View, **ON_ITEM),
    st.builds(Cart, **ON_ITEM, **QUANTITY),
    st.builds(Purchase, **ON_ITEM, **QUANTITY),
    st.builds(Search, **COMMON, query=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=1000)),
    st.builds(Impression, **COMMON, items=st.lists(IDS, min_size=1, max_size=5).map(tuple)),
)


def click(**fields: Any) -> bytes:
    return msgspec.json.encode({"type": "click", "user": "u1", "item": "i1", "ts_ms": T} | fields)


@given(EVENTS)
def test_every_event_survives_its_bytes(event: Event) -> None:
    assert decode_event(encode_event(event)) == event


@given(st.binary(max_size=60))
def test_any_bytes_are_an_event_or_a_named_bad_event(data: bytes) -> None:
    with contextlib.suppress(BadEvent):
        decode_event(data)


@pytest.mark.parametrize(("kind", "cls"), [("click", Click), ("view", View), ("cart", Cart), ("purchase", Purchase)])
def test_the_type_says_the_kind_and_optional_fields_may_be_missing(kind: str, cls: type[Click]) -> None:
    assert decode_event(click(type=kind)) == cls(user="u1", item="i1", ts_ms=T)


def test_unknown_fields_are_tolerated_so_a_shop_can_add_one_first() -> None:
    assert decode_event(click(colour="red", deep={"er": [1, None]})) == Click(user="u1", item="i1", ts_ms=T)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"{",
        b"\xef\xbb\xbf" + click(),  # a byte-order mark
        click().decode().encode("utf-16"),
        click()[:-1],
        click() + b"x",
        click() + click(),
        click(user="u").replace(b'"u"', b'"\xff"'),
        click(user="u").replace(b'"u"', b'"\\ud800"'),  # half of a surrogate pair is no text
        click(price=1).replace(b":1,", b":NaN,").replace(b":1}", b":NaN}"),
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_not_json_is_bad_at_decoding(data: bytes) -> None:
    with pytest.raises(BadEvent, match="not JSON") as caught:
        decode_event(data)
    assert caught.value.reason_class == "decode"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"null", "object"),
        (b"[]", "object"),
        (b"1", "object"),
        (b"{}", "type"),
        (click(type="klick"), "klick"),
        (click(type="Click"), "Click"),
        (click(type=1), "type"),
        (click(user=7), "user"),
        (click(item=None), "item"),
        (click(ts_ms=str(T)), "ts_ms"),
        (click(ts_ms=True), "ts_ms"),
        (click(price="12.5"), "price"),
        (b'{"type":"click","user":"u1","ts_ms":1700000000000}', "item"),
        (b'{"type":"search","user":"u1","ts_ms":1700000000000}', "query"),
        (b'{"type":"impression","user":"u1","ts_ms":1700000000000,"items":"i1"}', "items"),
    ],
)
def test_json_of_another_shape_is_bad_by_schema_and_names_the_field(data: bytes, said: str) -> None:
    with pytest.raises(BadEvent, match=said) as caught:
        decode_event(data)
    assert caught.value.reason_class == "schema"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (click(user=""), "user"),
        (click(item="i" * 129), "item"),
        (click(price=-0.01), "price"),
        (click(price=1.1e9), "price"),
        (click(type="purchase", quantity=-1), "quantity"),
        (msgspec.json.encode({"type": "search", "user": "u", "ts_ms": T, "query": ""}), "query"),
        (msgspec.json.encode({"type": "search", "user": "u", "ts_ms": T, "query": "x" * 1001}), "query"),
        (msgspec.json.encode({"type": "impression", "user": "u", "ts_ms": T, "items": []}), "items"),
        (msgspec.json.encode({"type": "impression", "user": "u", "ts_ms": T, "items": ["i"] * 201}), "items"),
    ],
)
def test_a_value_out_of_its_range_is_named(data: bytes, said: str) -> None:
    with pytest.raises(BadEvent, match=said) as caught:
        decode_event(data)
    assert caught.value.reason_class == "range"


@pytest.mark.parametrize("ts_ms", [T // 1000, T * 1000, 0, -1, TS_MIN_MS - 1, TS_MAX_MS + 1, 10**30])
def test_a_time_in_another_unit_is_told_how_to_convert(ts_ms: int) -> None:
    with pytest.raises(BadEvent, match="multiply seconds by 1000, divide microseconds by 1000") as caught:
        decode_event(b'{"type":"click","user":"u1","item":"i1","ts_ms":%d}' % ts_ms)
    assert caught.value.reason_class == "range"
    assert re.search(str(ts_ms)[:20], str(caught.value))


@pytest.mark.parametrize("ts_ms", [TS_MIN_MS, TS_MAX_MS])
def test_the_ends_of_the_time_range_belong_to_it(ts_ms: int) -> None:
    assert decode_event(click(ts_ms=ts_ms)).ts_ms == ts_ms


def test_too_many_bytes_are_refused_before_they_are_read() -> None:
    with pytest.raises(BadEvent, match="over the limit") as caught:
        decode_event(b"[" * (MAX_EVENT_BYTES + 1))
    assert caught.value.reason_class == "oversize"
    padded = click()[:-1] + b" " * (MAX_EVENT_BYTES - len(click())) + b"}"
    assert decode_event(padded) == Click(user="u1", item="i1", ts_ms=T)


def test_a_bad_event_is_the_callers_to_mend() -> None:
    assert issubclass(BadEvent, Misuse)
    assert BadEvent("schema", "x").exit_code == 2


def test_an_event_is_named_by_its_id_and_without_one_by_its_bytes() -> None:
    one, other = (Click(user="u1", item=item, ts_ms=T, id="a") for item in ("i1", "i2"))
    assert event_hash(one, b"1") == event_hash(other, b"2")
    nameless = Click(user="u1", item="i1", ts_ms=T)
    assert event_hash(nameless, b"1") != event_hash(nameless, b"2")
    assert len(event_hash(nameless, b"1")) == len(event_hash(one, b"1")) == 6
