"""How far a role is behind its input: asked from outside, and shown by the role itself."""

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from streams import clients, telemetry
from streams.records import Record
from streams.settings import Settings
from streams.state import ELECTION_S, end_offsets

WRITTEN_IN_TRANSACTIONS = ("pairs", "slates")
# The client does not call these retriable, though they pass by themselves.
SHOW_EVERY_S = 1.0
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


class LagMeter:
    """The lag of one consumer as metrics, from what its fetches have told it: no question to the broker."""

    def __init__(self, role: str, consumer: Consumer, topic: str) -> None:
        self._role, self._consumer, self._topic = role, consumer, topic
        self._arrived_ms: dict[int, int] = {}
        self._shown_s = 0.0

    def show(self, next_offsets: Mapping[int, int], processed: Sequence[Record]) -> None:
        """Records that wait, and the age of the newest processed one while some do. At most once a second."""
        for record in processed:
            self._arrived_ms[record.partition] = record.arrived_ms
        now_s = time.monotonic()
        if now_s - self._shown_s < SHOW_EVERY_S:
            return
        self._shown_s = now_s
        # Behind the last record the client passes transactions' markers, and what was aborted: its position tells.
        for at in self._consumer.position([TopicPartition(self._topic, p) for p in next_offsets]):
            partition, offset = at.partition, next_offsets[at.partition]
            _, end = self._consumer.get_watermark_offsets(at, cached=True)
            behind = max(0, end - max(offset, at.offset))
            arrived_ms = self._arrived_ms.get(partition)
            age_s = time.time() - arrived_ms / 1000 if behind and arrived_ms else 0.0
            labels = self._role, str(partition)
            telemetry.COMMITTED_OFFSET.labels(*labels).set(offset)
            telemetry.LAG_RECORDS.labels(*labels).set(behind)
            telemetry.LAG_SECONDS.labels(*labels).set(max(0.0, age_s))  # clocks differ; age is never negative

    def forget(self, partitions: Iterable[int]) -> None:
        """Another has them now."""
        for partition in partitions:
            self._arrived_ms.pop(partition, None)
            for gauge in (telemetry.COMMITTED_OFFSET, telemetry.LAG_RECORDS, telemetry.LAG_SECONDS):
                with contextlib.suppress(KeyError):  # never shown
                    gauge.remove(self._role, str(partition))
