"""The transactional loop on the real broker: where a worker begins, and the state that it begins with."""

import shutil
import threading
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Message, TopicPartition
from prometheus_client import REGISTRY
from worker_helpers import ROLE, Count, Start, Wait, click, counts, open_transaction, partition_of, quick, said, start

from streams import clients, topics
from streams.settings import Settings
from streams.state import Held, restore

__all__ = ["start"]  # the fixture


@pytest.mark.parametrize("kept", [True, False])
def test_state_is_found_again_by_the_next_start(
    settings: Settings, start: Start, wait_for: Wait, tmp_path: Path, kept: bool
) -> None:
    first = start()
    click(settings, *"aabbbc")
    wait_for(lambda: first.processed == 6)
    first.end()
    if not kept:
        shutil.rmtree(tmp_path / "state")
    second = start()
    click(settings, *"acd")
    wait_for(lambda: second.processed == 3)
    assert counts(settings) == {"a": 3, "b": 3, "c": 2, "d": 1}
    assert (second.restored == 0) if kept else (second.restored >= 3), "only the changelog's tail is read again"
    assert sum(said(settings).values()) == 9


def test_the_first_start_begins_at_the_oldest_record_that_is_kept(
    settings: Settings, start: Start, wait_for: Wait
) -> None:
    click(settings, *"aaaa")
    admin, topic = clients.admin(settings), settings.prefix + "events"
    at = partition_of(settings, "a")
    for future in admin.delete_records([TopicPartition(topic, at, 3)]).values():
        future.result()
    worker = start()
    wait_for(lambda: worker.processed == 1)
    assert worker.task.batches == [[(at, 3)]]


class Reader:
    """A reader that says when it was told of an end."""

    def __init__(self, settings: Settings) -> None:
        self.consumer, self.met_end = clients.reader(settings), threading.Event()
        self.assign, self.get_watermark_offsets = self.consumer.assign, self.consumer.get_watermark_offsets

    def consume(self, *arguments: float) -> list[Message]:
        messages = self.consumer.consume(*arguments)
        if any(message.error() for message in messages):
            self.met_end.set()
        return messages


def test_a_restore_reads_to_where_open_transactions_end(settings: Settings, wait_for: Wait) -> None:
    topic = settings.prefix + "profiles"
    first = open_transaction(settings, "first")
    first.produce(topic, b"1", b"a", 0)
    first.commit_transaction(30)
    late = open_transaction(settings, "late")
    late.produce(topic, b"2", b"a", 0)
    assert late.flush(30) == 0
    admin, reader = clients.admin(settings), Reader(settings)
    found: list[dict[int, Held]] = []
    restoring = threading.Thread(target=lambda: found.append(restore(admin, reader, topic, [0])[0]))
    restoring.start()
    assert reader.met_end.wait(20), "the end for those who read committed records: the open transaction is behind it"
    assert not found
    late.commit_transaction(30)
    restoring.join(20)
    assert dict(found[0][0].items()) == {"a": b"2"}
    reader.consumer.close()


def test_a_successor_waits_for_what_its_predecessor_has_begun_to_commit(
    settings: Settings, start: Start, wait_for: Wait
) -> None:
    click(settings, *"aa")
    at = partition_of(settings, "a")
    member = clients.consumer(settings, f"{settings.prefix}{ROLE}")
    member.subscribe([settings.prefix + "events"])
    wait_for(lambda: member.poll(0.1) is not None)
    predecessor = open_transaction(settings, "predecessor")
    predecessor.produce(settings.prefix + "profiles", b"1", b"a", at)
    predecessor.produce(settings.prefix + "slates", b"1", b"a")
    offsets = [TopicPartition(settings.prefix + "events", at, 1)]
    predecessor.send_offsets_to_transaction(offsets, member.consumer_group_metadata(), 30)
    assert predecessor.flush(30) == 0
    member.close()
    worker = start()
    assert worker.restoring.wait(20)
    assert not worker.task.begun.wait(1), "it must not begin where the predecessor began"
    predecessor.commit_transaction(30)
    wait_for(lambda: worker.processed == 1)
    assert worker.task.batches == [[(at, 1)]]
    assert said(settings) == {(b"a", b"1"): 1, (b"a", b"2"): 1}


def test_state_moves_with_its_partition(settings: Settings, start: Start, wait_for: Wait) -> None:
    users = [f"u{n}" for n in range(40)]
    first = start(instance="a", own=quick(settings))
    click(settings, *users)
    wait_for(lambda: first.processed == 40)
    second = start(instance="b")
    wait_for(lambda: len(first.partitions) == len(second.partitions) == 2)
    assert not first.partitions & second.partitions
    click(settings, *users)
    wait_for(lambda: first.processed + second.processed == 80)
    assert second.processed > 0
    assert counts(settings) == dict.fromkeys(users, 2)
    assert said(settings) == {(user.encode(), b"%d" % n): 1 for user in users for n in (1, 2)}


def test_a_worker_without_a_partition_stands_by(settings: Settings, start: Start, wait_for: Wait) -> None:
    own = msgspec.structs.replace(quick(settings), partitions=1, prefix=f"{settings.prefix}one.")
    topics.apply(clients.check_broker(own), own)
    first, second = (start(Count(own), instance, own) for instance in "ab")
    wait_for(lambda: first.restoring.is_set() and second.restoring.is_set())
    click(own, "a")
    wait_for(lambda: first.processed + second.processed == 1)
    assert first.thread.is_alive()
    assert second.thread.is_alive()


def test_what_stands_on_a_topic_and_is_no_record_is_no_lag(settings: Settings, start: Start, wait_for: Wait) -> None:
    topic, producer = settings.prefix + "events", open_transaction(settings, "requeue")
    producer.produce(topic, b"x", b"u", 0)
    producer.commit_transaction(30)
    producer.begin_transaction()
    producer.produce(topic, b"x", b"u", 0)
    assert producer.flush(30) == 0
    producer.abort_transaction(30)
    worker = start()

    def shown(name: str) -> float | None:
        return REGISTRY.get_sample_value(f"slatecast_{name}", {"role": ROLE, "partition": "0"})

    wait_for(lambda: worker.processed == 1 and shown("committed_offset") == 1)
    wait_for(lambda: shown("lag_records") == shown("lag_seconds") == 0, 10)
