"""Every Kafka and Redis client, made from settings in one place, so that no setting that matters is forgotten.

Any librdkafka key in `settings.kafka` is passed on, but for those on which exactly-once rests.
"""

import logging
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from recsys.errors import Misuse, Unavailable
from streams.settings import Settings, Value, hide_secrets

if TYPE_CHECKING:
    import redis

TRANSACTION_TIMEOUT_S = 15  # > 3 × the worst batch; the default of 60 s would hold every subscriber up for a minute
REPEAT_S = 30.0  # between two lines of the log on one connection that fails
SESSION_TIMEOUT_S = 10  # a killed member's partitions move after this; a restarted static member is back at once

# What a user may not set: losing or doubling events would be silent.
REFUSED = {
    "bootstrap.servers": "it is the setting `bootstrap`",
    "metadata.broker.list": "it is the setting `bootstrap`",
    "group.id": "a role's place in its topics hangs on it",
    "group.instance.id": "it is made from a worker's role and instance",
    "enable.partition.eof": "a restore ends by it, a worker must not see it",
    "transactional.id": "it fences a worker's predecessor and is made from its role and instance",
    "transaction.timeout.ms": "the watchdog of a worker is set to it",
    "enable.idempotence": "without it a retry writes twice",
    "acks": "less than all loses acknowledged records when a broker dies",
    "request.required.acks": "less than all loses acknowledged records when a broker dies",
    "max.in.flight": "with more than one the client may count records as stored that are not",
    "max.in.flight.requests.per.connection": "with more than one the client may count records as stored that are not",
    "partitioner": "all producers must agree where a key lives (murmur2_random, as the Java clients)",
    "enable.auto.commit": "offsets are committed in the transaction of their outputs",
    "enable.auto.offset.store": "offsets are committed in the transaction of their outputs",
    "isolation.level": "read_uncommitted would read what was aborted",
    "auto.offset.reset": "an offset out of range must be an error, not a silent jump",
    "group.protocol": "the consumer protocol evicts a killed static member only after 45 s (measured)",
    "partition.assignment.strategy": "co-partitioned topics need the range assignor",
}

COMMON: dict[str, Value] = {
    "client.id": "slatecast",
    "log.connection.close": False,
    "reconnect.backoff.max.ms": 1000,  # as the Java clients; librdkafka's 10 s is how long a broker may be back unseen
    # A broker that was away may answer that there are no brokers at all, itself included. The client then has nobody to
    # ask for this long (5 min by default).
    "metadata.recovery.rebootstrap.trigger.ms": 5000,
}
PRODUCER: dict[str, Value] = {
    **COMMON,
    "partitioner": "murmur2_random",
    "enable.idempotence": True,
    "acks": "all",
    # A partition that has just got its leader may refuse a new producer's first batches and take a later one. librdkafka
    # then reports all as stored (confluent-kafka-go 921): with the default, 5, records were lost onto 9 of 40 new topics,
    # with 1 onto none of 200.
    "max.in.flight": 1,
    # The default of 1,000,000 is below the 1,048,588 that a broker takes: a bad record of that size could not be put
    # aside, and its worker would meet it for ever. The topic's max.message.bytes decides (topics.py).
    "message.max.bytes": 16 * 1024 * 1024,
    "compression.type": "lz4",
    "linger.ms": 2,
    "queue.buffering.max.kbytes": 64 * 1024,  # the default is 1 GB: a slow broker must not fill the memory
    # Kafka answers CONCURRENT_TRANSACTIONS to the first send after a commit; librdkafka then waits this long.
    # Its default of 100 ms makes a transaction take 101–116 ms, 1 ms makes it 5–30 ms (measured on 4.3.1).
    "retry.backoff.ms": 1,
    "retry.backoff.max.ms": 10,
}
CONSUMER: dict[str, Value] = {
    **COMMON,
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "error",
    "group.protocol": "classic",
    "partition.assignment.strategy": "range",
    "session.timeout.ms": SESSION_TIMEOUT_S * 1000,
    "heartbeat.interval.ms": SESSION_TIMEOUT_S * 1000 // 3,
    "queued.max.messages.kbytes": 32 * 1024,  # 5 s of events at full speed, ready in memory
    # When that much is waiting the client fetches no more for so long; by default 1 s, though a restore takes 32 MB in
    # a sixth of it: it waited most of its time (72,000 records/s; with 5 ms 230,000, measured).
    "fetch.queue.backoff.ms": 5,
    "fetch.wait.max.ms": 50,  # records are sent at once; this bounds how long an idle fetch keeps a new partition waiting
    "retry.backoff.ms": 1,
    "retry.backoff.max.ms": 10,
}

TWIN = "another process has this --instance: give each its own"
MEANS = {
    "_AUTO_OFFSET_RESET": "the topic no longer has what was to be read next, or is another one",
    "UNKNOWN_TOPIC_OR_PART": "run `slatecast topics apply --execute`",
    "_UNKNOWN_PARTITION": "a role's input has more partitions than its other topics: `slatecast topics apply` shows them, "
    "docs/operations.md says how to grow",
}
# Lines that say nothing is wrong: seen at every start and every takeover, and for every passed-on key that only
# producers or only consumers know.
_NOISE = re.compile(
    r"Coordinator load in progress|another concurrent operation|Disconnected while requesting|TERMINATE|METADATAUPDATE"
    r"|is a (producer|consumer) property and will be ignored"
)
Client = TypeVar("Client")


class _Quiet(logging.Filter):
    """No noise; and a connection that fails says so once in a while, not at each of 9 attempts a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if _NOISE.search(message):
            return False
        if message.startswith("FAIL "):
            words, now_s = message.partition(" (after ")[0], time.monotonic()
            if now_s - self._said_s.get(words, -REPEAT_S) < REPEAT_S:
                return False
            self._said_s = {k: s for k, s in self._said_s.items() if now_s - s < REPEAT_S} | {words: now_s}
        return True


_client_log = logging.getLogger("slatecast.kafka")
_client_log.addFilter(_Quiet())
_client_log.addHandler(logging.NullHandler())  # a command that sets up no logging says its one line and nothing else


def producer(settings: Settings, transactional_id: str | None = None) -> Producer:
    """An idempotent producer; transactional if it has an id. The caller calls init_transactions."""
    extra: dict[str, Value] = {}
    if transactional_id is not None:
        extra = {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_S * 1000,
            # The default, rebootstrap, forgets the brokers when all of them are down; send_offsets then waits for the
            # group's coordinator as it was, for ever (librdkafka 5511), though they are long back.
            "metadata.recovery.strategy": "none",
        }
    return _make(Producer, _options(settings, PRODUCER, extra))


def consumer(settings: Settings, group: str, instance_id: str | None = None) -> Consumer:
    """A member of a group: committed records only, offsets committed by nobody but the caller."""
    extra: dict[str, Value] = {"group.id": group}
    if instance_id is not None:
        extra["group.instance.id"] = instance_id  # static membership: a quick restart causes no rebalance
    return _make(Consumer, _options(settings, CONSUMER, extra))


def reader(settings: Settings) -> Consumer:
    """A consumer for `assign`, outside any group's life, which reports the end of a partition."""
    extra: dict[str, Value] = {"group.id": f"{settings.prefix}reader", "enable.partition.eof": True}
    return _make(Consumer, _options(settings, CONSUMER, extra))


def asker(settings: Settings, group: str) -> Consumer:
    """A consumer that only asks what a group has committed, now: it does not wait for transactions that are open."""
    return _make(Consumer, _options(settings, CONSUMER, {"group.id": group, "isolation.level": "read_uncommitted"}))


def admin(settings: Settings, on_error: Callable[[KafkaError], None] = lambda error: None) -> AdminClient:
    """A client for topics, offsets and metadata. `on_error` hears why connections fail, when the client is polled."""
    # Its log would say on the terminal what `on_error` hears and what calls raise.
    return _make(AdminClient, {**_options(settings, COMMON, {}), "error_cb": on_error, "log_level": 0})


def redis_client(settings: Settings) -> "redis.Redis":
    """A client whose calls give up after 5 s."""
    import redis  # .4 s, which no worker's start should pay

    if not settings.redis:
        raise Misuse("no Redis named: give --redis redis://host:6379, or run `slatecast up`")
    try:
        return redis.Redis.from_url(settings.redis, socket_timeout=5, socket_connect_timeout=5)
    except ValueError as error:  # with an account in the URL it may quote a part of the password
        why = "no URL: a port is 0 to 65535, and / ? # [ ] in a password are written %2F %3F %23 %5B %5D"
        raise Misuse(f"--redis {hide_secrets(settings.redis)}: {why if '@' in settings.redis else error}") from None


def check_broker(settings: Settings, timeout_s: float = 5.0) -> AdminClient:
    """An admin client of a broker that answers. Raises Unavailable with the cause and the remedy."""
    causes: list[KafkaError] = []
    client = admin(settings, causes.append)
    try:
        client.list_topics(timeout=timeout_s)
    except KafkaException as error:
        client.poll(0)
        # Metadata only "timed out"; the connections know of names, refusals, certificates and passwords.
        cause = next((c for c in causes if c.code() != KafkaError._ALL_BROKERS_DOWN), error.args[0])  # noqa: SLF001
        raise Unavailable(
            f"no Kafka answers at {settings.bootstrap} ({cause.str()}); "
            "run `slatecast up`, or name a cluster with --bootstrap host:port"
        ) from None
    return client


def check_redis(settings: Settings) -> "redis.Redis":
    """A client of a Redis that answers. Raises Unavailable with the cause and the remedy."""
    import redis

    client = redis_client(settings)
    try:
        client.ping()
    except redis.RedisError as error:
        client.close()
        raise Unavailable(
            f"no Redis answers at {hide_secrets(settings.redis)} ({error}); "
            "run `slatecast up`, or name one with --redis redis://host:6379/0"
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
    }


def _make(kind: Callable[..., Client], options: dict[str, Any]) -> Client:
    try:
        return kind(options, logger=_client_log)
    except KafkaException as error:  # librdkafka names the key, never its value
        raise Misuse(f"kafka settings: {error.args[0].str()}") from None


def broken(error: KafkaError) -> Unavailable:
    """An error that a consumer reports in place of a record."""
    return Unavailable(f"Kafka: {explain(error)}")


def explain(error: KafkaError, otherwise: str = "") -> str:
    """What the client said, and what it means here; `otherwise` where that is not known."""
    means = TWIN if is_fenced(error) else MEANS.get(error.name(), otherwise)
    return f"{error.str()}; {means}" if means else error.str()


def is_fenced(error: KafkaError) -> bool:
    """Whether another has taken this one's name. By the words: the consumer's error has no code of its own."""
    return "fenced" in error.str()
