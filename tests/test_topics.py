"""Topics on the real broker: made once, changed only where that is safe."""

import os
from collections.abc import Callable

import msgspec
import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from stream_helpers import read_topic

from recsys.errors import Misuse, Unavailable
from streams import clients, topics
from streams.settings import Settings

Wait = Callable[..., None]
# The largest value that a broker takes on `events` in a batch of its own, with key and overhead (measured on 4.3.1).
LARGEST = 1_048_500


@pytest.fixture
def bare(settings: Settings) -> Settings:
    """A prefix of its own without topics."""
    return msgspec.structs.replace(settings, prefix=settings.prefix + "bare.")


def names(settings: Settings) -> set[str]:
    found = clients.admin(settings).list_topics(timeout=10).topics
    return {name for name in found if name.startswith(settings.prefix)}


def set_config(settings: Settings, topic: str, key: str, value: str) -> None:
    entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, settings.prefix + topic, incremental_configs=[entry])
    admin = clients.admin(settings)  # held: a client that is dropped fails its futures
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()


def test_the_plan_holds_the_topics_of_the_design() -> None:
    plan = {topic.name: topic for topic in topics.plan(Settings(prefix="shop.", partitions=6))}
    policies = {name.removeprefix("shop."): topic.config["cleanup.policy"] for name, topic in plan.items()}
    assert policies == {
        "events": "delete",
        "items": "compact",
        "profiles": "compact",
        "slates": "compact,delete",
        "decisions": "delete",
        "pairs": "delete",
        "signals": "compact",
        "rejects": "delete",
        "models": "compact",
        "control": "compact",
    }
    # A worker's state is read partition by partition with its input.
    assert plan["shop.events"].partitions == plan["shop.profiles"].partitions == 6
    assert plan["shop.pairs"].partitions == plan["shop.signals"].partitions == 6


def test_personal_data_is_gone_before_the_thirty_days_of_an_erasure_request() -> None:
    for topic in topics.plan(Settings()):
        kept = [topic.config[key] for key in ("retention.ms", "max.compaction.lag.ms") if key in topic.config]
        assert kept, topic.name
        assert all(int(ms) < 30 * topics.DAY_MS for ms in kept)


def test_a_diff_changes_nothing(bare: Settings) -> None:
    changes = topics.diff(clients.admin(bare), topics.plan(bare))
    assert {change.action for change in changes} == {"create"}
    assert len(changes) == 10
    assert names(bare) == set()


def test_applied_topics_are_there_at_once_and_twice_is_as_once(bare: Settings) -> None:
    admin = clients.check_broker(bare)
    assert len(topics.apply(admin, bare)) == 10
    assert names(bare) == {topic.name for topic in topics.plan(bare)}
    assert topics.apply(admin, bare) == []
    assert topics.diff(admin, topics.plan(bare)) == []


def test_a_setting_that_was_changed_by_hand_is_brought_back(settings: Settings, wait_for: Wait) -> None:
    admin = clients.admin(settings)
    set_config(settings, "events", "retention.ms", "1000")
    set_config(settings, "events", "flush.messages", "77")
    wait_for(lambda: topics.diff(admin, topics.plan(settings)))
    changes = topics.apply(admin, settings)
    assert [(c.topic, c.action, c.detail) for c in changes] == [
        (settings.prefix + "events", "alter", "retention.ms: 1000 -> 2419200000")
    ]
    assert topics.diff(admin, topics.plan(settings)) == []
    (future,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, settings.prefix + "events")]).values()
    assert future.result()["flush.messages"].value == "77", "what the plan does not name is the operator's"


def test_a_topic_with_another_number_of_partitions_is_refused_and_nothing_is_done(
    bare: Settings, wait_for: Wait
) -> None:
    admin = clients.admin(bare)
    for future in admin.create_topics([NewTopic(bare.prefix + "slates", 3, 1)]).values():
        future.result()
    wait_for(lambda: names(bare))
    with pytest.raises(Misuse, match=r"slates has 3 partitions, not 4; set `partitions`"):
        topics.apply(admin, bare)
    assert names(bare) == {bare.prefix + "slates"}


def test_a_topic_that_is_deleted_while_it_is_looked_at_is_to_be_created(
    settings: Settings, wait_for: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, gone = clients.admin(settings), settings.prefix + "slates"
    listed = admin.list_topics(timeout=10)
    admin.delete_topics([gone])[gone].result()
    wait_for(lambda: gone not in names(settings))
    monkeypatch.setattr(admin, "list_topics", lambda timeout: listed)
    changes = topics.diff(admin, topics.plan(settings))
    assert [(change.topic, change.action) for change in changes] == [(gone, "create")]


def test_a_broker_that_refuses_is_quoted(bare: Settings) -> None:
    with pytest.raises(Unavailable, match="the broker refused: .*eplication factor"):
        topics.apply(clients.admin(bare), msgspec.structs.replace(bare, replication=3))


def test_whatever_fits_on_events_fits_on_rejects_with_its_headers(settings: Settings) -> None:
    producer, value = clients.producer(settings), os.urandom(LARGEST)
    failed: list[str] = []
    for topic, headers in (("events", []), ("rejects", [("why", b"x" * 2048)])):
        producer.produce(
            settings.prefix + topic, value, b"u1", headers=headers, on_delivery=lambda e, _: e and failed.append(str(e))
        )
    assert producer.flush(30) == 0
    assert failed == []
    assert [len(record.value or b"") for record in read_topic(settings, "rejects")] == [LARGEST]
