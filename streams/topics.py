"""The topics, what each is for and how long it keeps what: created idempotently, never deleted, never re-partitioned.

All topics that share the key `user` (and those that share `item`) have the same number of partitions, so that a
worker's state moves with its input.
"""

from collections.abc import Sequence

import msgspec
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from recsys.errors import Misuse, Unavailable
from streams.settings import Settings

DAY_MS = 86_400_000
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
        ("events", "what users do, key = user", n, {**TIME, **ARRIVAL}),
        ("items", "the catalogue, key = item, tombstone = gone", n, COMPACT),
        ("profiles", "changelog of profiles, partition by partition with events", n, COMPACT),
        ("slates", "published lists, key = user", n, BOTH),
        ("decisions", "what each list was chosen from", n, TIME),
        ("pairs", "item-to-item increments, key = item", n, {**TIME, "retention.ms": str(2 * DAY_MS)}),
        ("signals", "changelog of item signals, partition by partition with pairs", n, COMPACT),
        ("rejects", "records that could not be used, with their bytes", n, TIME),
        ("models", "which release serves", 1, COMPACT),
        ("control", "requests and alarms", 1, COMPACT),
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
    configs = {r.name: f.result() for r, f in client.describe_configs(resources).items()} if resources else {}
    changes = []
    for topic in topics:
        if topic.name not in present:
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

    Raises Misuse if a topic has another number of partitions: a key would live elsewhere, so growing is a replay into
    new topics, not a setting. Raises Unavailable if the broker refuses.
    """
    topics = plan(settings)
    changes = diff(client, topics)
    for change in changes:
        if change.action == "refuse":
            raise Misuse(f"{change.topic} {change.detail}; set `partitions` to what it has, or use another prefix")
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
    futures = [*(client.create_topics(fresh) if fresh else {}).values()]
    futures += [*(client.incremental_alter_configs(resources) if resources else {}).values()]
    for future in futures:
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].name() != "TOPIC_ALREADY_EXISTS":  # another process applied at the same moment
                raise Unavailable(f"the broker refused: {error.args[0].str()}") from None
    return changes
