"""Every Kafka and Redis client, made from settings in one place, so that no setting that matters is forgotten.

Any librdkafka key in `settings.kafka` is passed on, but for those on which exactly-once rests.
"""

import logging
import re

import redis
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from recsys.errors import Misuse, Unavailable
from streams.settings import Settings, Value

TRANSACTION_TIMEOUT_S = 15  # > 3 × the worst batch; the default of 60 s would hold every subscriber up for a minute
SESSION_TIMEOUT_S = 10  # a killed member's partitions move after this; a restarted static member is back at once

# What a user may not set: losing or doubling events would be silent.
REFUSED = {
    "transactional.id": "it fences a worker's predecessor and is made from its role and instance",
    "enable.idempotence": "without it a retry writes twice",
    "acks": "less than all loses acknowledged records when a broker dies",
    "partitioner": "all producers must agree where a key lives (murmur2_random, as the Java clients)",
    "enable.auto.commit": "offsets are committed in the transaction of their outputs",
    "enable.auto.offset.store": "offsets are committed in the transaction of their outputs",
    "isolation.level": "read_uncommitted would read what was aborted",
    "auto.offset.reset": "an offset out of range must be an error, not a silent jump",
    "group.protocol": "the consumer protocol evicts a killed static member only after 45 s (measured)",
    "partition.assignment.strategy": "co-partitioned topics need the range assignor",
}

PRODUCER: dict[str, Value] = {
    "partitioner": "murmur2_random",
    "enable.idempotence": True,
    "acks": "all",
    "compression.type": "lz4",
    "linger.ms": 2,
    # Kafka answers CONCURRENT_TRANSACTIONS to the first send after a commit; librdkafka then waits this long.
    # Its default of 100 ms makes a transaction take 101–116 ms, 1 ms makes it 5–30 ms (measured on 4.3.1).
    "retry.backoff.ms": 1,
    "retry.backoff.max.ms": 10,
}
CONSUMER: dict[str, Value] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "error",
    "group.protocol": "classic",
    "partition.assignment.strategy": "range",
    "session.timeout.ms": SESSION_TIMEOUT_S * 1000,
    "heartbeat.interval.ms": SESSION_TIMEOUT_S * 1000 // 3,
    "fetch.wait.max.ms": 50,
    "retry.backoff.ms": 1,
    "retry.backoff.max.ms": 10,
}

# Lines that say nothing is wrong: seen at every start and every takeover.
_NOISE = re.compile(
    r"Coordinator load in progress|another concurrent operation|Disconnected while requesting|TERMINATE"
)


class _Quiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _NOISE.search(record.getMessage())


_client_log = logging.getLogger("slatecast.kafka")
_client_log.addFilter(_Quiet())


def producer(settings: Settings, transactional_id: str | None = None) -> Producer:
    """An idempotent producer; transactional if it has an id. The caller calls init_transactions."""
    extra: dict[str, Value] = {}
    if transactional_id is not None:
        extra = {"transactional.id": transactional_id, "transaction.timeout.ms": TRANSACTION_TIMEOUT_S * 1000}
    return Producer(_options(settings, PRODUCER, extra), logger=_client_log)


def consumer(settings: Settings, group: str, instance_id: str | None = None) -> Consumer:
    """A member of a group: committed records only, offsets committed by nobody but the caller."""
    extra: dict[str, Value] = {"group.id": group}
    if instance_id is not None:
        extra["group.instance.id"] = instance_id  # static membership: a quick restart causes no rebalance
    return Consumer(_options(settings, CONSUMER, extra), logger=_client_log)


def reader(settings: Settings) -> Consumer:
    """A consumer for `assign`, outside any group's life, which reports the end of a partition."""
    extra: dict[str, Value] = {"group.id": f"{settings.prefix}reader", "enable.partition.eof": True}
    return Consumer(_options(settings, CONSUMER, extra), logger=_client_log)


def admin(settings: Settings) -> AdminClient:
    """A client for topics, offsets and metadata."""
    return AdminClient(_options(settings, {}, {}), logger=_client_log)


def redis_client(settings: Settings) -> redis.Redis:
    """A client whose calls give up after 5 s."""
    if not settings.redis:
        raise Misuse("no Redis named: give --redis redis://host:6379, or run `slatecast up`")
    return redis.Redis.from_url(settings.redis, socket_timeout=5, socket_connect_timeout=5)


def check_broker(settings: Settings, timeout_s: float = 5.0) -> AdminClient:
    """An admin client of a broker that answers. Raises Unavailable with the remedy."""
    client = admin(settings)
    try:
        client.list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise Unavailable(
            f"no Kafka answers at {settings.bootstrap} ({error.args[0].str()}); "
            "run `slatecast up`, or name a cluster with --bootstrap host:port"
        ) from None
    return client


def partitions_of(client: AdminClient, topic: str) -> list[int]:
    """Partition numbers of a topic. Raises Unavailable if it does not exist."""
    found = client.list_topics(topic, timeout=10).topics[topic]
    if found.error is not None:
        raise Unavailable(f"topic {topic}: {found.error.str()}; run `slatecast topics apply --execute`")
    return sorted(found.partitions)


def at(topic: str, partition: int, offset: int) -> TopicPartition:
    """A position in a partition."""
    return TopicPartition(topic, partition, offset)


def _options(settings: Settings, defaults: dict[str, Value], extra: dict[str, Value]) -> dict[str, Value]:
    if not settings.bootstrap:
        raise Misuse("no Kafka named: give --bootstrap host:port, or run `slatecast up` in another terminal")
    for key in settings.kafka.keys() & REFUSED.keys():
        raise Misuse(f"kafka setting {key} is not yours to set: {REFUSED[key]}")
    return {
        **defaults,
        **settings.kafka,
        **extra,
        "bootstrap.servers": settings.bootstrap,
        "client.id": f"{settings.prefix}slatecast",
        "log.connection.close": False,
    }


def broken(error: KafkaError) -> Unavailable:
    """An error that a consumer reports in place of a record."""
    return Unavailable(f"Kafka: {error.str()}")


def hide_secrets(url: str) -> str:
    """A URL fit for a terminal or a log: without user and password."""
    return re.sub(r"//[^@/]*@", "//…@", url)
