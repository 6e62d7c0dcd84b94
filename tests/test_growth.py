"""More partitions on the real broker: the whole way, what a kill must not change, and the command that is typed."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewPartitions
from growth_helpers import (
    INCREMENTS,
    ITEMS,
    USERS,
    Start,
    Wait,
    clicks,
    ends,
    grow,
    last,
    lived_in,
    new,
    places,
    profiles_of,
    start,
    values,
)
from stream_helpers import read_topic, send_events, send_items

from recsys.events import Purchase, encode_event
from streams import carrying, clients, growth
from streams.cli.main import main
from streams.growth import Stand, next_generation
from streams.lag import records_behind
from streams.settings import Settings
from streams.signals import decode_signal

__all__ = ["new", "start"]  # the fixtures

# --- the whole way ----------------------------------------------------------------------------------------------------


def test_a_shop_grows_while_it_sells_and_nobody_loses_a_profile_or_an_event(
    settings: Settings, new: Settings, start: Start, wait_for: Wait
) -> None:
    before, waiting = clicks(USERS, "a") + clicks(USERS, "bb", Purchase), clicks(USERS[5:30], "ccc")
    unread, late = clicks(USERS[20:], "dddd", Purchase), clicks(USERS[:25], "eeeee")
    admin = clients.admin(settings)
    send_items(settings, ITEMS)
    start(settings)
    send_events(settings, before)
    wait_for(lambda: not records_behind(admin, settings, "ranker", "events"))
    wait_for(lambda: not records_behind(admin, settings, "signals", "pairs"))
    first = growth.run(settings, new)
    assert (len(first.create), first.complete) == (10, False)
    send_events(new, waiting)  # the first producers have switched
    start.end()  # type: ignore[attr-defined]
    send_events(settings, unread)  # others have not
    stand = growth.run(settings, new)
    assert (stand.copy["profiles"], stand.hand_over["events"], stand.complete) == (40, len(unread), True)

    assert values(new, "profiles") == values(settings, "profiles") == profiles_of(*before)
    assert values(new, "signals") == values(settings, "signals")
    assert values(new, "slates") == values(settings, "slates")
    assert places(new, "profiles").items() >= places(new, "events").items(), "where its next event goes"
    assert len(set(places(new, "profiles").values())) == 7

    ranker = start(new)
    wait_for(lambda: ranker.counts["events"] == len(waiting) + len(unread))
    send_events(settings, late)  # and one only wakes up now
    assert growth.run(settings, new).hand_over["events"] == len(late)
    wait_for(lambda: ranker.counts["events"] == len(waiting) + len(unread) + len(late))
    wait_for(lambda: not records_behind(admin, new, "signals", "pairs"))
    bought = [e for e in (*before, *waiting, *unread, *late) if isinstance(e, Purchase)]
    assert sum(decode_signal(v or b"").buyers for v in values(new, "signals").values()) == len(bought)
    assert ranker.counts["duplicates"] == ranker.counts["rejected"] == 0
    assert values(new, "profiles") == profiles_of(*before, *waiting, *unread, *late)
    made = [r for r in read_topic(new, "slates") if growth.NOT_PUSHED not in r.headers]
    assert made
    assert max(Counter(dict(r.headers)["idempotency-key"] for r in made).values()) == 1


def test_a_topic_that_only_got_more_partitions_would_have_lost_profiles(
    settings: Settings, start: Start, wait_for: Wait
) -> None:
    """The control: what the way above is for."""
    before, after = clicks(USERS, "a"), clicks(USERS, "bb")
    ranker = start(settings)
    send_events(settings, before)
    wait_for(lambda: ranker.counts["events"] == len(before))
    admin = clients.admin(settings)
    grown = [NewPartitions(settings.prefix + topic, 7) for topic in ("events", "profiles")]
    for future in admin.create_partitions(grown).values():
        future.result()
    wait_for(lambda: all(len(clients.partitions_of(admin, n.topic)) == 7 for n in grown))
    send_events(settings, after)
    wait_for(lambda: ranker.counts["events"] == len(before) + len(after))
    newest = {(r.partition, r.key): r.value for r in read_topic(settings, "profiles")}
    where = {r.key: r.partition for r in read_topic(settings, "events") if b'"bb' in (r.value or b"")}
    whole, forgot = profiles_of(*before, *after), profiles_of(*after)
    lost = [user for user, partition in where.items() if newest[partition, user] == forgot[user or b""]]
    assert len(lost) > len(USERS) / 2
    assert all(newest[where[u], u] == whole[u] for u in whole if u not in lost)


def test_fewer_partitions_are_as_good(settings: Settings) -> None:
    lived_in(settings)
    new = next_generation(settings, settings.prefix + "small.", 3)
    stand = grow(settings, new)
    assert stand.copy == {"profiles": 40, "signals": 12, "slates": 40, "control": 0, "items": 12, "models": 0}
    assert stand.hand_over == {"pairs": 12, "events": 40}
    for topic in ("profiles", "signals", "slates", "items"):
        assert values(new, topic) == values(settings, topic), topic
        assert len(read_topic(new, topic)) == stand.copy[topic], "once"
    events = last(new, "events")
    assert {key: record.value for key, record in events.items()} == values(settings, "events")
    assert all(("trace", b"7") in record.headers for record in events.values())
    assert Counter(r.value for r in read_topic(new, "pairs")) == Counter(INCREMENTS)
    send_events(new, clicks(USERS, "next"))  # where a producer's go, too
    assert places(new, "profiles") == places(new, "events") == places(new, "slates")
    assert places(new, "signals") == places(new, "pairs") == places(new, "items")


# --- killed, and typed ------------------------------------------------------------------------------------------------


ROOT = Path(__file__).parents[1]
DYING = """
import os, sys, msgspec
from streams import carrying, clients, growth
from streams.settings import Settings

class Dying(clients.Producer):
    left = 3

    def commit_transaction(self, *arguments):
        Dying.left -= 1
        if Dying.left <= 0:
            self.flush(10)  # the broker has what will never be committed
            os.kill(os.getpid(), 9)
        super().commit_transaction(*arguments)

clients.Producer, carrying.CHUNK_RECORDS = Dying, 16
growth.run(*(msgspec.json.decode(line, type=Settings) for line in sys.argv[1:]))
"""


class Failed(Exception):
    pass


class Failing(Producer):
    """A producer whose last transaction is never committed."""

    left = 0

    def commit_transaction(self, *arguments: float) -> None:
        Failing.left -= 1
        if Failing.left <= 0:
            self.flush(10)
            raise Failed
        super().commit_transaction(*arguments)


def test_a_run_that_is_killed_again_and_again_ends_the_same(
    settings: Settings, new: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"session.timeout.ms": 6000}  # so long is a killed run waited for
    own = [msgspec.structs.replace(generation, kafka=quick) for generation in (settings, new)]
    lived_in(settings)
    growth.run(settings, new)
    command = [sys.executable, "-c", DYING, *(msgspec.json.encode(s).decode() for s in own)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert killed.returncode == -9, killed.stderr
    assert len(read_topic(new, "profiles")) == 32, "in the middle"
    monkeypatch.setattr(clients, "Producer", Failing)
    monkeypatch.setattr(carrying, "CHUNK_RECORDS", 16)
    failures = 0
    while True:
        Failing.left = 5
        try:
            stand = growth.run(settings, new)
        except Failed:
            failures += 1
        else:
            break
    assert failures >= 2
    assert stand.complete
    monkeypatch.undo()
    for topic in ("profiles", "signals", "slates", "items"):
        assert values(new, topic) == values(settings, topic)
        assert len(read_topic(new, topic)) == len(values(new, topic)), "once"
    assert Counter(r.value for r in read_topic(new, "events")) == Counter(map(encode_event, clicks(USERS, "unread")))
    assert Counter(r.value for r in read_topic(new, "pairs")) == Counter(INCREMENTS)
    assert len(read_topic(new, "control")) == 1


def test_the_command_only_says_what_it_would_do_until_it_is_told_and_then_what_comes_next(
    settings: Settings, new: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lived_in(settings)
    connection = ["--bootstrap", settings.bootstrap, "--prefix", settings.prefix]

    def type_it(*arguments: str) -> tuple[str, str]:
        command = ["slatecast", "topics", "grow", "--partitions", "7", "--to", new.prefix, *connection, *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        assert left.value.code == 0, err
        return out, " ".join(err.split())

    before = ends(settings)
    _, said = type_it()
    assert f"{new.prefix}profiles copy 40 records" in said
    assert "Nothing was changed; --execute does it." in said
    assert msgspec.json.decode(type_it("--json")[0], type=Stand).hand_over == {"pairs": 12, "events": 40}
    assert ends(settings) == before, "no topic, no record"
    _, said = type_it("--execute")
    assert f"let producers write to {new.prefix}events and {new.prefix}items" in said
    between = ends(settings)
    assert {name: between[name] for name in before} == before
    _, said = type_it("--execute")
    assert f"start the roles with prefix {new.prefix} and 7 partitions" in said
