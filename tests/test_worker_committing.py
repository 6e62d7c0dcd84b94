"""The transactional loop on the real broker: what a batch holds, and what it leaves when it is committed or aborted."""

import threading
import time
from itertools import count, pairwise
from random import Random

import msgspec
import pytest
from stream_helpers import send, send_events, send_items
from worker_helpers import ROLE, Count, Start, Wait, behind, click, counts, quick, said, start

from models.serving import NoModels
from recsys.catalogue import Item
from recsys.events import Click
from streams import clients, topics
from streams.ranker import LIVE_LIMIT, RankerTask
from streams.records import BACKFILL, Record
from streams.settings import Settings
from streams.state import end_offsets, read_to
from streams.worker import Worker

__all__ = ["start"]  # the fixture


def test_a_large_batch_ends_soon_after_the_history_does(settings: Settings, start: Start, wait_for: Wait) -> None:
    send(settings, "events", [(b"a", b"x")] * 200, [BACKFILL])
    click(settings, *"a" * 100)
    task = Count(settings)
    task.live_limit = 10
    worker = start(task)
    wait_for(lambda: worker.processed == 300)
    live = [sum(offset >= 200 for _, offset in batch) for batch in task.batches]
    assert max(live) == 10
    assert max(map(len, task.batches)) > 50, "of history alone"
    assert counts(settings) == {"a": 300}


def test_after_a_history_no_batch_makes_more_lists_than_its_time_allows(settings: Settings) -> None:
    own = msgspec.structs.replace(settings, partitions=1, prefix=f"{settings.prefix}one.")
    topics.apply(clients.check_broker(own), own)
    now_ms = time.time_ns() // 1_000_000
    clicks = [Click(user=f"u{n}", item=f"i{n % 9}", ts_ms=now_ms) for n in range(800)]
    send_items(own, [Item(item=f"i{n}", title=f"Thing {n}") for n in range(30)])
    send_events(own, clicks[:300], [BACKFILL])
    send_events(own, clicks[300:])
    task, stop, lists = RankerTask(own, NoModels()), threading.Event(), [0]
    task.shelf.catch_up()
    task.warm_up()
    worker = Worker(own, "ranker", task, "0")
    worker._room = 2000  # the broker has been quick for a while

    def after_step() -> None:
        lists.append(task.counts["slates"])
        if worker.processed == len(clicks):
            stop.set()

    worker.run(stop, after_step)
    assert lists[-1] == 500
    assert max(after - before for before, after in pairwise(lists)) <= LIVE_LIMIT


def test_an_aborted_batch_is_processed_again_and_leaves_nothing(
    settings: Settings, start: Start, wait_for: Wait
) -> None:
    worker = start(own=msgspec.structs.replace(settings, kafka={"message.timeout.ms": 500}))
    click(settings, "a")
    wait_for(lambda: worker.processed == 1)
    admin = clients.admin(settings)
    for future in admin.delete_topics([settings.prefix + "slates"]).values():  # nothing can be delivered there
        future.result()
    click(settings, "a", "b")
    wait_for(lambda: sum(map(len, worker.task.batches)) >= 5)  # one, two, and these two again
    assert worker.task.commits == 1
    assert counts(settings) == {"a": 1}
    assert behind(settings) == 2
    topics.apply(admin, settings)
    wait_for(lambda: worker.processed == 3)
    assert counts(settings) == {"a": 2, "b": 1}, "each failed attempt has dropped its overlay"
    assert said(settings) == {(b"a", b"2"): 1, (b"b", b"1"): 1}
    assert behind(settings) == 0


def test_an_output_that_the_broker_refuses_ends_the_worker_with_nothing_committed(
    settings: Settings, start: Start, wait_for: Wait
) -> None:
    task = Count(settings)
    task.value = lambda n: b"small" if n == 1 else Random(7).randbytes(1_100_000)
    worker = start(task)
    click(settings, "a", "a")
    wait_for(lambda: not worker.thread.is_alive())
    assert "Message size too large" in str(worker.error)
    assert len(task.batches) - task.commits == 1, "tried once, not for ever"
    left = 2 - task.commits
    assert (counts(settings).get("a", 0), behind(settings)) == (task.commits, left)
    assert sum(said(settings).values()) == task.commits
    mended = start()
    wait_for(lambda: mended.processed == left)
    assert counts(settings) == {"a": 2}


def test_an_output_larger_than_the_client_sends_ends_the_worker_too(
    settings: Settings, start: Start, wait_for: Wait
) -> None:
    task = Count(settings)
    task.value = lambda n: bytes(17 * 1024 * 1024)  # the size before compression counts here
    worker = start(task)
    click(settings, "a")
    wait_for(lambda: not worker.thread.is_alive())
    assert "Message size too large" in str(worker.error)
    assert (counts(settings), behind(settings)) == ({}, 1)


def test_a_partition_that_leaves_and_comes_back_while_a_batch_is_gathered_counts_once(
    settings: Settings, start: Start, wait_for: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.worker.LINGER_S", 60.0)  # by chance 5 ms are long enough, too
    task = Count(settings)
    task.batch_limit = 3  # what was read before, the same again, and what ends the waiting
    first = start(task, instance="a", own=quick(settings))
    wait_for(lambda: len(first.partitions) == 4)
    producer = clients.producer(settings)
    producer.produce(settings.prefix + "events", b"x", b"u", 0)
    producer.flush(30)
    second = start(instance="b")
    wait_for(lambda: len(second.partitions) == 2)
    producer.produce(settings.prefix + "events", b"x", b"u", 0)
    producer.flush(30)
    wait_for(lambda: task.commits == 1)
    assert task.batches == [[(0, 0), (0, 1)]]
    assert counts(settings) == {"u": 2}


def test_an_idle_worker_makes_no_transactions(settings: Settings, wait_for: Wait) -> None:
    task, stop = Count(settings), threading.Event()
    steps, at_rest = count(), list[int]()

    def after_step() -> None:
        if next(steps) == 10:  # a second
            at_rest.append(transaction_records(settings))
            click(settings, "a")
        if task.commits:
            stop.set()

    Worker(settings, ROLE, task, "0").run(stop, after_step)
    assert at_rest == [1], "only the producer's registration"
    wait_for(lambda: transaction_records(settings) > 1)


def transaction_records(settings: Settings) -> int:
    """Records about the counter's transactional id in Kafka's own log of transactions."""
    admin, consumer, name = clients.admin(settings), clients.reader(settings), "__transaction_state"
    found: list[Record] = []
    read_to(consumer, name, end_offsets(admin, name, clients.partitions_of(admin, name)), found.append)
    consumer.close()
    return sum(f"{settings.prefix}{ROLE}.0".encode() in (record.key or b"") for record in found)
