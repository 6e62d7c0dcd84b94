"""One partition's state on disk, with the changelog offset that it stands at: RocksDB, as in Kafka Streams.

Written behind every commit. A worker that starts again reads the changelog only from that offset; a worker whose state
is larger than its memory reads single values from here. It is never the truth: whatever is wrong with it (torn, of
another topic, from the future, too old, held by a stopped twin, disk full), it is left out with a word, and the
changelog is read instead. Called by state.py.

RocksDB checks sums, and gives back the last whole write after a kill or a power cut, value and offset together.
"""

import logging
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import msgspec
from rocksdict import BlockBasedOptions, Cache, Options, Rdict, WriteBatch

from recsys.errors import SlatecastError

log = logging.getLogger(__name__)

FORMAT = 1
# A tombstone leaves a compacted topic after 7 days (topics.py). An older store could miss one and bring a user back.
TOO_OLD_MS = 6 * 86_400_000
MARK = b""  # the key of the mark; no user and no item has an empty name
MIB = 1024 * 1024
_cache = Cache(64 * MIB)  # shared by all partitions of a process; the kernel caches the files besides


class StoreBroken(SlatecastError):
    """The disk did not take or give what it should."""


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """What the store is a copy of, and up to where. log_id: the changelog topic's own id, another for a new topic."""

    format: int
    log_id: str
    partition: int
    next_offset: int
    written_ms: int


class Store:
    """Keyed bytes of one partition. A write is atomic, with its offset. Not for two processes at once."""

    def __init__(self, folder: Path, log_id: str, partition: int) -> None:
        self._folder, self._log_id, self._partition = folder, log_id, partition
        options = Options(raw_mode=True)  # bytes only: its other mode pickles
        options.create_if_missing(True)
        options.set_write_buffer_size(8 * MIB)  # two per partition: memory, beside what the state itself needs
        options.set_keep_log_file_num(2)
        blocks = BlockBasedOptions()
        blocks.set_block_cache(_cache)
        blocks.set_bloom_filter(10, False)  # a new user is looked up without reading a block
        options.set_block_based_table_factory(blocks)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = Rdict(str(folder), options)
            raw = self._db.get(MARK)
            self.mark = msgspec.msgpack.decode(raw, type=Mark) if raw is not None else None
        except Exception as error:  # noqa: BLE001 - RocksDB's binding raises nothing narrower; said by the caller
            raise StoreBroken(str(error)) from error

    @property
    def next_offset(self) -> int:
        """The changelog offset to go on reading at; 0 for a new store."""
        return self.mark.next_offset if self.mark else 0

    def get(self, key: str) -> bytes | None:
        """One value. 13 µs from a store of a million (in memory: .1)."""
        try:
            value = cast(bytes | None, self._db.get(key.encode()))
        except Exception as error:  # noqa: BLE001 - as above
            raise StoreBroken(str(error)) from error
        return value

    def write(self, changes: Iterable[tuple[str, bytes | None]], next_offset: int) -> None:
        """Values (None: gone) and the offset behind them, all or nothing. 2.5 µs a value, not forced to the platter."""
        batch = WriteBatch(raw_mode=True)
        for key, value in changes:
            if value is None:
                batch.delete(key.encode())
            else:
                batch.put(key.encode(), value)
        self.mark = Mark(FORMAT, self._log_id, self._partition, next_offset, _now_ms())
        batch.put(MARK, msgspec.msgpack.encode(self.mark))
        try:
            self._db.write(batch)
        except Exception as error:  # noqa: BLE001 - as above
            raise StoreBroken(str(error)) from error

    def items(self) -> Iterable[tuple[str, bytes]]:
        """All values. 430,000 a second."""
        try:
            for key, value in cast(Iterable[tuple[bytes, bytes]], self._db.items()):
                if key != MARK:
                    yield key.decode(), value
        except Exception as error:  # noqa: BLE001 - as above
            raise StoreBroken(str(error)) from error

    def close(self) -> None:
        """Let go of the folder. What was written stays."""
        try:
            self._db.close()
        except Exception as error:  # noqa: BLE001 - as above; what it could not write it has said before
            log.info("state: %s was not closed in order: %s", self._folder, error)

    def destroy(self) -> None:
        """Remove it."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def open_store(folder: Path, log_id: str, partition: int, begin: int, end: int) -> Store:
    """The store of a partition, with what it holds if that is good, else empty.

    begin, end: where the changelog begins and ends now. Raises StoreBroken if the folder cannot be used at all.
    """
    try:
        store = Store(folder, log_id, partition)
        why_not = _refuse(store.mark, log_id, partition, begin, end)
    except StoreBroken as error:
        if "lock" in str(error).lower():
            raise StoreBroken(f"another process holds it, perhaps one with this --instance: {error}") from error
        store, why_not = None, str(error)
    except msgspec.DecodeError as error:
        store, why_not = None, f"its mark is unreadable: {error}"
    if store is not None and not why_not:
        return store
    log.warning("state: %s is left out and made again from the changelog: %s", folder, why_not)
    if store is not None:
        store.close()
    shutil.rmtree(folder, ignore_errors=True)  # also where it could not even be opened
    return Store(folder, log_id, partition)


def _refuse(mark: Mark | None, log_id: str, partition: int, begin: int, end: int) -> str:
    """Why a store must not be used; empty if it may."""
    if mark is None:
        return ""
    if mark.format != FORMAT:
        return f"format {mark.format} is not ours ({FORMAT})"
    if (mark.log_id, mark.partition) != (log_id, partition):
        return "it belongs to another topic"
    if mark.next_offset > end:
        return f"it stands at {mark.next_offset}, the changelog ends at {end}"
    if mark.next_offset < begin:
        return f"it stands at {mark.next_offset}, the changelog begins at {begin}"
    age_ms = _now_ms() - mark.written_ms
    if not -TOO_OLD_MS < age_ms < TOO_OLD_MS:
        return f"it was written {age_ms / 86_400_000:.1f} days ago; deletions since may be gone from the changelog"
    return ""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
