"""What can happen in the shop, as the bytes on Kafka say it.

Six kinds of event, one tagged union, JSON. Optional fields may be missing and unknown ones are tolerated, so a
shop can add a field before we know it. Nothing here repairs an event: bytes are an event or a `BadEvent`.
The bytes come from strangers. msgspec refuses most of what is no JSON (NaN, 1e400, half a surrogate pair, UTF-16,
trailing bytes); what it lets through is closed in `_look_closer`: depth, a field given twice, bytes that are no UTF-8
where it does not look, control characters in ids. Any other character is data.
Called by the loader, the worker and the training replay.
"""

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from recsys.errors import UNREADABLE, BadEvent

EVENT_SCHEMA = "slatecast.event.v1"  # in the record header `schema`; fields are only ever added
MAX_EVENT_BYTES = 256 * 1024  # far above a real event, far below the broker's 1 MB record limit
MAX_DEPTH = 32  # objects and lists within each other; our own fields need 2
TS_MIN_MS, TS_MAX_MS = 946_684_800_000, 4_102_444_800_000  # 2000..2100: outside it is seconds or microseconds
FUTURE_MS = 24 * 3_600_000  # far above a clock that is an hour wrong, or one that takes its zone for UTC

Id = Annotated[str, Meta(min_length=1, max_length=128)]
TsMs = Annotated[int, Meta(ge=TS_MIN_MS, le=TS_MAX_MS)]
Amount = Annotated[float, Meta(ge=0, le=1e9)]


class Behaviour(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag_field="type"):
    """What every event knows (no reference cycles: the garbage collector need not look).

    `id` is the shop's own; without one, equal bytes are the same event.
    """

    user: Id
    ts_ms: TsMs
    id: Annotated[str, Meta(max_length=128)] = ""
    session: Annotated[str, Meta(max_length=128)] | None = None


class OnItem(Behaviour, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An event about one item. `slate` is the list it was chosen from, if any."""

    item: Id
    slate: Annotated[str, Meta(max_length=128)] | None = None
    price: Amount | None = None


class Click(OnItem, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="click"):
    """The user opened the item from a list."""


class View(OnItem, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="view"):
    """The item's page was looked at."""


class Cart(OnItem, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="cart"):
    """The item was put into the cart."""

    quantity: Amount = 1.0


class Purchase(OnItem, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="purchase"):
    """The item was bought; `price` is per unit."""

    quantity: Amount = 1.0


class Search(Behaviour, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="search"):
    """The user typed a query, in any language."""

    query: Annotated[str, Meta(min_length=1, max_length=1000)]


class Impression(Behaviour, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="impression"):
    """A list was seen: the items in the order shown."""

    items: Annotated[tuple[Id, ...], Meta(min_length=1, max_length=200)]
    slate: Annotated[str, Meta(max_length=128)] | None = None


T = TypeVar("T")
Event = Click | View | Cart | Purchase | Search | Impression

_event_decoder: "msgspec.json.Decoder[Event]" = msgspec.json.Decoder(Event)
_event_encoder = msgspec.json.Encoder()
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_pack = msgspec.msgpack.Encoder().encode
_RANGE = re.compile(r"(>=|<=|length|out of range)")
_ESCAPE = re.compile(rb"\\.")
_KEY = re.compile(rb'"([^"\\]*+)"\s*:')
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode's Cc
_ID_FIELDS = ("user", "item", "id", "session", "slate")
_DULL = bytes(sorted({*range(128)} - {*b"{[:\\\x7f"}))  # the bytes in which nothing can hide
_TOO_DEEP = f"objects and lists are nested deeper than {MAX_DEPTH}; send it flat"
_FLAT = tuple(b"{" + b":" * fields for fields in range(16))
_NOT_STRUCTURE = bytes(sorted({*range(256)} - {*b"{}[]:"}))


def decode_event(data: bytes) -> Event:
    """Bytes of a Kafka record as an event.

    Raises BadEvent (class decode, schema, range or oversize) that names the field and what to do. 200 B of known
    fields take 1.3 µs (.5 µs are msgspec's), 5 µs where a nested field or a character beyond ASCII asks for a closer
    look, 256 KB at worst 20 ms.

    >>> decode_event(b'{"type":"click","user":"u1","item":"i1","ts_ms":1700000000000}').item
    'i1'
    >>> decode_event(b'{"type":"click","user":"u1","item":"i1","ts_ms":1700000000}')
    Traceback (most recent call last):
    recsys.errors.BadEvent: ts_ms: 1700000000 is not milliseconds since 1970 within 2000..2100; ...
    """
    return decode_with(_event_decoder, data)


def decode_with(decoder: "msgspec.json.Decoder[T]", data: bytes) -> T:
    """Decode JSON by one msgspec decoder, its errors named as ours: the rule for events and items alike."""
    if len(data) > MAX_EVENT_BYTES:
        raise BadEvent("oversize", f"{len(data)} bytes are over the limit of {MAX_EVENT_BYTES}; send less text")
    try:
        found = decoder.decode(data)
        # The usual record is flat ASCII without escapes and has as many colons as known fields, so none of them twice.
        # A struct's number of fields is in the first byte of MessagePack: the cheapest way to ask for it (.3 µs).
        fields = len(found) if isinstance(found, dict) else _pack(found)[0]
        shape = data.translate(None, _DULL).replace(b"[", b"", MAX_DEPTH - 1)
        if shape != _FLAT[fields & 15]:
            _look_closer(found, data, bool(shape.strip(b"{[:")))
    except msgspec.ValidationError as error:
        raise _name(error, data) from None
    except RecursionError:
        raise BadEvent("decode", _TOO_DEEP) from None
    except UNREADABLE as error:
        why = str(error) if data else "no bytes; a tombstone means nothing here"
        raise BadEvent("decode", f"not JSON: {why}") from None
    return found


def encode_event(event: Event) -> bytes:
    """An event as the bytes on Kafka; `decode_event` gives it back.

    >>> encode_event(Search(user="u1", ts_ms=1700000000000, query="red mug"))
    b'{"type":"search","user":"u1","ts_ms":1700000000000,"query":"red mug"}'
    """
    return _event_encoder.encode(event)


def check_arrival(event: Event, arrived_ms: int) -> None:
    """Raise BadEvent (range) for an event from the future: newer than its arrival, on Kafka or in a file, by over 24 h.

    A profile keeps the newest, so one such event would outlive all that follow. Old ones are history, and welcome.

    >>> e = Click(user="u1", item="i1", ts_ms=1_700_000_000_000)
    >>> check_arrival(e, arrived_ms=e.ts_ms - 3_600_000)
    >>> check_arrival(e, arrived_ms=e.ts_ms - 90_000_000)
    Traceback (most recent call last):
    recsys.errors.BadEvent: ts_ms: 1700000000000 was 25.0 h ahead when it arrived; correct it, or its sender's clock (UTC)
    """
    if event.ts_ms > arrived_ms + FUTURE_MS:
        hours = (event.ts_ms - arrived_ms) / 3_600_000
        raise BadEvent(
            "range",
            f"ts_ms: {event.ts_ms} was {hours:.1f} h ahead when it arrived; correct it, or its sender's clock (UTC)",
        )


def event_hash(event: Event, data: bytes) -> bytes:
    """What names a user's event for ever: 8 bytes with an id, 6 without.

    Six bytes of the id and two of a checksum of what it says, by which the same id on another event is seen (but for
    one in 65,536). The checksum is of our own encoding: spaces, order and unknown fields make no other event. Without
    an id, six bytes of its bytes. Stored in profiles: neither may change. 1 µs.

    >>> e = Click(user="u1", item="i1", ts_ms=1700000000000, id="a")
    >>> event_hash(e, b"one encoding") == event_hash(e, b"another")
    True
    """
    if not event.id:
        return hashlib.blake2b(data, digest_size=6).digest()
    body = zlib.crc32(_event_encoder.encode(event)) & 0xFFFF
    return hashlib.blake2b(event.id.encode(), digest_size=6).digest() + body.to_bytes(2)


def _look_closer(found: object, data: bytes, texts: bool) -> None:
    """What msgspec lets through and we do not; data is JSON but for its UTF-8. texts: something may hide in them."""
    fields = _fields_decoder.decode(data)
    # Every key has its colon: with no more of them than different keys, none is there twice.
    if data.count(b":") > len(fields) or data.count(b"{") + data.count(b"[") > MAX_DEPTH:
        _walk(data, fields)
    if texts:
        data.decode()  # msgspec does not look at the text of unknown fields; raises UnicodeDecodeError
        if isinstance(found, msgspec.Struct):
            for name in _ID_FIELDS:
                _check_id(name, getattr(found, name, None) or "")
            for item in getattr(found, "items", ()):
                _check_id("items", item)


def _walk(data: bytes, fields: Mapping[str, object]) -> None:
    """The structure without its strings, bracket by bracket."""
    depth = keys = 0
    outside = b"".join(_ESCAPE.sub(b"", data).split(b'"')[::2])
    for byte in outside.translate(None, _NOT_STRUCTURE):
        if byte in b"{[":
            depth += 1
            if depth > MAX_DEPTH:
                raise BadEvent("decode", _TOO_DEEP)
        elif byte in b"}]":
            depth -= 1
        elif depth == 1:
            keys += 1
    if keys > len(fields):
        counts = Counter(name.decode() for name in _KEY.findall(data))
        twice = next((f"{name}: " for name in fields if counts[name] > 1), "")
        raise BadEvent("decode", _said(f"{twice}a field is given twice; which one is meant?"))


def _check_id(name: str, text: str) -> None:
    if not text.isprintable() and (hidden := _CONTROL.search(text)):
        raise BadEvent("schema", f"{name}: a control character (U+{ord(hidden[0]):04X}) has no place in an id")


def _name(error: msgspec.ValidationError, data: bytes) -> BadEvent:
    """Turn msgspec's complaint into ours; a wrong time unit is common enough to be named."""
    text = str(error)
    if "$.ts_ms" in text and _RANGE.search(text):
        found = re.search(rb'"ts_ms"\s*:\s*(-?\d{1,20})', data)
        value = found[1].decode() if found else "the value"
        return BadEvent(
            "range",
            f"ts_ms: {value} is not milliseconds since 1970 within 2000..2100; "
            "multiply seconds by 1000, divide microseconds by 1000",
        )
    reason = "range" if _RANGE.search(text) else "schema"
    hint = "; a path is one text, as in 'kitchen > mugs'" if text.endswith("got `array` - at `$.category`") else ""
    return BadEvent(reason, _said(text.replace(" - at `$.", ": at `") + hint))


def _said(text: str) -> str:
    """A message that may quote a stranger: on one line of a log, without commands to a terminal, and short."""
    short = text if len(text) <= 300 else f"{text[:200]} … {text[-80:]}"
    return "".join(character if character.isprintable() else "\ufffd" for character in short)
