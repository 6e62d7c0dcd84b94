"""The policy that rankers obey: published on the topic `control`, taken up between two batches, never half.

One record, key `policy`; its value is a policy as JSON or TOML (recsys/policy_file.py), a tombstone gives every ranker
back the policy of its own settings. What cannot be read is refused, said and counted, and the one before stays.
Called by the ranker and by `slatecast policy apply`. Not for releases: those are files (models/serving.py).
"""

import logging

from confluent_kafka import KafkaError, Message

from recsys.errors import Misuse, Unavailable
from recsys.policy import Policy
from recsys.policy_file import read_policy
from streams import clients, telemetry
from streams.records import Record
from streams.settings import Settings
from streams.tables import TableReader

log = logging.getLogger(__name__)

KEY = b"policy"
SCHEMA = ("schema", b"slatecast.policy.v1")
ANSWER_S = 10.0  # a broker that has not taken one record by then does not answer


class PolicyReader:
    """The policy as of now. Own, until one is published."""

    def __init__(self, settings: Settings) -> None:
        self._own = settings.policy
        _show(self._own)
        self._unread: list[Record] = []
        self._table = TableReader(settings, "control", self._take)

    def catch_up(self) -> Policy | None:
        """What was published last, read from the beginning; None if nothing that can be read."""
        self._table.catch_up()
        return self._newest()

    def follow(self) -> Policy | None:
        """What has been published since, without waiting; None if nothing that can be read."""
        self._table.follow()
        return self._newest()

    def close(self) -> None:
        """Leave the broker."""
        self._table.close()

    def _take(self, record: Record) -> None:
        if record.key == KEY:
            self._unread.append(record)

    def _newest(self) -> Policy | None:
        """The newest that can be read; those after it are refused, those before it are history."""
        unread, self._unread = self._unread, []
        for record in reversed(unread):
            try:
                policy = self._own if record.value is None else read_policy(record.value.decode())
            except (Misuse, UnicodeDecodeError) as error:
                telemetry.POLICIES.labels("refused").inc()
                log.error("a policy is refused (control, offset %d), the one before stays: %s", record.offset, error)
            else:
                telemetry.POLICIES.labels("applied").inc()
                _show(policy)
                log.info("lists are made by policy %s (control, offset %d)", policy.digest(), record.offset)
                return policy
        return None


def _show(policy: Policy) -> None:
    telemetry.POLICY_INFO.clear()
    telemetry.POLICY_INFO.labels(policy.digest()).set(1)


def publish(settings: Settings, text: bytes | None) -> None:
    """Give all rankers a policy (JSON or TOML), or None: that of their settings. Raises Misuse, Unavailable."""
    if text is not None:
        read_policy(text.decode())
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failed.append(error)

    producer = clients.producer(settings)
    producer.produce(settings.prefix + "control", text, KEY, headers=[SCHEMA], on_delivery=delivered)
    if producer.flush(ANSWER_S):
        raise Unavailable(f"the policy was not taken within {ANSWER_S:.0f} s; `slatecast doctor` may say why")
    if failed:
        raise Unavailable(f"the policy was not taken: {failed[0].str()}; run `slatecast topics apply --execute`")


def published(settings: Settings) -> Policy | None:
    """The policy published last, None if there is none that can be read."""
    reader = PolicyReader(settings)
    try:
        return reader.catch_up()
    finally:
        reader.close()
