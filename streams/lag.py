"""How far a role is behind its input, in records."""

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException
from confluent_kafka.admin import AdminClient

from streams import clients
from streams.settings import Settings
from streams.state import end_offsets

WRITTEN_IN_TRANSACTIONS = ("pairs", "slates")


def records_behind(admin: AdminClient, settings: Settings, role: str, topic: str) -> int:
    """Records on a role's input that it has not committed; what it never committed counts from the beginning.

    A transaction's marker at the end of a partition takes an offset without being a record: one per partition is
    not counted. The answer of a coordinator that is still loading is "nothing committed".
    """
    name, group = settings.prefix + topic, settings.prefix + role
    ends = end_offsets(admin, name, clients.partitions_of(admin, name))
    try:
        answer = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result()
    except KafkaException as error:
        if not error.args[0].retriable() and error.args[0].name() not in (
            "COORDINATOR_LOAD_IN_PROGRESS",
            "NOT_COORDINATOR",
        ):
            raise clients.broken(error.args[0]) from None
        return sum(ends.values())
    at = {tp.partition: tp.offset for tp in answer.topic_partitions if tp.topic == name}
    behind = (end - at.get(partition, 0) for partition, end in ends.items() if end)
    marker = 1 if topic in WRITTEN_IN_TRANSACTIONS else 0
    return sum(count for count in behind if count > marker)
