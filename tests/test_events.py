"""Bytes are an event or a BadEvent that names its class, its field and what to do; nothing in between."""

import contextlib
import json
import re
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import BadEvent, Misuse
from recsys.events import (
    FUTURE_MS,
    MAX_DEPTH,
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
    check_arrival,
    decode_event,
    decode_with,
    encode_event,
    event_hash,
)

T = 1_700_000_000_000
IDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=128)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(st.sampled_from('a:{}[]"\\,é\n'), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["user", "x", "a:", '"']), inner),
    max_leaves=8,
)
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
        click(price=1).replace(b":1}", b":NaN}"),
        click(x="?").replace(b'"?"', b'"\xff"'),  # also where nobody would read it
        click(x="?").replace(b'"?"', b'"\\ud800"'),
    ],
)
def test_what_is_not_json_is_bad_at_decoding(data: bytes) -> None:
    with pytest.raises(BadEvent, match="not JSON") as caught:
        decode_event(data)
    assert caught.value.reason_class == "decode"


def test_a_tombstone_is_no_event_and_says_so() -> None:
    with pytest.raises(BadEvent, match="no bytes; a tombstone means nothing here"):
        decode_event(b"")


@pytest.mark.parametrize("depth", [MAX_DEPTH, 900, 130_000])
@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_is_bounded_even_where_nobody_looks(depth: int, pair: tuple[bytes, bytes]) -> None:
    def nested(levels: int) -> bytes:
        return b'{"x":' + pair[0] * levels + b"1" + pair[1] * levels + b"," + click()[1:]

    if len(nested(depth)) <= MAX_EVENT_BYTES:
        with pytest.raises(BadEvent, match="nested deeper than 32; send it flat") as caught:
            decode_event(nested(depth))
        assert caught.value.reason_class == "decode"
    assert decode_event(nested(MAX_DEPTH - 1)) == Click(user="u1", item="i1", ts_ms=T)


def test_nesting_is_bounded_in_rows_of_any_shape() -> None:
    rows = msgspec.json.Decoder(dict[str, Any])  # as files are read: the brackets may be those of a known field
    assert decode_with(rows, b'{"x":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}")
    with pytest.raises(BadEvent, match="nested deeper"):
        decode_with(rows, b'{"x":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}")


def test_brackets_in_a_text_are_not_nesting() -> None:
    assert decode_event(click(item='[{"' * 40)).item == '[{"' * 40  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (b'"user":"u2"', "user: a field is given twice; which one is meant"),
        (b'"user":"u1"', "user: a field"),
        (b'"\\u0075ser":"u2"', "a field is given twice"),
        (b'"x":1,"x":1', "x: a field"),
        (b'"x":{"a":":"},"item" : "i2"', "item: a field"),
        (b'"session":":","session":null', "session: a field"),
        (b'"quantity":1,"quantity":1,"a":"\\":\\"","b":[{}]', "quantity: a field"),
        (b'"\xc3\xa9":1,"\\u00e9":1', "a field is given twice"),
    ],
)
def test_a_field_given_twice_is_not_guessed(more: bytes, said: str) -> None:
    with pytest.raises(BadEvent, match=said) as caught:
        decode_event(click()[:-1] + b"," + more + b"}")
    assert caught.value.reason_class == "decode"


@given(
    st.lists(st.tuples(st.sampled_from(["user", "price", "x", "y:", "é", '"', "{", "\\"]), VALUES), max_size=6),
    st.data(),
)
def test_a_field_is_refused_exactly_if_it_is_there_twice(fields: list[tuple[str, Any]], data: st.DataObject) -> None:
    own = [("type", "click"), ("user", "u1"), ("item", "i:1"), ("ts_ms", T)]
    every = [*own, *((name, 1 if name == "price" else value) for name, value in fields if name != "user")]
    every += [("user", "u1")] * any(name == "user" for name, _ in fields)
    every = data.draw(st.permutations(every))
    escaped, space = data.draw(st.booleans()), data.draw(st.sampled_from(["", " ", "\n"]))
    pairs = [f"{json.dumps(n, ensure_ascii=escaped)}{space}:{json.dumps(v, ensure_ascii=escaped)}" for n, v in every]
    document = ("{" + ",".join(pairs) + "}").encode()
    twice = [name for name, count in Counter(name for name, _ in every).items() if count > 1]
    if twice:
        with pytest.raises(BadEvent, match="a field is given twice"):
            decode_event(document)
    else:
        assert decode_event(document).user == "u1"


@pytest.mark.parametrize("character", ["\0", "\n", "\r", "\t", "\x1b", "\x1f", "\x7f", "\x80", "\x9b", "\x9f"])
@pytest.mark.parametrize("field", ["user", "item", "id", "session", "slate"])
@pytest.mark.parametrize("escaped", [True, False])
def test_no_control_character_hides_in_an_id(character: str, field: str, escaped: bool) -> None:
    document = {"type": "click", "user": "u1", "item": "i1", "ts_ms": T, field: f"a{character}"}
    with pytest.raises(BadEvent, match=rf"{field}: a control character \(U\+{ord(character):04X}\)") as caught:
        decode_event(json.dumps(document, ensure_ascii=escaped).encode())
    assert caught.value.reason_class == "schema"
    shown = {"type": "impression", "user": "u1", "ts_ms": T, "items": ["i1", f"a{character}"]}
    with pytest.raises(BadEvent, match="items: a control character"):
        decode_event(json.dumps(shown, ensure_ascii=escaped).encode())


@pytest.mark.parametrize(
    "name", ["a/b", "a:b", "*", "a b", "../..", "日本", "مرحبا", "👩\u200d🚀", "\u202ea", "\\", '"', "%s{0}"]
)
def test_every_other_character_belongs_in_an_id(name: str) -> None:
    for data in (click(user=name, item=name), json.dumps({**json.loads(click()), "user": name}).encode()):
        assert decode_event(data).user == name


def test_a_query_may_be_any_text_since_its_user_typed_it() -> None:
    query = "a\0\t\n\x1b[2J\u202e"
    search = msgspec.json.encode({"type": "search", "user": "u", "ts_ms": T, "query": query})
    assert decode_event(search) == Search(user="u", ts_ms=T, query=query)


@given(st.text(st.sampled_from('\\ud8fc0123u"a'), max_size=16))
def test_an_id_can_always_be_written_again(text: str) -> None:
    with contextlib.suppress(BadEvent):
        decode_event(click(user="?").replace(b"?", text.encode())).user.encode()


def test_a_message_quotes_little_and_commands_no_terminal() -> None:
    with pytest.raises(BadEvent) as caught:
        decode_event(click(type="\x1b[2J\r\nERROR " + "x" * 100_000))
    said = str(caught.value)
    assert said.startswith("Invalid value '\ufffd[2J\ufffd\ufffdERROR xxx")
    assert said.endswith("at `type`")
    assert said.isprintable()
    assert len(said) < 300


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
        (click(price=1).replace(b":1}", b":1e400}"), "price"),
        (click(price=1).replace(b":1}", b":" + b"9" * 5000 + b"}"), "price"),
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


def test_an_event_may_be_a_day_ahead_of_the_broker_and_no_more() -> None:
    event = Click(user="u1", item="i1", ts_ms=T)
    for arrived_ms in (T - FUTURE_MS, T, T + 400 * 86_400_000):
        check_arrival(event, arrived_ms)
    with pytest.raises(BadEvent, match=r"ts_ms: 1700000000000 was 24\.0 h ahead when it arrived") as caught:
        check_arrival(event, T - FUTURE_MS - 1)
    assert caught.value.reason_class == "range"


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
    assert event_hash(one, b"1") == event_hash(one, b"2")
    assert event_hash(one, b"1")[:6] == event_hash(other, b"1")[:6]
    assert event_hash(one, b"1") != event_hash(other, b"1")
    nameless = Click(user="u1", item="i1", ts_ms=T)
    assert event_hash(nameless, b"1") != event_hash(nameless, b"2")
    assert (len(event_hash(one, b"1")), len(event_hash(nameless, b"1"))) == (8, 6)


def test_spaces_order_and_unknown_fields_make_no_other_event() -> None:
    plain = b'{"type":"click","user":"u1","item":"i1","ts_ms":1700000000000,"id":"a","price":2}'
    again = (
        b'{ "id":"\\u0061","price":2.0, "colour":"red","ts_ms":1700000000000,"user":"u1","item":"i1","type":"click"}'
    )
    assert event_hash(decode_event(plain), plain) == event_hash(decode_event(again), again)


def test_the_name_of_an_event_is_the_same_in_every_process_and_release() -> None:
    # Stored in every profile: whoever changes it makes conflicts of repeats.
    event = Purchase(user="u1", item="i1", ts_ms=T, id="a", price=2.5)
    assert (event_hash(event, b"").hex(), event_hash(Click(user="u", item="i", ts_ms=T), b"x").hex()) == (
        "433911c6eb0da929",
        "0a7651f82b16",
    )
