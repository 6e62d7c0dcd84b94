"""Finds the record that ends its process, and has it put aside by its third attempt.

A record that crashes or hangs whatever processes it would be met again by every successor. So what is about to be
processed is written down first, outside the process: a note of where it lies and which attempt it is. A worker that
finds such a note at its start knows that its predecessor did not survive it:

1. attempt: the record came in a batch. The note names the batch's offsets.
2. attempt: the records of that batch are processed one at a time, each with a note of its own.
3. attempt: the one at which the second ended, alone again. If the process ends once more, the record goes to `rejects`
   (class poison_crash), its neighbours having been processed.

Only steps 2 to 4 of the worker's loop are covered, and only ends that are not said: a broker that is down, a fenced
worker, SIGTERM count for nothing. The note is a write to an open file, 4 µs; it survives the process, not the disk.
Called by the worker.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from recsys.errors import SlatecastError
from streams.records import Record

log = logging.getLogger(__name__)

LAST_ATTEMPT = 3


class Note(msgspec.Struct, frozen=True):
    """What a process is about to process. spans: partition -> [first, last] offset."""

    attempt: int = 0
    spans: dict[int, tuple[int, int]] = {}

    def covers(self, record: Record) -> bool:
        """Whether the record is one of these."""
        first, last = self.spans.get(record.partition, (1, 0))
        return first <= record.offset <= last


class Attempts:
    """The note of one worker. Where the disk does not take it, nothing is remembered and nothing put aside."""

    def __init__(self, file: Path) -> None:
        self._file = -1
        self._before = Note()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._before = msgspec.json.decode(file.read_bytes() or b"{}", type=Note)
        except OSError as error:
            self._go_without(error)
        except msgspec.DecodeError as error:
            log.warning("attempts: the note of the last process is torn and left out: %s", error)

    def suspects(self, records: Sequence[Record]) -> bool:
        """Whether a predecessor ended over one of these: they are to be processed one at a time."""
        return bool(self._before.spans) and any(self._before.covers(record) for record in records)

    def is_hopeless(self, record: Record) -> bool:
        """Whether the record has had its last attempt."""
        return self._before.attempt >= LAST_ATTEMPT and self._before.covers(record)

    @contextlib.contextmanager
    def trying(self, records: Sequence[Record]) -> Iterator[None]:
        """Frame the processing of records. What raises an error of ours has not ended by its record."""
        attempt = 1 + (self._before.attempt if len(records) == 1 and self._before.covers(records[0]) else 0)
        spans: dict[int, tuple[int, int]] = {}
        for record in records:
            first, _ = spans.get(record.partition, (record.offset, 0))
            spans[record.partition] = (first, record.offset)
        self._write(Note(attempt, spans))
        try:
            yield
        except SlatecastError:
            self._write(self._before)
            raise
        self._write(self._before)

    def passed(self, records: Sequence[Record]) -> None:
        """These are committed: what was suspected in them is over."""
        if self._before.spans and any(self._before.covers(record) for record in records):
            ends = {record.partition: record.offset for record in records}
            left = {p: (max(a, ends.get(p, -1) + 1), b) for p, (a, b) in self._before.spans.items()}
            self._before = Note(self._before.attempt, {p: (a, b) for p, (a, b) in left.items() if a <= b})
            self._write(self._before)

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, note: Note) -> None:
        if self._file < 0:
            return
        data = msgspec.json.encode(note)
        try:
            os.pwrite(self._file, data, 0)
            os.ftruncate(self._file, len(data))
        except OSError as error:
            self._go_without(error)

    def _go_without(self, error: OSError) -> None:
        log.warning("attempts: not remembered, a record that ends its process will not be found: %s", error)
        self.close()
