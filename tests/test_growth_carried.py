"""What is carried into a new generation of topics: every key's last word, once, and never over what is newer there."""

import threading

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from growth_helpers import Wait, clicks, commit, ends, grow, last, lived_in, new, values
from stream_helpers import read_topic, send, send_events

from recsys.catalogue import Item, encode_item
from recsys.policy import Policy
from streams import clients, growth
from streams.carrying import Values
from streams.growth import next_generation
from streams.materialiser import Materialiser, slate_key
from streams.policies import KEY, publish, published
from streams.settings import Settings

__all__ = ["new"]  # the fixture


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
