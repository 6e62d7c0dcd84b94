"""`slatecast bench commit`: what a transaction costs, by the number of events in it, beside the same without.

For each event one changelog record of 600 bytes and one list of 2 kB, by the worker's own code (transactions.py) as a
member of a group. The peer produces the same, flushes and commits its offsets: at least once. Both in turn, in one
process, back to back: the broker is asked for the next transaction while it still ends the last one.
"""

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from recsys.errors import Unavailable
from streams import clients
from streams.bench.ground import ENGINE_CORE, ask, ground, pin
from streams.records import Output
from streams.settings import Settings
from streams.transactions import Transactions
from streams.watchdog import Watchdog

SIZES = (1, 10, 100, 500, 2000)
CHANGE_BYTES, SLATE_BYTES = 600, 2000
EVENTS_MOST = 20_000  # of a size in a round: 50 MB of outputs
FEWEST = 2


class Order(msgspec.Struct, frozen=True):
    """What the engine is told: one round. transactions: of each size, as far as EVENTS_MOST allows."""

    settings: Settings
    transactions: int
    core: int = ENGINE_CORE


class Round(msgspec.Struct, frozen=True):
    """What it says: seconds of each transaction by way and size."""

    took_s: dict[str, dict[int, list[float]]]


def measure(settings: Settings, transactions: int, rounds: int, tell: Callable[[str], None]) -> dict[str, object]:
    """The whole benchmark. tell: what is running now."""
    found = []
    with ground(settings, "commit") as own:
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            found.append(ask(__spec__.name, Order(own, transactions), Round))
    return {
        "batches": [_row(size, [each.took_s for each in found]) for size in SIZES],
        "changelog_bytes": CHANGE_BYTES,
        "list_bytes": SLATE_BYTES,
        "rounds": rounds,
    }


def _row(size: int, rounds: Sequence[dict[str, dict[int, list[float]]]]) -> dict[str, object]:
    """Waits over all rounds; of rates the middle round's."""
    waits_ms = 1000 * np.concatenate([each["transactions"][size] for each in rounds])
    rate = {
        way: float(np.median([size * len(each[way][size]) / sum(each[way][size]) for each in rounds]))
        for way in rounds[0]
    }
    return {
        "events": size,
        "p50_ms": float(np.percentile(waits_ms, 50)),
        "p99_ms": float(np.percentile(waits_ms, 99)),
        "events_per_s": rate["transactions"],
        "plain_events_per_s": rate["plain"],
        "ratio_plain": rate["transactions"] / rate["plain"],
        "transactions": len(waits_ms),
    }


# --- the engine --------------------------------------------------------------------------------------------------------


def main() -> None:
    """Be the engine."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    pin(order.core)
    sys.stdout.buffer.write(msgspec.json.encode(run(order)) + b"\n")


def run(order: Order) -> Round:
    """One round: each size, each way."""
    settings = order.settings
    member = _join(settings)
    transactions = Transactions(settings, "bench", "0", Watchdog("bench"))
    transactions.fence()
    ways = {"transactions": transactions.commit, "plain": Plain(settings).commit}
    took_s: dict[str, dict[int, list[float]]] = {way: defaultdict(list) for way in ways}
    offset, filler = 0, os.urandom(8 * 1024 * 1024)  # it does not compress
    for size in SIZES:
        for n in range(max(FEWEST, min(order.transactions, EVENTS_MOST // size)) + 1):
            for way, commit in ways.items():
                offset += size
                outputs, changes, offsets = _batch(settings, filler, size, offset)
                started_s = time.perf_counter()
                commit(outputs, changes, offsets, member)
                if n:  # the first one meets new partitions
                    took_s[way][size].append(time.perf_counter() - started_s)
    member.close()
    return Round(took_s)


class Plain:
    """What most do: produce, flush, commit offsets. Lost or doubled by the first kill at the wrong moment."""

    def __init__(self, settings: Settings) -> None:
        self._producer = clients.producer(settings)
        self._failed: KafkaError | None = None

    def commit(
        self, outputs: Sequence[Output], changes: Sequence[Output], offsets: list[TopicPartition], consumer: Consumer
    ) -> None:
        """A batch that is there in the end."""
        for output in (*outputs, *changes):
            while True:
                try:
                    self._producer.produce(
                        output.topic, output.value, output.key, output.partition, on_delivery=self._delivered
                    )
                except BufferError:
                    self._producer.poll(0.01)
                else:
                    break
        if self._producer.flush(60) or self._failed is not None:
            raise Unavailable(f"the broker took not all of a batch ({self._failed}); look at its log")
        consumer.commit(offsets=offsets, asynchronous=False)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        self._failed = error or self._failed


def _join(settings: Settings) -> Consumer:
    """A member of the group with all partitions: the broker checks its generation in each transaction."""
    member = clients.consumer(settings, f"{settings.prefix}bench", instance_id="bench-0")
    given: list[TopicPartition] = []

    def assigned(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        given.extend(partitions)
        consumer.assign([TopicPartition(tp.topic, tp.partition, 0) for tp in partitions])

    member.subscribe([settings.prefix + "events"], on_assign=assigned)
    while not given:
        member.poll(0.1)
    return member


def _batch(
    settings: Settings, filler: bytes, size: int, offset: int
) -> tuple[list[Output], list[Output], list[TopicPartition]]:
    """Lists, changes and offsets of so many events, each of other bytes."""
    n, both = settings.partitions, CHANGE_BYTES + SLATE_BYTES
    outputs, changes = [], []
    for event in range(offset - size, offset):
        key, at = b"u%d" % event, event * both % (len(filler) - both)
        change_at = at + SLATE_BYTES
        outputs.append(Output(settings.prefix + "slates", key, filler[at:change_at]))
        changes.append(
            Output(settings.prefix + "profiles", key, filler[change_at : change_at + CHANGE_BYTES], (), event % n)
        )
    return outputs, changes, [TopicPartition(settings.prefix + "events", p, offset) for p in range(min(size, n))]


if __name__ == "__main__":
    main()
