"""Rows of a file onto the topics `events` and `items`, with proof of delivery; bad rows into a file of their own.

Loading the same file twice is harmless: an event keeps its id, by which the ranker recognises it, and an item
replaces itself. The files are read by `models/files.py`. Called by `slatecast load` and by the demo.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec
from confluent_kafka import KafkaError, Message, Producer

from models.files import Row
from recsys.catalogue import ITEM_SCHEMA, encode_item
from recsys.errors import Misuse, Unavailable
from recsys.events import EVENT_SCHEMA, encode_event
from streams import clients
from streams.records import BACKFILL, Headers
from streams.settings import Settings

STALL_S = 30.0  # a broker that restarts is back in 5 s; librdkafka alone would wait for 5 minutes
SERVE_EVERY = 1000  # rows between two looks at the delivery reports, ≈ 15 ms


class Loaded(msgspec.Struct, frozen=True):
    """What came of a file. rows = loaded + rejected + folded (merged lines, repeated items)."""

    rows: int
    loaded: int
    rejected: int
    folded: int
    converted: int
    reasons: dict[str, int]  # class -> rejected rows
    wall_s: float


def load_events(
    settings: Settings,
    rows: Iterable[Row],
    *,
    backfill: bool = False,
    on_reject: Callable[[Row], None] = lambda row: None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Loaded:
    """Produce events, key = user; return when the broker has acknowledged every one.

    backfill: history, of which profiles and signals learn, but nobody gets a list. on_reject: gets each bad row; what
    it raises stops the loading, and what was sent before is still delivered. progress: rows done, now and then.
    Raises Unavailable: no broker, no topic, or records not delivered. About 10 µs a row and what reading takes.
    """
    headers: Headers = (("schema", EVENT_SCHEMA.encode()), *((BACKFILL,) if backfill else ()))
    return _load(settings, "events", headers, rows, _event_record, on_reject, progress)


def load_items(
    settings: Settings,
    rows: Iterable[Row],
    *,
    on_reject: Callable[[Row], None] = lambda row: None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Loaded:
    """Produce items, key = item; otherwise as `load_events`."""
    headers: Headers = (("schema", ITEM_SCHEMA.encode()),)
    return _load(settings, "items", headers, rows, _item_record, on_reject, progress)


@contextmanager
def rejects_file(path: Path, header: bytes = b"") -> Iterator[Callable[[Row], None]]:
    """What writes rejected rows into a file, byte by byte as they were, so it can be mended and loaded.

    header: what the file must begin with to be loadable. The file is made with the first rejected row.
    """
    out: IO[bytes] | None = None

    def write(row: Row) -> None:
        nonlocal out
        if out is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            out = path.open("wb")
            out.write(header + b"\n" if header else b"")
        out.write(row.raw + b"\n")

    try:
        yield write
    finally:
        if out is not None:
            out.close()


def _event_record(row: Row) -> tuple[bytes, bytes] | None:
    return (row.event.user.encode(), encode_event(row.event)) if row.event else None


def _item_record(row: Row) -> tuple[bytes, bytes] | None:
    return (row.item.item.encode(), encode_item(row.item)) if row.item else None


def _load(
    settings: Settings,
    topic: str,
    headers: Headers,
    rows: Iterable[Row],
    record_of: Callable[[Row], tuple[bytes, bytes] | None],
    on_reject: Callable[[Row], None],
    progress: Callable[[int], None],
) -> Loaded:
    topic = settings.prefix + topic
    clients.partitions_of(clients.check_broker(settings), topic)
    counts, reasons = Counter[str](), Counter[str]()
    start_s = time.monotonic()
    delivery = _Delivery(clients.producer(settings), topic, headers)
    try:
        for row in rows:
            counts["rows"] += 1
            if row.error is not None:
                reasons[row.error.reason_class] += 1
                on_reject(row)
            elif (record := record_of(row)) is None:
                counts["folded"] += 1
            else:
                counts["loaded"] += 1
                counts["converted"] += bool(row.note)
                delivery.send(*record)
            if counts["rows"] % SERVE_EVERY == 0:
                delivery.serve(0)
                progress(counts["rows"])
    except Misuse:  # a file that is cut, or a caller that wants no bad row: what came before it is good
        delivery.finish()
        raise
    delivery.finish()
    progress(counts["rows"])
    return Loaded(
        counts["rows"],
        counts["loaded"],
        reasons.total(),
        counts["folded"],
        counts["converted"],
        dict(reasons),
        time.monotonic() - start_s,
    )


class _Delivery:
    """A producer whose every record is accounted for."""

    def __init__(self, producer: Producer, topic: str, headers: Headers) -> None:
        self._producer, self._topic = producer, topic
        self._headers: list[tuple[str, str | bytes | None]] = [*headers]
        self._acknowledged = self._failed = 0
        self._error = ""
        self._alive_s = time.monotonic()

    def send(self, key: bytes, value: bytes) -> None:
        """Queue a record; waits while the queue is full."""
        while True:
            try:
                self._producer.produce(self._topic, value, key, headers=self._headers, on_delivery=self._report)
                return
            except BufferError:
                self.serve(0.1)
            except TypeError:  # our types are right: Ctrl-C came while the client read a header's name, and it says so
                raise KeyboardInterrupt from None

    def serve(self, wait_s: float) -> None:
        """Take delivery reports. Raises Unavailable when none has come for STALL_S."""
        if len(self._producer) == 0:
            self._alive_s = time.monotonic()
        self._producer.poll(wait_s)
        if time.monotonic() - self._alive_s > STALL_S:
            waiting = len(self._producer)
            self._producer.purge()
            raise Unavailable(
                f"the broker has acknowledged nothing for {STALL_S:.0f} s ({self._acknowledged} records before, "
                f"{waiting} waiting); load the file again when it answers: what it has, it will recognise"
            )

    def finish(self) -> None:
        """Wait for all reports. Raises Unavailable if a record was refused."""
        while len(self._producer):
            self.serve(0.1)
        if self._failed:
            raise Unavailable(
                f"{self._failed} of {self._failed + self._acknowledged} records were not delivered to {self._topic} "
                f"({self._error}); load the file again: what the broker has, it will recognise"
            )

    def _report(self, error: KafkaError | None, message: Message) -> None:
        self._alive_s = time.monotonic()
        if error is None:
            self._acknowledged += 1
        else:
            self._failed += 1
            self._error = error.str()
