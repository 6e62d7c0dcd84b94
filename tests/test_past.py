"""What lies on the topics is learned from as a folder of the same events is."""

import gzip
import time
from pathlib import Path

import numpy as np
import pytest
from past_helpers import draw_past
from stream_helpers import send, send_events, send_items

from models.history import read_history
from recsys.catalogue import Item, encode_item
from recsys.errors import Misuse
from recsys.events import Click, Event, Impression, Purchase, View, encode_event
from streams import clients, topics
from streams.past import read_past
from streams.settings import Settings

ITEMS = [Item(item=f"i{n}", title=f"Mug {n}", price=float(n + 1)) for n in range(5)]
EVENTS: list[Event] = [
    Purchase(
        user=f"u{n % 3}", item=f"i{n % 5}", ts_ms=1_764_000_000_000 + 7_000_000 * n, id=f"e{n}", session=f"s{n // 2}"
    )
    for n in range(20)
]
EVENTS += [
    View(user="u1", item="i3", ts_ms=1_764_000_500_000),
    Impression(user="u1", items=("i1",), ts_ms=1_764_000_600_000),
]


@pytest.fixture
def shop(settings: Settings) -> Settings:
    topics.apply(clients.admin(settings), settings)
    return settings


def test_the_topics_and_a_folder_of_the_same_events_are_one_history(shop: Settings, tmp_path: Path) -> None:
    send_items(shop, ITEMS)
    send_events(shop, EVENTS)
    for name, lines in (("items", map(encode_item, ITEMS)), ("events", map(encode_event, EVENTS))):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
    live, filed = read_past(shop).history, read_history(tmp_path)
    for history in (live, filed):
        assert len(history) == 21
        assert {history.user_ids[u] for u in history.user} == {"u0", "u1", "u2"}
    np.testing.assert_array_equal(live.ts_s, filed.ts_s)
    of = [
        [(h.user_ids[u], h.items[i].item, int(a)) for u, i, a in zip(h.user, h.item, h.action, strict=True)]
        for h in (live, filed)
    ]
    assert of[0] == of[1]
    assert sorted(item.item for item in live.items) == [item.item for item in ITEMS]
    same = [[h.session[a] == h.session[b] for a in range(21) for b in range(21)] for h in (live, filed)]
    assert same[0] == same[1]


def test_what_counts_once_or_not_at_all_is_left_out_and_counted(shop: Settings) -> None:
    send_items(shop, ITEMS)
    send(shop, "items", [(b"i4", None)])
    twice, gone = EVENTS[0], Click(user="u9", item="i4", ts_ms=1_764_000_700_000)
    send_events(shop, [*EVENTS[:4], twice, gone])
    send(shop, "events", [(b"u1", b"no event")])
    read = read_past(shop)
    assert (len(read.history), read.repeated, read.unknown, read.rejected) == (4, 1, 1, 1)


def test_what_a_ranker_puts_aside_is_not_learned_from(shop: Settings) -> None:
    send_items(shop, ITEMS)
    send_events(shop, EVENTS[:3])
    ahead = Purchase(user="u1", item="i1", ts_ms=time.time_ns() // 1_000_000 + 25 * 3_600_000)
    send(
        shop,
        "events",
        [(b"u2", encode_event(EVENTS[4])), (None, encode_event(EVENTS[5])), (b"u1", encode_event(ahead))],
    )
    read = read_past(shop)
    assert (len(read.history), read.rejected) == (3, 3)


def test_an_item_under_another_key_is_none(shop: Settings) -> None:
    send_items(shop, ITEMS[:4])
    send(shop, "items", [(b"row-7", encode_item(ITEMS[4]))])
    send_events(shop, EVENTS[:5])
    read = read_past(shop)
    assert sorted(item.item for item in read.history.items) == ["i0", "i1", "i2", "i3"]
    assert (len(read.history), read.unknown) == (4, 1)


def test_empty_topics_say_what_to_do(shop: Settings) -> None:
    with pytest.raises(Misuse, match="slatecast load"):
        read_past(shop)


def test_a_drawn_past_is_not_changed_by_a_detour_over_kafka(shop: Settings) -> None:
    history = draw_past(0, users=10, items=20)
    send_items(shop, history.items)
    columns = (history.user.tolist(), history.item.tolist(), history.ts_s.tolist())
    rows = [(history.user_ids[u], history.items[i].item, ts_s) for u, i, ts_s in zip(*columns, strict=True)]
    send_events(shop, [Purchase(user=u, item=i, ts_ms=ts_s * 1000, id=str(n)) for n, (u, i, ts_s) in enumerate(rows)])
    back = read_past(shop).history
    found = zip(back.user.tolist(), back.item.tolist(), back.ts_s.tolist(), strict=True)
    assert sorted((back.user_ids[u], back.items[i].item, ts_s) for u, i, ts_s in found) == sorted(rows)
