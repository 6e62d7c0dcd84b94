"""Clients on the real broker: the promises that our settings make, and what a wrong one says."""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import NewTopic
from stream_helpers import read_topic, send

from recsys.errors import Misuse, Unavailable
from streams import clients
from streams.settings import Settings
from streams.state import end_offsets

Wait = Callable[..., None]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where a server accepts and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def with_kafka(settings: Settings, **options: object) -> Settings:
    return msgspec.structs.replace(settings, kafka={key.replace("_", "."): value for key, value in options.items()})


def values_to_the_end(settings: Settings, topic: str) -> list[bytes | None]:
    """What partition 0 shows, to the end that the broker tells a read_committed reader."""
    consumer, values = clients.reader(settings), []
    consumer.assign([TopicPartition(topic, 0, 0)])
    while (message := consumer.poll(10)) is not None and message.error() is None:
        values.append(message.value())
    assert message is not None
    assert message.error().code() == KafkaError._PARTITION_EOF
    consumer.close()
    return values


@pytest.mark.parametrize("key", sorted(clients.REFUSED))
def test_a_setting_on_which_exactly_once_rests_is_refused(key: str) -> None:
    settings = Settings(bootstrap="nobody:1", kafka={key: "x"})
    for make in (clients.producer, clients.admin, clients.reader, lambda s: clients.consumer(s, "g")):
        with pytest.raises(Misuse, match=f"{key} is not yours to set: {clients.REFUSED[key]}".replace("(", r"\(")[:60]):
            make(settings)


def test_every_default_that_protects_a_record_is_refused_to_the_user() -> None:
    free = {  # speed, not safety: a user may know better
        "client.id",
        "compression.type",
        "fetch.queue.backoff.ms",
        "fetch.wait.max.ms",
        "heartbeat.interval.ms",
        "linger.ms",
        "log.connection.close",
        "message.max.bytes",
        "metadata.recovery.rebootstrap.trigger.ms",
        "metadata.recovery.strategy",
        "queue.buffering.max.kbytes",
        "queued.max.messages.kbytes",
        "reconnect.backoff.max.ms",
        "retry.backoff.max.ms",
        "retry.backoff.ms",
        "session.timeout.ms",
    }
    assert (clients.PRODUCER.keys() | clients.CONSUMER.keys()) - free <= clients.REFUSED.keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"no.such.key": 1}, 'No such configuration property: "no.such.key"'),
        ({"batch.size": "canary"}, 'Invalid value for configuration property "batch.size"'),
        ({"reconnect.backoff.max.ms": 1}, "reconnect.backoff.max.ms"),
        ({"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "NONE"}, "Unsupported SASL mechanism"),
    ],
)
def test_a_key_that_librdkafka_refuses_is_misuse(options: dict[str, str | int], said: str) -> None:
    with pytest.raises(Misuse, match=said) as caught:
        clients.producer(Settings(bootstrap="nobody:1", kafka=options))
    assert "canary" not in str(caught.value)


def test_any_other_key_is_passed_on(settings: Settings) -> None:
    small = msgspec.structs.replace(settings, kafka={"message.max.bytes": 1000})
    with pytest.raises(KafkaException, match="MSG_SIZE_TOO_LARGE"):
        clients.producer(small).produce(settings.prefix + "events", b"x" * 2000)


def test_no_broker_named_says_what_to_do() -> None:
    with pytest.raises(Misuse, match="--bootstrap host:port, or run `slatecast up`"):
        clients.admin(Settings())
    with pytest.raises(Misuse, match="--redis redis://host:6379, or run `slatecast up`"):
        clients.redis_client(Settings())


@pytest.mark.parametrize(
    ("bootstrap", "cause"), [("127.0.0.1:9", "Connection refused"), ("nobody.invalid:9092", "Failed to resolve")]
)
def test_a_broker_that_is_down_is_unavailable_with_cause_and_remedy(bootstrap: str, cause: str) -> None:
    started_s = time.monotonic()
    with pytest.raises(Unavailable, match=f"no Kafka answers at {bootstrap} .*{cause}.*slatecast up.*--bootstrap"):
        clients.check_broker(Settings(bootstrap=bootstrap), timeout_s=1)
    assert time.monotonic() - started_s < 5


def test_a_broker_that_accepts_and_keeps_silent_is_unavailable(silent_port: int) -> None:
    with pytest.raises(Unavailable, match=f"no Kafka answers at 127.0.0.1:{silent_port} "):
        clients.check_broker(Settings(bootstrap=f"127.0.0.1:{silent_port}"), timeout_s=1)


def test_a_wrong_security_protocol_is_named(services: Settings) -> None:
    with pytest.raises(Unavailable, match="SSL_HANDSHAKE"):
        clients.check_broker(with_kafka(services, security_protocol="SSL"), timeout_s=2)


def test_a_redis_that_is_down_is_unavailable_without_its_password() -> None:
    with pytest.raises(Unavailable, match="no Redis answers at redis://127.0.0.1:9/0 .*refused") as caught:
        clients.check_redis(Settings(redis="redis://shop:canary@127.0.0.1:9/0"))
    assert "canary" not in str(caught.value)
    with pytest.raises(Misuse, match="--redis .*must specify one of the following schemes"):
        clients.redis_client(Settings(redis="127.0.0.1:6379"))


@pytest.mark.parametrize("password", ["[canary", "canary/", "canary/canary", "canary?x", "canary#x"])
def test_a_password_that_breaks_its_url_is_said_and_not_shown(password: str) -> None:
    with pytest.raises(Misuse, match=r"--redis redis://.*in a password are written %2F") as caught:
        clients.check_redis(Settings(redis=f"redis://shop:{password}@127.0.0.1:9/0"))
    assert "canary" not in str(caught.value)


def test_a_reader_sees_neither_open_nor_aborted_transactions(settings: Settings, wait_for: Wait) -> None:
    topic, producer = settings.prefix + "events", clients.producer(settings, f"{settings.prefix}t")
    producer.init_transactions(30)
    for value, end in ((b"aborted", producer.abort_transaction), (b"committed", producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(topic, value, b"u1", partition=0)
        assert producer.flush(30) == 0
        assert values_to_the_end(settings, topic) == []
        end(30)
    wait_for(lambda: values_to_the_end(settings, topic) == [b"committed"])


def test_a_second_producer_of_the_same_name_fences_the_first(settings: Settings) -> None:
    first, second = (clients.producer(settings, f"{settings.prefix}t") for _ in range(2))
    first.init_transactions(30)
    first.begin_transaction()
    first.produce(settings.prefix + "events", b"zombie", b"u1")
    assert first.flush(30) == 0
    second.init_transactions(30)
    with pytest.raises(KafkaException) as caught:
        first.commit_transaction(30)
    assert caught.value.args[0].fatal()
    assert read_topic(settings, "events") == []


def test_keys_live_where_the_java_clients_put_them(settings: Settings) -> None:
    # murmur2(key) & 0x7fffffff, modulo 4, worked out by Kafka's own Utils.murmur2 (signed 32 bits).
    send(settings, "events", [(key, b"x") for key in (b"21", b"foobar", b"a-little-bit-long-string")])
    found = {record.key: record.partition for record in read_topic(settings, "events")}
    murmur2 = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    assert found == {key: (value & 0x7FFFFFFF) % settings.partitions for key, value in murmur2.items()}


def test_what_is_said_to_be_stored_on_a_new_topic_is_there_which_with_more_in_flight_it_is_not(
    settings: Settings,
) -> None:
    # The topic is known before all its partitions are led: single records and a client that asks often meet that moment.
    hurried = {"batch.num.messages": 1, "linger.ms": 0, "topic.metadata.refresh.fast.interval.ms": 1}
    ours = {"bootstrap.servers": settings.bootstrap, **clients.PRODUCER, **hurried}
    names = (f"{settings.prefix}new-{n}" for n in count())
    assert not any(losses(settings, ours, next(names)) for _ in range(40))
    assert any(losses(settings, {**ours, "max.in.flight": 5}, next(names)) for _ in range(400)), "one in five, at rest"


def losses(settings: Settings, options: dict[str, Any], topic: str) -> int:
    """Of the records that were reported as stored on a topic just made, how many are not there."""
    admin, errors = clients.admin(settings), list[KafkaError | None]()
    producer = Producer(options)
    for made in admin.create_topics([NewTopic(topic, 4, 1)]).values():
        made.result()
    for partition in range(4):
        for _ in range(6):
            producer.produce(topic, b"x", None, partition, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(30) == 0
    lost = errors.count(None) - sum(end_offsets(admin, topic, range(4)).values())
    for gone in admin.delete_topics([topic]).values():
        gone.result()
    return lost


def test_an_offset_that_no_longer_exists_is_an_error_not_a_jump(settings: Settings, wait_for: Wait) -> None:
    consumer = clients.consumer(settings, f"{settings.prefix}g")
    consumer.assign([TopicPartition(settings.prefix + "events", 0, 1_000)])
    errors: list[str] = []

    def polled() -> bool:
        message = consumer.poll(0.1)
        if message is not None and message.error() is not None:
            errors.append(message.error().name())
        return bool(errors)

    wait_for(polled)
    consumer.close()
    assert errors == ["_AUTO_OFFSET_RESET"]


def test_harmless_lines_of_the_client_are_not_logged(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    mixed = with_kafka(settings, linger_ms=1, session_timeout_ms=9000)
    with caplog.at_level(logging.DEBUG, "slatecast.kafka"):
        producer, consumer = clients.producer(mixed, f"{settings.prefix}t"), clients.consumer(mixed, "g")
        producer.init_transactions(30)
        producer.poll(0)
        consumer.poll(0)
        consumer.close()
    assert caplog.messages == []


def test_a_topic_that_is_missing_says_how_to_make_it(settings: Settings) -> None:
    assert clients.partitions_of(clients.admin(settings), settings.prefix + "events") == [0, 1, 2, 3]
    with pytest.raises(Unavailable, match="run `slatecast topics apply --execute`"):
        clients.partitions_of(clients.admin(settings), settings.prefix + "nothing")


def test_a_connection_that_fails_again_and_again_says_so_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(clients.time, "monotonic", lambda: now_s)
    quiet = clients._Quiet()

    def said(message: str) -> bool:
        return quiet.filter(logging.LogRecord("slatecast.kafka", logging.ERROR, "", 0, message, None, None))

    refused = "FAIL [slatecast#consumer-{}] broker: Connection refused (after {}ms in state CONNECT)"
    assert said(refused.format(1, 0))
    assert not said(refused.format(1, 7))
    assert said(refused.format(2, 0))
    assert said("MAXPOLL [slatecast#consumer-1]: exceeded")
    assert said("MAXPOLL [slatecast#consumer-1]: exceeded")
    now_s += clients.REPEAT_S
    assert said(refused.format(1, 0))
