"""How far a role is behind its input, in records."""

import time

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from streams import clients
from streams.settings import Settings
from streams.state import ELECTION_S, end_offsets

WRITTEN_IN_TRANSACTIONS = ("pairs", "slates")
# The client does not call these retriable, though they pass by themselves.
NO_COORDINATOR_YET = ("NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS")


def records_behind(admin: AdminClient, settings: Settings, role: str, topic: str) -> int:
    """Records on a role's input that it has not committed; what it never committed counts from the beginning.

    A transaction's marker at the end of a partition takes an offset without being a record: one per partition is
    not counted. Raises Unavailable. .05 s.
    """
    name = settings.prefix + topic
    ends = end_offsets(admin, name, clients.partitions_of(admin, name))
    at = committed_offsets(settings, role, topic, list(ends))
    behind = (end - at[partition] for partition, end in ends.items() if end)
    marker = 1 if topic in WRITTEN_IN_TRANSACTIONS else 0
    return sum(count for count in behind if count > marker)


def committed_offsets(settings: Settings, role: str, topic: str, partitions: list[int]) -> dict[int, int]:
    """The next offset of a role in each partition; 0 where it has committed none. Raises Unavailable.

    Asked by a consumer that never joins the group. The admin client's request ends the whole process (SIGSEGV,
    librdkafka issue 5040) where the group's coordinator is not settled yet, as on a broker that has just started.
    """
    asking = clients.asker(settings, settings.prefix + role)
    wanted, deadline_s = [TopicPartition(settings.prefix + topic, p) for p in partitions], time.monotonic() + ELECTION_S
    try:
        while True:
            try:
                found = asking.committed(wanted, timeout=30)
            except KafkaException as error:
                if error.args[0].name() not in NO_COORDINATOR_YET or time.monotonic() > deadline_s:
                    raise clients.broken(error.args[0]) from None
                time.sleep(0.05)
            else:
                return {tp.partition: max(tp.offset, 0) for tp in found}
    finally:
        asking.close()
