"""A role in a process of its own, as `run_role` starts it; and the control, a ranker without transactions."""

import sys
import threading
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from models.serving import NoModels
from recsys import diversify
from streams import clients
from streams.cli.options import log_to_stderr
from streams.failpoints import reach
from streams.ranker import RankerTask
from streams.records import Output
from streams.roles import run_role, stop_on_signals
from streams.settings import Settings
from streams.worker import Worker


class Order(msgspec.Struct, frozen=True):
    """What the arena tells."""

    settings: Settings
    role: str
    instance: str


class Loose:
    """What most do: produce, flush, commit offsets. The same points in the same order, and no transaction."""

    def __init__(self, settings: Settings) -> None:
        self._producer = clients.producer(settings)
        self._ends: dict[int, int] = {}

    def fence(self) -> None:
        """There is nothing to fence with."""

    def commit(
        self, outputs: Sequence[Output], changes: Iterable[Output], offsets: list[TopicPartition], consumer: Consumer
    ) -> Mapping[int, int]:
        """Publish, then keep the state, then commit: at least once. The other order would lose lists instead."""
        self._ends = {}
        self._deliver(outputs)
        reach("after_produce")
        self._deliver(changes)
        reach("after_flush")
        reach("before_commit")
        consumer.commit(offsets=offsets, asynchronous=False)
        reach("after_commit")
        return self._ends

    def _deliver(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            self._producer.produce(
                output.topic, output.value, output.key, output.partition, on_delivery=self._delivered
            )
            self._producer.poll(0)
        assert self._producer.flush(30) == 0

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        assert error is None, error
        if (message.topic() or "").endswith("profiles"):
            self._ends[message.partition() or 0] = (message.offset() or 0) + 1


def run_loose(settings: Settings, instance: str, stop: threading.Event) -> None:
    """The ranker, but for its transactions."""
    task = RankerTask(settings, NoModels())
    task.shelf.catch_up()
    diversify.warm_up()  # else the watchdog would take a compiler at work for a record that hangs
    worker = Worker(settings, "ranker", task, instance)
    worker._transactions = Loose(settings)  # type: ignore[assignment]
    worker.run(stop)


def main() -> None:
    """Be what stdin says."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    log_to_stderr()
    stop = stop_on_signals()
    if order.role == "loose":
        run_loose(order.settings, order.instance, stop)
    else:
        run_role(order.settings, order.role, order.instance, stop)


if __name__ == "__main__":
    main()
