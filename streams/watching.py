"""Follow the slates as they are published, from now on: for the terminal, the demo and the benchmarks."""

from collections.abc import Generator, Iterator

from confluent_kafka import TopicPartition

from recsys.slates import Slate, decode_slate
from streams import clients
from streams.records import is_end
from streams.settings import Settings
from streams.state import end_offsets


def follow_slates(settings: Settings, idle_s: float = 0.2) -> Iterator[tuple[Slate, bytes]]:
    """Slates published from now on, with their bytes; endless."""
    for found in poll_slates(settings, idle_s):
        yield from found


def poll_slates(settings: Settings, idle_s: float = 0.2) -> Generator[list[tuple[Slate, bytes]], None, None]:
    """The same in batches, an empty one when nothing came for `idle_s`: for those who do other things in between."""
    topic = settings.prefix + "slates"
    admin = clients.check_broker(settings)
    ends = end_offsets(admin, topic, clients.partitions_of(admin, topic))
    consumer = clients.reader(settings)
    consumer.assign([TopicPartition(topic, p, end) for p, end in ends.items()])
    try:
        while True:
            batch = []
            for message in consumer.consume(500, idle_s):
                error = message.error()
                if error is None:
                    data = message.value()
                    if data is not None:  # a tombstone is no list
                        batch.append((decode_slate(data), data))
                elif not is_end(error):
                    raise clients.broken(error)
            yield batch
    finally:
        consumer.close()
