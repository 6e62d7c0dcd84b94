"""Finds the record that ends its process, and has it put aside by its third attempt.

A record that crashes or hangs whatever processes it would be met again by every successor. So what is about to be
processed is written down first, outside the process: a note of the suspects, should it end now. A worker that finds
suspects at its start knows that its predecessors did not survive them:

1. attempt: the record came in a batch. All of the batch are suspects.
2. attempt: the records of that batch are processed one at a time, each with a note of its own.
3. attempt: the one at which the second ended, alone again. If the process ends once more, the record goes to `rejects`
   (class poison_crash), its neighbours having been processed.

A record is a suspect until it is committed: where two of them came in one batch, the first must not be forgotten over
the second. Only steps 2 to 4 of the worker's loop are covered, and only ends that are not said: a broker that is down, a
fenced worker, SIGTERM count for nothing. A SIGKILL from outside counts, but hits one record alone twice in a row only
where something waits for it: too little memory, say. The note is one write to an open file, 3 µs; it survives the
process, not the disk. Called by the worker.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from recsys.errors import UNREADABLE, SlatecastError
from streams.records import Record

log = logging.getLogger(__name__)

LAST_ATTEMPT = 3


class Suspects(msgspec.Struct, frozen=True, array_like=True):
    """Records of one partition, first to last offset, over which a process ended; alone, the `attempts`-th one.

    arrived_ms: of a record alone, else 0. A topic that was made again has another record at the same offset.
    """

    partition: int
    first: int
    last: int
    attempts: int
    arrived_ms: int

    def cover(self, record: Record) -> bool:
        """Whether the record is one of these."""
        here = record.partition == self.partition and self.first <= record.offset <= self.last
        return here and self.arrived_ms in (0, record.arrived_ms)


_decode = msgspec.json.Decoder(list[Suspects]).decode
_encode = msgspec.json.Encoder().encode


class Attempts:
    """The note of one worker. Where the disk does not take it, nothing is remembered and nothing put aside."""

    def __init__(self, file: Path) -> None:
        self._file = -1
        self._length = 0
        self._suspects: list[Suspects] = []
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            note = os.pread(self._file, os.fstat(self._file).st_size, 0)
            self._length = len(note)
            self._suspects = _decode(note or b"[]")
        except OSError as error:
            self._go_without(error)
        except UNREADABLE as error:
            log.warning("attempts: the note of the last process is torn and left out: %s", error)

    def suspects(self, records: Sequence[Record]) -> bool:
        """Whether a predecessor ended over one of these: they are to be processed one at a time."""
        return bool(self._suspects) and any(map(self.attempts_of, records))

    def attempts_of(self, record: Record) -> int:
        """How many processes have ended over the record."""
        return max((s.attempts for s in self._suspects if s.cover(record)), default=0)

    def is_hopeless(self, record: Record) -> bool:
        """Whether the record has had its last attempt."""
        return self.attempts_of(record) >= LAST_ATTEMPT

    @contextlib.contextmanager
    def trying(self, records: Sequence[Record]) -> Iterator[None]:
        """Frame the processing of records. What raises an error of ours has not ended by its record."""
        self._write([*self._suspects, *self._would_be(records)])
        try:
            yield
        except SlatecastError:
            self._write(self._suspects)
            raise
        self._write(self._suspects)

    def passed(self, records: Sequence[Record]) -> None:
        """These are committed: what was suspected in them, or before them, is over."""
        if not self._suspects:
            return
        nexts = {record.partition: record.offset + 1 for record in records}
        moved = (msgspec.structs.replace(s, first=max(s.first, nexts.get(s.partition, 0))) for s in self._suspects)
        left = [s for s in moved if s.first <= s.last]
        if left != self._suspects:
            self._suspects = left
            self._write(left)

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _would_be(self, records: Sequence[Record]) -> list[Suspects]:
        """The suspects, should the process end over these."""
        if len(records) == 1:
            [r] = records
            return [Suspects(r.partition, r.offset, r.offset, self.attempts_of(r) + 1, r.arrived_ms)]
        first = {record.partition: record.offset for record in reversed(records)}
        last = {record.partition: record.offset for record in records}
        return [Suspects(p, first[p], last[p], 1, 0) for p in last]

    def _write(self, suspects: Sequence[Suspects]) -> None:
        if self._file < 0:
            return
        data = _encode(suspects)
        # Padded to the length of the longest so far: one call, and no kill leaves the end of an older note behind it.
        self._length = max(self._length, len(data))
        try:
            os.pwrite(self._file, data.ljust(self._length), 0)
        except OSError as error:
            self._go_without(error)

    def _go_without(self, error: OSError) -> None:
        log.warning("attempts: not remembered, a record that ends its process will not be found: %s", error)
        self.close()
