"""Produce and read in tests: the real clients, in few words."""

from collections.abc import Iterable, Sequence

from recsys.catalogue import ITEM_SCHEMA, Item, encode_item
from recsys.events import EVENT_SCHEMA, Event, encode_event
from recsys.slates import Slate, decode_slate
from streams import clients
from streams.records import Record
from streams.settings import Settings
from streams.state import end_offsets, read_to


def send_events(settings: Settings, events: Iterable[Event], headers: Sequence[tuple[str, bytes]] = ()) -> None:
    """Events onto the topic, in order, keyed by user."""
    send(
        settings,
        "events",
        [(e.user.encode(), encode_event(e)) for e in events],
        [("schema", EVENT_SCHEMA.encode()), *headers],
    )


def send_items(settings: Settings, items: Iterable[Item]) -> None:
    """Items onto the topic."""
    send(settings, "items", [(i.item.encode(), encode_item(i)) for i in items], [("schema", ITEM_SCHEMA.encode())])


def send(
    settings: Settings,
    topic: str,
    pairs: Iterable[tuple[bytes | None, bytes | None]],
    headers: Sequence[tuple[str, bytes]] = (),
) -> None:
    """Raw records, and wait until the broker has them."""
    producer = clients.producer(settings)
    for key, value in pairs:
        producer.produce(settings.prefix + topic, value, key, headers=list(headers))
    assert producer.flush(30) == 0


def read_topic(settings: Settings, topic: str) -> list[Record]:
    """Everything committed on a topic so far."""
    name, found = settings.prefix + topic, []
    admin = clients.admin(settings)
    consumer = clients.reader(settings)
    read_to(consumer, name, end_offsets(admin, name, clients.partitions_of(admin, name)), found.append)
    consumer.close()
    return found


def read_slates(settings: Settings) -> list[Slate]:
    """Every committed slate."""
    return [decode_slate(record.value or b"") for record in read_topic(settings, "slates")]
