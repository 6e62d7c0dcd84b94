"""A record as the tasks see it, what a shop's record says, and one to produce. The border to the client's message type."""

import operator
from typing import cast

import msgspec
from confluent_kafka import KafkaError, Message

from recsys.catalogue import Item, decode_item
from recsys.errors import BadEvent
from recsys.events import Event, check_arrival, decode_event

Headers = tuple[tuple[str, bytes], ...]
# Header of history being loaded: profiles and signals learn from it, nobody gets a list.
BACKFILL = ("backfill", b"1")


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record read. arrived_ms: the broker's time; key and value as they lie there."""

    topic: str
    partition: int
    offset: int
    arrived_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Output(msgspec.Struct, frozen=True, gc=False):
    """One record to produce. partition: explicit, or -1 for the key's."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int = -1


# Checked by the interpreter at every call; once it has specialised message.headers(), a header whose name is no UTF-8
# ends the process (SIGSEGV, measured), and every successor with it.
_headers_of = operator.methodcaller("headers")


def read_record(message: Message) -> Record:
    """A message without an error as a Record. 1 µs."""
    try:
        headers = _headers_of(message)
    except SystemError as error:  # a header's name is no UTF-8: the binding can neither say it nor leave it out
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
        headers = [("slatecast.headers", b"unreadable")]
    return Record(
        cast(str, message.topic()),
        cast(int, message.partition()),
        cast(int, message.offset()),
        message.timestamp()[1],
        message.key(),
        message.value(),
        tuple([(str(header[0]), _bytes(header[1])) for header in headers]) if headers else (),
    )


def event_of(record: Record) -> Event:
    """The event of a record of `events`, checked but against its user's past. Raises BadEvent."""
    event = decode_event(record.value or b"")
    if record.key != event.user.encode():
        raise BadEvent("schema", "the record's key is not its user; key events by user, in UTF-8")
    check_arrival(event, record.arrived_ms)
    return event


def item_of(record: Record) -> Item:
    """The item of a record of `items` that is no tombstone. Raises BadEvent."""
    item = decode_item(record.value or b"")
    if record.key != item.item.encode():
        raise BadEvent("schema", "the record's key is not its item; key items by their id, in UTF-8, as tombstones are")
    return item


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b"" if value is None else str(value).encode()


def is_end(error: KafkaError) -> bool:
    """Whether an 'error' only says that a partition's end was reached."""
    return error.code() == KafkaError._PARTITION_EOF  # noqa: SLF001 - the client's public constant
