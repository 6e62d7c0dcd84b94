"""Records that could not be used: put aside with their bytes, listed, shown, sent again.

A reject is produced in the transaction of the batch that met it, so there is exactly one per source offset. Its
headers are Kafka Connect's, which dead-letter tools already read, plus `slatecast.error.class`.
"""

import hashlib

import msgspec
from confluent_kafka import KafkaException, Producer

from recsys.errors import BadEvent, Misuse, Unavailable
from streams import clients
from streams.records import Headers, Output, Record
from streams.settings import Settings
from streams.state import end_offsets, read_to

CONNECT = "__connect.errors."
CLASS = "slatecast.error.class"
CUT = "slatecast.error.cut"  # of a reject that holds only the beginning of its record
REQUEUED = "requeued-from"  # of a record that was sent again: the reject that it was
WHOLE_BYTES = 1024 * 1024  # what a topic takes however badly it compresses (topics.py)
KEPT_BYTES = 1024
MAX_MESSAGE = 1024  # an explanation, not a payload


class Reject(msgspec.Struct, frozen=True):
    """One reject as it lies on the topic."""

    partition: int
    offset: int
    ts_ms: int
    source: str  # topic:partition:offset
    reason_class: str
    message: str
    key: bytes | None
    value: bytes | None
    headers: Headers  # the original ones

    @property
    def id(self) -> str:
        """How the command line names it."""
        return f"{self.partition}:{self.offset}"

    @property
    def source_topic(self) -> str:
        """Where it was met, and where a requeue sends it."""
        return self.source.rsplit(":", 2)[0]


def reject_headers(record: Record, error: BadEvent, role: str) -> Headers:
    """The original headers (forged Connect ones left out) and what went wrong where."""
    kept = tuple((name, value) for name, value in record.headers if not name.startswith(CONNECT))
    said = {
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "connector.name": f"slatecast.{role}",
        "task.id": "0",
        "stage": "VALUE_CONVERTER",
        "class.name": type(error).__module__,
        "exception.class.name": type(error).__qualname__,
        "exception.message": str(error)[:MAX_MESSAGE],
        "exception.stacktrace": "",  # it could hold the payload: personal data
    }
    ours = tuple((CONNECT + name, text.encode()) for name, text in said.items())
    return (*kept, *ours, (CLASS, error.reason_class.encode()))


def put_aside(record: Record, error: BadEvent, role: str, topic: str) -> Output:
    """The reject of a record, with its bytes; of one too large for any topic, the beginning and a digest.

    A record that came in compressed may be larger than that: our own client or the broker would refuse it, and its
    worker would meet it for ever (measured: 30 MB of one letter arrive as 30 KB).
    """
    key, value = record.key or b"", record.value or b""
    size = len(key) + len(value) + sum(len(name) + len(content) for name, content in record.headers)
    if size > WHOLE_BYTES:
        cut = (CUT, f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()}".encode())
        record = msgspec.structs.replace(
            record, key=record.key and key[:KEPT_BYTES], value=record.value and value[:KEPT_BYTES], headers=(cut,)
        )
    return Output(topic, record.key, record.value, reject_headers(record, error, role))


def reason_class(headers: Headers) -> str:
    """Why a record was put aside: the last such header, since an original one may be forged."""
    return next((value.decode(errors="replace") for name, value in reversed(headers) if name == CLASS), "?")


def read_rejects(settings: Settings) -> list[Reject]:
    """All rejects that are kept, oldest first by partition."""
    found: list[Reject] = []
    topic = settings.prefix + "rejects"
    admin = clients.check_broker(settings)
    consumer = clients.reader(settings)
    ends = end_offsets(admin, topic, clients.partitions_of(admin, topic))
    read_to(consumer, topic, ends, lambda record: found.append(_parse(record)))
    consumer.close()
    return sorted(found, key=lambda reject: (reject.partition, reject.offset))


def find_reject(settings: Settings, name: str) -> Reject:
    """One reject by its 'partition:offset'. Raises Misuse."""
    for reject in read_rejects(settings):
        if reject.id == name:
            return reject
    raise Misuse(f"no reject {name}; `slatecast rejects list` shows those that are kept")


def newest_of_each(rejects: list[Reject]) -> list[Reject]:
    """Without those that were sent again and put aside again: else each requeue of a class would double what stays bad.

    A header alone may be forged, or speak of another generation's rejects, so the record must be the same, too.
    """
    again = {
        (value.decode(errors="replace"), reject.key, reject.value)
        for reject in rejects
        for name, value in reject.headers
        if name == REQUEUED
    }
    return [reject for reject in rejects if (f"rejects:{reject.id}", reject.key, reject.value) not in again]


def requeue(settings: Settings, rejects: list[Reject]) -> int:
    """Send the original bytes to their topic again, all or none; how many were sent.

    A reject that is bad still is rejected again; one that had been applied would be dropped as a duplicate.
    Raises Unavailable: a topic that is no more, a record that the broker refuses; Misuse: a reject that was cut.
    """
    cut = [reject.id for reject in rejects if any(name == CUT for name, _ in reject.headers)]
    if cut:
        raise Misuse(f"of reject {cut[0]} only the beginning was kept; have the shop send the event again")
    admin = clients.check_broker(settings)
    for topic in {reject.source_topic for reject in rejects}:
        clients.partitions_of(admin, topic)
    producer = clients.producer(settings, transactional_id=f"{settings.prefix}requeue")
    try:
        producer.init_transactions(30)
        producer.begin_transaction()
        for reject in rejects:
            _produce(producer, reject)
        producer.commit_transaction(30)
    except KafkaException as error:  # what is open ends with this process, or with the next requeue
        raise Unavailable(f"nothing was sent again: {error.args[0].str()}") from None
    return len(rejects)


def _produce(producer: Producer, reject: Reject) -> None:
    origin: tuple[str, bytes] = (REQUEUED, f"rejects:{reject.id}".encode())
    headers: list[tuple[str, str | bytes | None]] = [*reject.headers, origin]
    while True:
        try:
            producer.produce(reject.source_topic, reject.value, reject.key, headers=headers)
        except BufferError:  # the local queue is full: let it drain
            producer.poll(0.1)
        else:
            return


def _parse(record: Record) -> Reject:
    said = {name.removeprefix(CONNECT): value.decode(errors="replace") for name, value in record.headers}
    return Reject(
        record.partition,
        record.offset,
        record.arrived_ms,
        f"{said.get('topic', '?')}:{said.get('partition', '?')}:{said.get('offset', '?')}",
        reason_class(record.headers),
        said.get("exception.message", ""),
        record.key,
        record.value,
        tuple(h for h in record.headers if not h[0].startswith(CONNECT) and h[0] != CLASS),
    )
