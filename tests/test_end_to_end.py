"""Events in, slates out, on the real broker: what a shop sees, and what a kill must not change."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest
from stream_helpers import read_slates, read_topic, send, send_events, send_items

from recsys.catalogue import Item
from recsys.events import Cart, Click, Event, Impression, Purchase, Search, encode_event, event_hash
from recsys.profiles import EMPTY, apply, encode_profile
from streams import clients
from streams.lag import records_behind
from streams.materialiser import slate_key
from streams.roles import Supervisor
from streams.settings import Settings

Wait = Callable[..., None]
T0 = 1_760_000_000_000
ITEMS = [
    Item(item=f"i{n}", title=f"Thing {n}", category=f"shop > c{n % 5} > d{n % 10}", price=1.0 + n) for n in range(40)
]


def shop_events(users: int, each: int) -> list[Event]:
    """Every user walks through the items in another order; ids make each event distinct."""
    events: list[Event] = []
    for n in range(each):
        for u in range(users):
            kind = (Click, Cart, Purchase)[n % 3]
            events.append(kind(user=f"u{u}", item=f"i{(u * 7 + n * 3) % 40}", ts_ms=T0 + n * 60_000, id=f"e{u}-{n}"))
    return events


def now(events: list[Event]) -> list[Event]:
    """The same events, as if they happened just now (a slate is made only for what is not late)."""

    shift = int(time.time() * 1000) - max(e.ts_ms for e in events)
    return [msgspec.structs.replace(e, ts_ms=e.ts_ms + shift) for e in events]


@pytest.fixture
def roles(settings: Settings, tmp_path: Path):
    """All roles, ended after the test."""
    supervisor = Supervisor(settings, ("signals", "ranker", "materialiser"), tmp_path / "roles.log")
    yield supervisor
    supervisor.stop()


def more_slates_than(settings: Settings, count: int) -> bool:
    return len(read_slates(settings)) > count


def consumed(settings: Settings, role: str, topic: str) -> bool:
    return records_behind(clients.admin(settings), settings, role, topic) == 0


def test_a_click_changes_the_list_and_says_why(settings: Settings, roles: Supervisor, wait_for: Wait) -> None:
    send_items(settings, ITEMS)
    history = [
        Purchase(user=f"h{n}", item=item, ts_ms=T0, id=f"h{n}{item}") for n in range(20) for item in ("i1", "i2", "i3")
    ]
    send_events(settings, now(history), [("backfill", b"1")])
    wait_for(lambda: consumed(settings, "ranker", "events") and len(read_topic(settings, "signals")) >= 3)
    assert not read_slates(settings), "history makes no lists"
    send_events(settings, now([Click(user="u1", item="i30", ts_ms=T0, id="a")]))
    wait_for(lambda: len(read_slates(settings)) == 1)
    send_events(settings, now([Click(user="u1", item="i1", ts_ms=T0, id="b")]))
    wait_for(lambda: len(read_slates(settings)) == 2)
    before, after = sorted(read_slates(settings), key=lambda slate: slate.cause.offset)
    assert [i.item for i in before.items] != [i.item for i in after.items]
    reasons = {i.item: i.reason for i in after.items}
    assert reasons["i2"] == "you just looked at Thing 1"
    redis = clients.redis_client(settings)
    wait_for(lambda: after.id.encode() in (redis.hget(slate_key(settings, "u1"), "body") or b""))
    redis.flushdb()
    wait_for(lambda: after.id.encode() in (redis.hget(slate_key(settings, "u1"), "body") or b""))
    redis.close()


def test_a_ranker_killed_in_mid_stream_loses_nothing_and_doubles_nothing(
    settings: Settings, roles: Supervisor, wait_for: Wait
) -> None:
    send_items(settings, ITEMS)
    events = now(shop_events(users=60, each=50))
    kills = 0
    for start in range(0, len(events), 500):
        send_events(settings, events[start : start + 500])
        wait_for(partial(more_slates_than, settings, len(read_slates(settings))))
        os.kill(roles.processes["ranker"].pid, signal.SIGKILL)
        roles.processes["ranker"].wait()
        kills += 1
        wait_for(lambda: roles.tend() or roles.processes["ranker"].poll() is None)
    wait_for(lambda: roles.tend() or consumed(settings, "ranker", "events"), 60)
    assert kills == 6
    slates = read_slates(settings)
    doubled = [name for name, n in Counter(slate.id for slate in slates).items() if n > 1]
    assert not doubled
    changelog = {(r.key or b"").decode(): r.value for r in read_topic(settings, "profiles")}
    expected: dict[str, bytes] = {}
    profiles = dict.fromkeys((e.user for e in events), EMPTY)
    for event in events:
        profiles[event.user] = apply(profiles[event.user], event, event_hash(event, encode_event(event)))
    expected = {user: encode_profile(profile) for user, profile in profiles.items()}
    assert changelog == expected
    newest = {e.user: e.ts_ms for e in events}
    told = {user: max(s.cause.ts_ms for s in slates if s.user == user) for user in newest}
    assert told == newest, "the last event of every user has its slate"


def test_a_bad_record_is_put_aside_with_its_bytes(settings: Settings, roles: Supervisor, wait_for: Wait) -> None:
    send_items(settings, ITEMS)
    bad = b'{"type":"click","user":"u1","item":"i1","ts_ms":17}'
    send(settings, "events", [(b"u1", bad), (b"u1", b"\xff\xfe"), (b"u2", None)], [("trace", b"7")])
    send_events(
        settings, now([Search(user="u1", query="thing", ts_ms=T0), Impression(user="u1", items=("i1",), ts_ms=T0)])
    )
    wait_for(lambda: len(read_topic(settings, "rejects")) == 3 and len(read_slates(settings)) == 1)
    found = {r.value: dict(r.headers) for r in read_topic(settings, "rejects")}
    assert set(found) == {bad, b"\xff\xfe", None}
    headers = found[bad]
    assert headers["__connect.errors.topic"] == (settings.prefix + "events").encode()
    assert headers["slatecast.error.class"] == b"range"
    assert headers["trace"] == b"7"
