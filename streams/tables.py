"""Compact topics that every ranker reads whole: the catalogue and the signals. A reader without a group.

`catch_up` blocks until the end at start; `follow` takes what has come since, without waiting.
"""

from collections.abc import Callable

from streams import clients
from streams.records import Record, is_end, read_record
from streams.settings import Settings
from streams.state import end_offsets, read_to


class TableReader:
    """One topic, all partitions, from the beginning, committed records only."""

    def __init__(self, settings: Settings, topic: str, take: Callable[[Record], None]) -> None:
        self.topic = settings.prefix + topic
        self._take = take
        self._consumer = clients.reader(settings)
        self._admin = clients.admin(settings)

    def catch_up(self, beat: Callable[[], None] = lambda: None) -> int:
        """Read to the end as of now; how many records there were. `beat` hears that it goes on."""
        partitions = clients.partitions_of(self._admin, self.topic)
        ends = end_offsets(self._admin, self.topic, partitions)
        return read_to(self._consumer, self.topic, ends, self._take, beat=beat)

    def follow(self, limit: int = 5000) -> int:
        """Take at most `limit` records that are already here; how many there were."""
        count = 0
        for message in self._consumer.consume(limit, 0):
            error = message.error()
            if error is None:
                self._take(read_record(message))
                count += 1
            elif not is_end(error):
                raise clients.broken(error)
        return count

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()
