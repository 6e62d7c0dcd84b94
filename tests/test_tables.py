"""Compact topics that are read whole: to their end at the start, then whatever comes, tombstones included."""

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from confluent_kafka import TopicPartition
from release_helpers import make_release, telling_tower
from stream_helpers import send, send_items

from models.serving import NoModels, open_best
from recsys.catalogue import Item, encode_item, item_text, text_hash
from recsys.errors import Unavailable
from recsys.signals import Signal
from streams import clients
from streams.records import Record
from streams.settings import Settings
from streams.shelf import Shelf
from streams.state import end_offsets
from streams.tables import TableReader

Wait = Callable[..., None]


class Table:
    """What a reader was given: the newest value of every key."""

    def __init__(self, settings: Settings, topic: str = "items") -> None:
        self.now: dict[bytes | None, bytes | None] = {}
        self.reader = TableReader(settings, topic, self._take)

    def _take(self, record: Record) -> None:
        self.now[record.key] = record.value

    def follow_until(self, wait_for: Wait, key: bytes, value: bytes | None) -> None:
        wait_for(lambda: self.reader.follow() >= 0 and self.now.get(key, b"") == value)


@pytest.fixture
def table(settings: Settings) -> Iterator[Table]:
    """A table over the topic `items`."""
    found = Table(settings)
    yield found
    found.reader.close()


def test_a_reader_catches_up_and_follows(settings: Settings, table: Table, wait_for: Wait) -> None:
    send(settings, "items", [(b"k%d" % n, b"old") for n in range(1000)])
    assert table.reader.catch_up() == 1000
    assert table.reader.follow() == 0
    send(settings, "items", [(b"k7", b"new"), (b"k1000", b"new")])
    table.follow_until(wait_for, b"k7", b"new")
    table.follow_until(wait_for, b"k1000", b"new")
    assert len(table.now) == 1001


def test_an_empty_topic_is_read_at_once(table: Table) -> None:
    assert (table.reader.catch_up(), table.reader.follow()) == (0, 0)


def test_tombstones_are_told_while_catching_up_and_later(settings: Settings, table: Table, wait_for: Wait) -> None:
    send(settings, "items", [(b"a", b"1"), (b"b", b"1"), (b"a", None)])
    assert table.reader.catch_up() == 3
    assert table.now == {b"a": None, b"b": b"1"}
    send(settings, "items", [(b"b", None)])
    table.follow_until(wait_for, b"b", None)


def test_what_was_not_committed_is_not_told(settings: Settings, table: Table, wait_for: Wait) -> None:
    producer = clients.producer(settings, f"{settings.prefix}t")
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(settings.prefix + "items", b"aborted", b"a")
    assert producer.flush(30) == 0
    producer.abort_transaction(30)
    send(settings, "items", [(b"b", b"1")])
    assert table.reader.catch_up() == 1
    assert table.now == {b"b": b"1"}


def test_a_reader_begins_where_a_topic_begins_now(settings: Settings) -> None:
    topic, admin, table = settings.prefix + "slates", clients.admin(settings), Table(settings, "slates")
    send(settings, "slates", [(b"a", b"1"), (b"a", b"2"), (b"a", b"3")])
    (at,) = (p for p, end in end_offsets(admin, topic, [0, 1, 2, 3]).items() if end)
    for kept, gone in ((1, 2), (0, 3)):  # as retention does; when nothing is left, that is known at once
        for future in admin.delete_records([TopicPartition(topic, at, gone)]).values():
            future.result()
        assert table.reader.catch_up() == kept
    table.reader.close()


def test_a_topic_that_is_missing_says_how_to_make_it(services: Settings) -> None:
    reader = TableReader(services, "nothing", lambda record: None)
    with pytest.raises(Unavailable, match="slatecast topics apply"):
        reader.catch_up()
    reader.close()


# --- what the ranker makes of them -------------------------------------------------------------------------------------


def test_a_large_shop_is_read_with_signs_of_life(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.state.BEAT_EVERY", 10)
    send_items(settings, [Item(item=f"i{n}", title="Mug") for n in range(35)])
    send(settings, "signals", [(b"i%d" % n, None) for n in range(25)])
    beats: list[int] = []
    Shelf(settings, NoModels()).catch_up(lambda: beats.append(1))
    assert len(beats) == 3 + 2


def test_an_item_that_was_withdrawn_is_no_longer_available(settings: Settings, wait_for: Wait) -> None:
    send_items(settings, [Item(item="a", title="Mug"), Item(item="b", title="Pan")])
    shelf = Shelf(settings, NoModels())
    shelf.catch_up()
    send(settings, "items", [(b"a", None), (b"never", None)])
    row = shelf.catalogue.row("a")
    wait_for(lambda: shelf.follow() or not shelf.catalogue.available[row])
    assert shelf.catalogue.available[shelf.catalogue.row("b")]
    send_items(settings, [Item(item="a", title="Mug again")])
    wait_for(lambda: shelf.follow() or bool(shelf.catalogue.available[row]))
    assert shelf.catalogue.items[row].title == "Mug again"


def test_a_bad_item_is_counted_and_the_others_are_kept(settings: Settings) -> None:
    send(settings, "items", [(b"x", b"\xff"), (b"y", b"{}"), (b"\xff", None)])
    send_items(settings, [Item(item="b", title="Pan")])
    shelf = Shelf(settings, NoModels())
    shelf.catch_up()
    assert shelf.bad_items == {"decode": 1, "schema": 1}
    assert [item.item for item in shelf.catalogue.items] == ["b"]


def test_an_item_under_another_key_is_refused_since_no_tombstone_by_its_id_would_remove_it(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    send_items(settings, [Item(item="a", title="Mug"), Item(item="b", title="Pan")])
    send(
        settings,
        "items",
        [(b"row-7", encode_item(Item(item="c", title="Pot"))), (b"b", encode_item(Item(item="a", title="Cup")))],
    )
    shelf = Shelf(settings, NoModels())
    shelf.catch_up()
    assert shelf.bad_items == {"schema": 2}
    assert {item.item: item.title for item in shelf.catalogue.items} == {"a": "Mug", "b": "Pan"}
    assert "key items by their id" in caplog.text


def test_an_item_that_changes_and_changes_back_keeps_its_own_vector(settings: Settings, tmp_path: Path) -> None:
    own, other = Item(item="a", title="Thing 3"), Item(item="a", title="Thing 399")
    make_release(tmp_path, 1, telling_tower(1), [item_text(own)])
    send_items(settings, [own, other, own])
    models = open_best(tmp_path)
    shelf = Shelf(settings, models)
    shelf.catch_up()
    vector = shelf.catalogue.vectors[shelf.catalogue.row("a")]
    np.testing.assert_array_equal(vector, models.vector(text_hash(item_text(own))))


def test_a_signal_that_was_withdrawn_says_nothing_any_more(settings: Settings, wait_for: Wait) -> None:
    send_items(settings, [Item(item="a", title="Mug")])
    liked = msgspec.msgpack.encode(Signal(ts_s=1_760_000_000, long=3.0, exposure=2.0, buyers=5))
    send(settings, "signals", [(b"a", liked), (b"early", liked), (b"early", None)])
    shelf = Shelf(settings, NoModels())
    shelf.catch_up()
    row = shelf.catalogue.row("a")
    assert shelf.signals.buyers[row] == 5
    send(settings, "signals", [(b"a", None)])
    wait_for(lambda: shelf.follow() or shelf.signals.buyers[row] == 0)
    send_items(settings, [Item(item="early", title="Pan")])
    wait_for(lambda: shelf.follow() or shelf.catalogue.row("early") >= 0)
    assert shelf.signals.buyers[shelf.catalogue.row("early")] == 0


def test_signals_of_items_that_left_the_catalogue_long_ago_take_no_more_than_their_bytes(settings: Settings) -> None:
    shelf, size = Shelf(settings, NoModels()), 0
    tracemalloc.start()
    for n in range(500):
        neighbours = tuple((n * 1_000 + other, 1.0 + other / (n + 1)) for other in range(50))
        value = msgspec.msgpack.encode(Signal(ts_s=1_760_000_000, neighbours=neighbours, long=1.0, buyers=n))
        size += len(value)
        shelf._take_signal(Record("signals", 0, n, 0, b"gone-%d" % n, value, ()))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 2 * size
    send_items(settings, [Item(item="gone-7", title="Mug")])  # and it comes back
    shelf.catch_up()
    assert shelf.signals.buyers[shelf.catalogue.row("gone-7")] == 7
