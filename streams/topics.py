"""The topics, what each is for and how long it keeps what: created idempotently, never deleted, never re-partitioned.

All topics that share the key `user` (and those that share `item`) have the same number of partitions, so that a
worker's state moves with its input.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import msgspec
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from recsys.errors import Misuse, Unavailable
from streams.settings import Settings

DAY_MS = 86_400_000
OTHER_NUMBER = "set `partitions` to what it has, or grow into another prefix: docs/operations.md"
VISIBLE_S = 10.0  # what was created or altered is in the broker's metadata after .2 s (measured)
# Raw behaviour is personal data: gone before the 30 days in which a request for erasure must be answered.
TIME = {"cleanup.policy": "delete", "retention.ms": str(28 * DAY_MS)}
COMPACT = {
    "cleanup.policy": "compact",
    "min.cleanable.dirty.ratio": "0.1",  # restore reads what compaction has not yet removed: clean early
    "max.compaction.lag.ms": str(7 * DAY_MS),  # a bound for when a deleted user is really gone
    "delete.retention.ms": str(7 * DAY_MS),  # longer than any consumer is down
    "segment.ms": str(DAY_MS),  # the active segment is never compacted
}
BOTH = {**COMPACT, "cleanup.policy": "compact,delete", "retention.ms": str(28 * DAY_MS)}
# A record that fits on a topic must fit on `rejects` too, with what went wrong in its headers: else its worker could
# neither use it nor put it aside. Said here, since a cluster's own defaults may differ.
INPUT = {"max.message.bytes": "1048588"}
REJECTS = {"max.message.bytes": str(2 * 1024 * 1024)}
# The broker's own time of arrival: lateness and freshness are measured from it, and a replay sees the same.
ARRIVAL = {"message.timestamp.type": "LogAppendTime"}


class Topic(msgspec.Struct, frozen=True):
    """One topic as it should be."""

    name: str
    purpose: str
    partitions: int
    config: dict[str, str]


def plan(settings: Settings) -> list[Topic]:
    """Every topic of the design, with this tenant's prefix."""
    n = settings.partitions
    rows = [
        ("events", "what users do, key = user", n, {**TIME, **ARRIVAL, **INPUT}),
        ("items", "the catalogue, key = item, tombstone = gone", n, {**COMPACT, **INPUT}),
        ("profiles", "changelog of profiles, partition by partition with events", n, COMPACT),
        ("slates", "published lists, key = user", n, BOTH),
        ("decisions", "what each list was chosen from", n, TIME),
        ("pairs", "item-to-item increments, key = item", n, {**TIME, "retention.ms": str(2 * DAY_MS)}),
        ("signals", "changelog of item signals, partition by partition with pairs", n, COMPACT),
        ("rejects", "records that could not be used, with their bytes", n, {**TIME, **REJECTS}),
        ("models", "which release serves", 1, COMPACT),
        ("control", "the policy, requests and alarms", 1, COMPACT),
    ]
    return [Topic(settings.prefix + name, purpose, count, config) for name, purpose, count, config in rows]


class Change(msgspec.Struct, frozen=True):
    """One thing that differs. action: create, alter or refuse."""

    topic: str
    action: str
    detail: str


def diff(client: AdminClient, topics: Sequence[Topic]) -> list[Change]:
    """What would have to change for the topics to be as planned."""
    present = client.list_topics(timeout=10).topics
    existing = [topic for topic in topics if topic.name in present]
    resources = [ConfigResource(ResourceType.TOPIC, topic.name) for topic in existing]
    described = client.describe_configs(resources) if resources else {}
    # One that was deleted since it was listed has no answer, and is to be created.
    answers = {resource.name: _answer(future, but="UNKNOWN_TOPIC_OR_PART") for resource, future in described.items()}
    configs = {name: answer for name, answer in answers.items() if answer is not None}
    changes = []
    for topic in topics:
        if topic.name not in configs:
            changes.append(
                Change(topic.name, "create", f"{topic.partitions} partitions, {topic.config['cleanup.policy']}")
            )
            continue
        count = len(present[topic.name].partitions)
        if count != topic.partitions:
            changes.append(Change(topic.name, "refuse", f"has {count} partitions, not {topic.partitions}"))
        for key, value in topic.config.items():
            now = configs[topic.name][key].value
            if now != value:
                changes.append(Change(topic.name, "alter", f"{key}: {now} -> {value}"))
    return changes


def apply(client: AdminClient, settings: Settings) -> list[Change]:
    """Create and alter until the topics are as planned; what was changed. Twice is as once.

    Raises Misuse if a topic has another number of partitions: a key would live elsewhere, so growing is
    `slatecast topics grow`, not a setting. Raises Unavailable if the broker refuses.
    """
    topics = plan(settings)
    changes = diff(client, topics)
    _refuse(changes)
    by_name = {topic.name: topic for topic in topics}
    fresh = [
        NewTopic(t.name, t.partitions, settings.replication, config=t.config)
        for t in (by_name[change.topic] for change in changes if change.action == "create")
    ]
    resources = []
    for name in {change.topic for change in changes if change.action == "alter"}:
        resources.append(
            ConfigResource(
                ResourceType.TOPIC,
                name,
                incremental_configs=[
                    ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
                    for key, value in by_name[name].config.items()
                ],
            )
        )
    for future in (client.create_topics(fresh) if fresh else {}).values():
        _answer(future, but="TOPIC_ALREADY_EXISTS")  # another process applied at the same moment: looked at below
    for future in (client.incremental_alter_configs(resources) if resources else {}).values():
        _answer(future)
    # Until a producer or a reader that starts now finds them so.
    deadline_s = time.monotonic() + VISIBLE_S
    while changes and (left := diff(client, topics)):
        _refuse(left)
        if time.monotonic() > deadline_s:
            raise Unavailable(f"{left[0].topic} is still to {left[0].action} after {VISIBLE_S:.0f} s; apply again")
        time.sleep(0.02)
    return changes


def _refuse(changes: Sequence[Change]) -> None:
    for change in changes:
        if change.action == "refuse":
            raise Misuse(f"{change.topic} {change.detail}; {OTHER_NUMBER}")


def _answer(future: "Future[Any]", but: str = "") -> Any:
    try:
        return future.result()
    except KafkaException as error:
        if error.args[0].name() == but:
            return None
        raise Unavailable(f"the broker refused: {error.args[0].str()}") from None
