"""Whether a role's input is still the topic that it was.

One that is deleted and made again begins anew, and the client reads on in it where it was in the old one, without a word
(2 times in 10 where it was made again at once; librdkafka 4898). So each committed offset says which topic it is of, and
who looks for the brokers asks for the topic's id too. Called by the worker, and from its watchdog's thread.
"""

import contextlib
from collections.abc import Iterable

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from recsys.errors import Unavailable
from streams.state import topic_id
from streams.transactions import Stopped


class InputTopic:
    """id: the broker's, of the topic whose partitions were assigned last; empty before the first."""

    def __init__(self, admin: AdminClient, name: str, role: str, group: str) -> None:
        self._admin, self._name, self._role, self._group = admin, name, role, group
        self.id = self._now = ""

    def brokers(self) -> frozenset[int]:
        """Which brokers are there, none while nobody answers. Takes 2 s at most."""
        try:
            found = frozenset(self._admin.list_topics(self._name, timeout=1).brokers)
        except KafkaException:
            return frozenset()
        with contextlib.suppress(Unavailable):  # it asks the controller, which may be on its way to another broker
            self._now = topic_id(self._admin, self._name, timeout_s=1)
        return found

    def take(self, committed: Iterable[TopicPartition]) -> None:
        """What is there now is the input. Raises Stopped where an offset is of another, Unavailable."""
        self.id = self._now = topic_id(self._admin, self._name)
        if any(tp.offset >= 0 and tp.metadata not in (None, "", self.id) for tp in committed):
            raise self._made_again()

    def check(self) -> None:
        """Raise Stopped if another topic was last seen in the input's place."""
        if self.id not in ("", self._now):
            raise self._made_again()

    def _made_again(self) -> Stopped:
        return Stopped(
            f"{self._role}: {self._name} was made again while a role read it: what came first in the new one may not have "
            f"been read by group {self._group}; docs/operations.md says how to go on"
        )
