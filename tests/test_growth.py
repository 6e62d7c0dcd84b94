"""More partitions on the real broker: what is carried over, when it is refused, and what a kill must not change."""

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import ConsumerGroupState, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, ResourceType
from stream_helpers import read_topic, send, send_events, send_items

from models.serving import NoModels
from recsys import diversify
from recsys.catalogue import Item, encode_item
from recsys.errors import Misuse
from recsys.events import Click, Event, Purchase, encode_event, event_hash
from recsys.policy import Policy
from recsys.profiles import EMPTY, Profile, apply, encode_profile
from recsys.signals import Increment, Signal
from streams import carrying, clients, growth, topics
from streams.carrying import Carrier, Hold, Values
from streams.cli.main import main
from streams.growth import Stand, look, next_generation
from streams.lag import committed_offsets, records_behind
from streams.materialiser import Materialiser, slate_key
from streams.policies import KEY, publish, published
from streams.ranker import RankerTask
from streams.records import Record
from streams.settings import Settings
from streams.signals import SignalsTask, decode_signal, encode_increment
from streams.state import end_offsets
from streams.worker import Task, Worker

Wait = Callable[..., None]
ROOT = Path(__file__).parents[1]
NOW_MS = time.time_ns() // 1_000_000
ITEMS = [Item(item=f"i{n}", title=f"Thing {n}", price=1.0 + n) for n in range(12)]
INCREMENTS = [encode_increment(Increment(n, buyers=1)) for n in range(12)]
USERS = [f"u{n}" for n in range(40)]


class Running:
    """A worker in a thread."""

    def __init__(self, settings: Settings, role: str, task: Task) -> None:
        # The shortest that a broker grants: a stopped static member is a member for so long.
        own = msgspec.structs.replace(
            settings, kafka={"session.timeout.ms": 6000, "topic.metadata.refresh.interval.ms": 200}
        )
        self.worker, self._stop = Worker(own, role, task, "0"), threading.Event()
        self._thread = threading.Thread(target=self.worker.run, args=(self._stop,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


Start = Callable[[Settings], RankerTask]


@pytest.fixture
def start() -> Iterator[Start]:
    """Run the ranker and the aggregator of a generation; `start.end()` ends all, and so does the test."""
    running: list[Running] = []

    def begin(settings: Settings) -> RankerTask:
        task = RankerTask(settings, NoModels())
        diversify.warm_up()  # else the watchdog would take a compiler at work for a record that hangs
        task.shelf.catch_up()
        running.extend((Running(settings, "signals", SignalsTask(settings)), Running(settings, "ranker", task)))
        return task

    def end() -> None:
        while running:
            running.pop().end()

    begin.end = end  # type: ignore[attr-defined]
    yield begin
    end()


@pytest.fixture
def new(settings: Settings) -> Settings:
    """The next generation: a number of partitions that is no multiple."""
    return next_generation(settings, settings.prefix + "g2.", 7)


def clicks(users: Sequence[str], tag: str, kind: type[Click | Purchase] = Click) -> list[Event]:
    return [
        kind(user=user, item=f"i{(n + len(tag)) % 12}", ts_ms=NOW_MS + n, id=f"{tag}{user}")
        for n, user in enumerate(users)
    ]


def profiles_of(*events: Event) -> dict[bytes, bytes]:
    """What the events make of their users, by the code that serves."""
    profiles: dict[str, Profile] = {}
    for event in events:
        before = profiles.get(event.user, EMPTY)
        profiles[event.user] = apply(before, event, event_hash(event, encode_event(event)))
    return {user.encode(): encode_profile(profile) for user, profile in profiles.items()}


def last(settings: Settings, topic: str) -> dict[bytes | None, Record]:
    """The last record of every key."""
    return {record.key: record for record in sorted(read_topic(settings, topic), key=lambda record: record.offset)}


def values(settings: Settings, topic: str) -> dict[bytes | None, bytes | None]:
    return {key: record.value for key, record in last(settings, topic).items()}


def places(settings: Settings, topic: str) -> dict[bytes | None, int]:
    """Where each key lies; it must lie in one partition only."""
    found = {(record.key, record.partition) for record in read_topic(settings, topic)}
    assert len(dict(found)) == len(found)
    return dict(found)


def ends(settings: Settings) -> dict[str, dict[int, int]]:
    """All topics of a prefix, and where they end."""
    admin = clients.admin(settings)
    names = sorted(name for name in admin.list_topics(timeout=10).topics if name.startswith(settings.prefix))
    return {name: end_offsets(admin, name, clients.partitions_of(admin, name)) for name in names}


def commit(settings: Settings, role: str, topic: str) -> None:
    """The role has read its input to the end."""
    consumer, name = clients.consumer(settings, settings.prefix + role), settings.prefix + topic
    positions = [TopicPartition(name, p, end) for p, end in ends(settings)[name].items() if end]
    consumer.commit(offsets=positions, asynchronous=False)
    consumer.close()


def lived_in(settings: Settings) -> None:
    """A generation that has worked, and stopped: state, and inputs of which the second half is unread."""
    producer = clients.producer(settings)

    def put(topic: str, records: Iterable[tuple[bytes, bytes]], **headers: bytes) -> None:
        for key, value in records:
            producer.produce(settings.prefix + topic, value, key, headers=list(headers.items()))

    put("items", [(i.item.encode(), encode_item(i)) for i in ITEMS])
    put("profiles", profiles_of(*clicks(USERS, "older")).items())
    put("profiles", profiles_of(*clicks(USERS, "read")).items())
    put("signals", [(i.item.encode(), msgspec.msgpack.encode(Signal(n))) for n, i in enumerate(ITEMS)])
    put("slates", [(user.encode(), b"slate of " + user.encode()) for user in USERS], schema=b"s1", key=b"k1")
    put("events", [(e.user.encode(), encode_event(e)) for e in clicks(USERS, "read")])
    put("pairs", [(b"i1", encode_increment(Increment(1)))])
    assert producer.flush(10) == 0
    commit(settings, "ranker", "events")
    commit(settings, "signals", "pairs")
    put("events", [(e.user.encode(), encode_event(e)) for e in clicks(USERS, "unread")], trace=b"7")
    put("pairs", [(i.item.encode(), increment) for i, increment in zip(ITEMS, INCREMENTS, strict=True)])
    assert producer.flush(10) == 0


def grow(old: Settings, new: Settings) -> Stand:
    """Both steps at once; what the second did."""
    if look(old, new).create:
        growth.run(old, new)
    return growth.run(old, new)


# --- the whole way ------------------------------------------------------------------------------------------------------


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


# --- what is carried ----------------------------------------------------------------------------------------------------


def test_a_copied_slate_keeps_its_key_and_its_time_and_is_not_pushed_again(
    settings: Settings, new: Settings, wait_for: Wait
) -> None:
    lived_in(settings)
    send(settings, "slates", [(b"u1", None)])  # erased
    grow(settings, new)
    was, copy = last(settings, "slates")[b"u2"], last(new, "slates")[b"u2"]
    origin = f"{was.topic}:{was.partition}:{was.offset}".encode()
    assert copy.headers == (*was.headers, ("replay-of", origin), ("push-eligible", b"false"))
    assert copy.arrived_ms == was.arrived_ms, "a copy is not kept longer"
    assert b"u1" not in last(new, "slates")
    third = next_generation(new, settings.prefix + "g3.", 2)
    commit(new, "ranker", "events")
    grow(new, third)
    again = last(third, "slates")[b"u2"]
    assert [name for name, _ in again.headers] == [name for name, _ in copy.headers], "the origin is said once"
    redis, stop = clients.redis_client(new), threading.Event()
    view = threading.Thread(target=Materialiser(new, "0").run, args=(stop,), daemon=True)
    view.start()
    wait_for(lambda: redis.hget(slate_key(new, "u2"), "body") == copy.value)
    stop.set()
    view.join(20)
    redis.close()


def test_the_published_policy_goes_along_and_an_older_generations_mark_does_not(
    settings: Settings, new: Settings
) -> None:
    publish(settings, b"slate_size = 4")
    publish(settings, b"slate_size = 5")
    send(settings, "control", [(b"alarm", b"of the old ones")])
    third = next_generation(new, settings.prefix + "g3.", 2)
    grow(settings, new)
    grow(new, third)
    for generation in (new, third):
        assert published(generation) == Policy(slate_size=5)
        assert sorted(r.key or b"" for r in read_topic(generation, "control")) == [growth.MARK, KEY], "each once"


def test_a_policy_that_was_published_for_the_new_generation_stands(settings: Settings, new: Settings) -> None:
    publish(settings, b"slate_size = 5")
    growth.run(settings, new)
    publish(new, b"slate_size = 6")
    assert growth.run(settings, new).copy["control"] == 0
    assert published(new) == Policy(slate_size=6)


def item(name: str, price: float) -> tuple[bytes, bytes]:
    return name.encode(), encode_item(Item(item=name, title=name, price=price))


def test_what_a_producer_has_written_to_the_new_topic_is_newer_than_any_copy(
    settings: Settings, new: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(settings, "items", [item(name, 1) for name in ("kept", "changed", "gone", "raced", "removed")])
    growth.run(settings, new)
    send(new, "items", [item("changed", 2), (b"gone", None)])
    find = growth._Growth._find_missing

    def and_then_raced(self: growth._Growth, values: Values) -> int:
        found = find(self, values)
        if values.new.endswith("items") and b"raced" not in last(new, "items"):
            send(new, "items", [item("raced", 2)])  # after we looked, before we write
        return found

    monkeypatch.setattr(growth._Growth, "_find_missing", and_then_raced)
    growth.run(settings, new)
    expected = dict([item("kept", 1), item("changed", 2), item("raced", 2), item("removed", 1)])
    assert values(new, "items") == {**expected, b"gone": None}
    send(settings, "items", [item("kept", 3), item("changed", 3), (b"removed", None), item("late", 3)])
    growth.run(settings, new)
    expected |= dict([item("kept", 3), item("late", 3)])
    assert values(new, "items") == {**expected, b"gone": None, b"removed": None}


def test_an_item_that_was_removed_since_does_not_come_back(settings: Settings, new: Settings) -> None:
    send(settings, "items", [item("a", 1), item("b", 1)])
    grow(settings, new)
    send(new, "items", [(b"a", None), (b"b", None)])
    admin, name = clients.admin(new), new.prefix + "items"
    # As if compaction had removed the tombstones as well; from a topic that is only compacted nobody may delete.
    entry = ConfigEntry("cleanup.policy", "compact,delete", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()
    everything = [TopicPartition(name, p, end) for p, end in ends(new)[name].items()]
    for future in admin.delete_records(everything).values():
        future.result()
    assert growth.run(settings, new).copy["items"] == 0
    assert values(new, "items") == {}


def test_state_that_changed_after_a_first_copy_is_copied_again_until_the_new_roles_begin(
    settings: Settings, new: Settings
) -> None:
    lived_in(settings)
    grow(settings, new)
    send(settings, "profiles", [(b"u1", b"newer"), (b"u2", None)])  # the old ranker was started once more
    assert growth.run(settings, new).copy["profiles"] == 2
    assert values(new, "profiles") == values(settings, "profiles") | {b"u1": b"newer", b"u2": None}
    send(new, "profiles", [(b"u3", b"live")])
    commit(new, "ranker", "events")
    send(settings, "profiles", [(b"u3", b"dead"), (b"u4", b"dead")])
    send_events(settings, clicks(["u3"], "late"))
    stand = growth.run(settings, new)
    assert "profiles" not in stand.copy
    assert stand.hand_over["events"] == 1
    assert values(new, "profiles")[b"u3"] == b"live"


def test_a_transactions_marker_is_no_unread_event(settings: Settings, new: Settings) -> None:
    producer = clients.producer(settings, f"{settings.prefix}requeue")  # as `slatecast rejects requeue`
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(settings.prefix + "events", b"x", b"u1")
    producer.commit_transaction(30)
    name = settings.prefix + "events"
    consumer = clients.consumer(settings, settings.prefix + "ranker")
    at = [TopicPartition(name, p, end - 1) for p, end in ends(settings)[name].items() if end]
    consumer.commit(offsets=at, asynchronous=False)
    consumer.close()
    assert grow(settings, new).hand_over["events"] == 0


# --- refusals -----------------------------------------------------------------------------------------------------------


def test_the_same_prefix_is_refused(settings: Settings) -> None:
    with pytest.raises(Misuse, match="is the prefix in use"):
        next_generation(settings, settings.prefix, 12)
    with pytest.raises(Misuse, match="new topics: .*prefix"):
        next_generation(settings, "no blanks", 12)


def test_a_prefix_that_nobody_uses_is_refused_before_anything_is_created(settings: Settings, new: Settings) -> None:
    unused = msgspec.structs.replace(settings, prefix=settings.prefix + "typo.")
    before = ends(settings)
    with pytest.raises(Misuse, match=r"there is no topic .*typo\.events: is .*typo\. the prefix in use\?"):
        growth.run(unused, new)
    assert ends(settings) == before


@pytest.mark.parametrize("act", [look, growth.run])
def test_new_topics_with_another_number_of_partitions_are_refused(
    settings: Settings, new: Settings, act: Callable[[Settings, Settings], Stand]
) -> None:
    topics.apply(clients.check_broker(new), new)
    before = ends(settings)
    with pytest.raises(Misuse, match="has 7 partitions, not 8: give --partitions as it has, or another --to"):
        act(settings, msgspec.structs.replace(new, partitions=8))
    assert ends(settings) == before


def test_old_roles_that_still_run_are_refused_and_named(
    settings: Settings, new: Settings, wait_for: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    growth.run(settings, new)
    monkeypatch.setattr(growth, "SILENCE_S", 0)
    for role, topic in (("ranker", "events"), ("signals", "pairs")):
        send(settings, topic, [(b"u1", b"x")])
        member = clients.consumer(settings, settings.prefix + role)
        member.subscribe([settings.prefix + topic])
        wait_for(lambda member=member: member.poll(0.1) is not None)
        before = ends(settings)
        assert look(settings, new).running == [role]
        with pytest.raises(Misuse, match=f"^{role} of {settings.prefix} still run"):
            growth.run(settings, new)
        assert ends(settings) == before
        member.close()
    send(new, "events", [(b"u1", b"x")])
    early = clients.consumer(new, new.prefix + "ranker")  # has restored nothing, and has committed nothing yet
    early.subscribe([new.prefix + "events"])
    wait_for(lambda: early.poll(0.1) is not None)
    with pytest.raises(Misuse, match=f"^ranker of {new.prefix} still run"):
        growth.run(settings, new)
    early.close()
    assert growth.run(settings, new).complete


def test_a_role_that_is_started_too_early_waits(
    settings: Settings, new: Settings, start: Start, wait_for: Wait
) -> None:
    lived_in(settings)
    growth.run(settings, new)
    early: list[RankerTask] = []
    admin = clients.admin(settings)

    def begin(topic: str, done: int, of: int) -> None:
        if not early:  # the first record of the state is on its way
            early.extend((start(settings), start(new)))
            wait_for(lambda: len(waiting()) == 4)

    def waiting() -> set[str]:
        listed = admin.list_consumer_groups().result().valid
        return {g.group_id for g in listed if g.state.name == "PREPARING_REBALANCING" and settings.prefix in g.group_id}

    stand = growth.run(settings, new, begin)
    assert stand.hand_over == {"pairs": 12, "events": 40}
    wait_for(lambda: early[1].counts["events"] == 40)
    assert values(new, "profiles") == profiles_of(*clicks(USERS, "read"), *clicks(USERS, "unread"))
    send_events(settings, clicks(["u1"], "old"))
    wait_for(lambda: early[0].counts["events"] == 1)
    assert (early[0].counts["events"], early[1].counts["events"]) == (1, 40), (
        "the old ranker found nothing else to read"
    )


def test_a_member_that_was_expelled_commits_nothing(settings: Settings, wait_for: Wait) -> None:
    send_events(settings, clicks(["u1"], "a"))
    (record,) = read_topic(settings, "events")
    producer = clients.producer(settings, f"{settings.prefix}grow")
    producer.init_transactions(30)
    with Hold(settings, "ranker", "events", range(4)) as member:
        pass  # out of the group, as one is that the broker has not heard of for 10 s
    other = clients.consumer(settings, settings.prefix + "ranker")
    other.subscribe([settings.prefix + "events"])
    wait_for(lambda: other.poll(0.05) is not None)
    carrier = Carrier(producer, settings.prefix + "slates", (), member)
    carrier.add(record)
    with pytest.raises(KafkaException, match="UNKNOWN_MEMBER_ID"):
        carrier.commit()
    other.close()
    producer.abort_transaction(30)
    assert read_topic(settings, "slates") == []
    assert set(committed_offsets(settings, "ranker", "events", [0, 1, 2, 3]).values()) == {0}


@pytest.mark.parametrize(("role", "topic"), [("ranker", "events"), ("signals", "pairs")])
def test_new_roles_that_began_without_the_state_are_refused(
    settings: Settings, new: Settings, role: str, topic: str
) -> None:
    growth.run(settings, new)
    send(new, topic, [(b"u1", b"x")])
    commit(new, role, topic)
    before = ends(settings)
    for act in (look, growth.run):
        with pytest.raises(Misuse, match="have begun without the state"):
            act(settings, new)
    assert ends(settings) == before


def test_what_began_too_early_can_begin_again_without_a_loss(
    settings: Settings, new: Settings, start: Start, wait_for: Wait
) -> None:
    """As docs/operations.md says."""
    lived_in(settings)
    growth.run(settings, new)
    early = clicks(USERS, "early")
    send_events(new, early)
    ranker = start(new)
    wait_for(lambda: ranker.counts["events"] == len(early))
    start.end()  # type: ignore[attr-defined]
    with pytest.raises(Misuse, match="have begun without the state"):
        growth.run(settings, new)
    admin = clients.admin(new)
    idle = (ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD)
    wait_for(
        lambda: (
            not any(
                group.group_id.startswith(new.prefix) and group.state not in idle
                for group in admin.list_consumer_groups().result().valid
            )
        )
    )
    for future in admin.delete_consumer_groups([new.prefix + role for role in ("ranker", "signals")]).values():
        future.result()
    derived = [new.prefix + topic for topic in ("profiles", "signals", "pairs", "slates", "decisions")]
    for future in admin.delete_topics(derived).values():
        future.result()
    assert {change.action for change in growth.run(settings, new).create} == {"create"}
    assert growth.run(settings, new).complete
    ranker = start(new)
    wait_for(lambda: ranker.counts["events"] == len(early) + 40)
    assert values(new, "profiles") == profiles_of(*clicks(USERS, "read"), *early, *clicks(USERS, "unread"))


def test_a_generation_has_one_parent(settings: Settings, new: Settings) -> None:
    grow(settings, new)
    other = msgspec.structs.replace(settings, prefix=settings.prefix + "other.")
    topics.apply(clients.check_broker(other), other)
    with pytest.raises(Misuse, match=f"was grown from {settings.prefix}, not from {other.prefix}"):
        growth.run(other, new)


# --- killed, and typed --------------------------------------------------------------------------------------------------

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
