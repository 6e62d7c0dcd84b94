"""The transactional loop on the real broker: what it restores, what it commits, and how it ends.

A task that only counts stands in for the ranker: every count is state, and every count is said.
"""

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count, pairwise
from pathlib import Path
from random import Random

import msgspec
import pytest
from confluent_kafka import Message, Producer, TopicPartition
from confluent_kafka.admin import NewPartitions
from prometheus_client import REGISTRY
from stream_helpers import read_topic, send, send_events, send_items

from models.serving import NoModels
from recsys.catalogue import Item
from recsys.errors import Unavailable
from recsys.events import Click, decode_event, encode_event, event_hash
from recsys.profiles import EMPTY, Profile, apply, encode_profile
from streams import clients, topics
from streams.lag import committed_offsets, records_behind
from streams.ranker import LIVE_LIMIT, RankerTask
from streams.records import BACKFILL, Output, Record
from streams.roles import Supervisor
from streams.settings import Settings
from streams.state import Held, State, end_offsets, read_to, restore
from streams.worker import Stopped, Worker

Wait = Callable[..., None]
ROLE = "counter"


class Count:
    """Counts the records of every key; says each count on `slates`."""

    topic, changelog, batch_limit, live_limit = "events", "profiles", 500, 500

    def __init__(self, settings: Settings) -> None:
        self.says = settings.prefix + "slates"
        self.batches: list[list[tuple[int, int]]] = []  # (partition, offset) of every batch, failed ones included
        self.begun = threading.Event()
        self.commits = 0
        self.before_commit: Callable[[], None] = lambda: None
        self.value: Callable[[int], bytes] = lambda n: b"%d" % n

    def refresh(self) -> None:
        """Nothing to read."""

    def process(self, records: Sequence[Record], state: State) -> list[Output]:
        """One more for each record."""
        self.begun.set()
        self.batches.append([(record.partition, record.offset) for record in records])
        outputs = []
        for record in records:
            key = (record.key or b"").decode()
            n = int(state.get(record.partition, key) or 0) + 1
            state.put(record.partition, key, b"%d" % n)
            outputs.append(Output(self.says, record.key, self.value(n)))
        self.before_commit()
        return outputs

    def committed(self) -> None:
        """The batch is durable."""
        self.commits += 1


class Running(Worker):
    """A worker in a thread, which says when it begins to restore, and with what it ended."""

    def __init__(self, settings: Settings, task: Count, instance: str) -> None:
        super().__init__(settings, ROLE, task, instance)
        self.stop, self.restoring, self.error = threading.Event(), threading.Event(), None
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            self.run(self.stop)
        except Stopped as error:
            self.error = error

    def _assigned(self, consumer: object, partitions: list[TopicPartition]) -> None:
        self.restoring.set()
        super()._assigned(consumer, partitions)  # type: ignore[arg-type]

    @property
    def partitions(self) -> set[int]:
        return set(self._next)

    def end(self) -> None:
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


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


Start = Callable[..., Running]


@pytest.fixture
def start(settings: Settings) -> Iterator[Start]:
    """Start a worker; all end with the test."""
    workers: list[Running] = []

    def begin(task: Count | None = None, instance: str = "0", own: Settings = settings) -> Running:
        workers.append(Running(own, task or Count(settings), instance))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.end()


def click(settings: Settings, *users: str) -> None:
    send(settings, "events", [(user.encode(), b"x") for user in users])


def quick(settings: Settings) -> Settings:
    """Heartbeats by which a member hears sooner than in 3 s that its group has changed."""
    return msgspec.structs.replace(settings, kafka={"heartbeat.interval.ms": 200})


def counts(settings: Settings) -> dict[str, int]:
    """What the changelog says, committed records only."""
    records = sorted(read_topic(settings, "profiles"), key=lambda record: record.offset)
    return {(record.key or b"").decode(): int(record.value or b"0") for record in records}


def said(settings: Settings) -> Counter[tuple[bytes | None, bytes | None]]:
    return Counter((record.key, record.value) for record in read_topic(settings, "slates"))


def behind(settings: Settings) -> int:
    return records_behind(clients.admin(settings), settings, ROLE, "events")


def uncommitted_ends(settings: Settings, topic: str) -> dict[int, int]:
    admin, name = clients.admin(settings), settings.prefix + topic
    return end_offsets(admin, name, clients.partitions_of(admin, name))


def open_transaction(settings: Settings, name: str) -> Producer:
    producer = clients.producer(settings, f"{settings.prefix}{name}")
    producer.init_transactions(30)
    producer.begin_transaction()
    return producer


def partition_of(settings: Settings, user: str) -> int:
    return next(r.partition for r in read_topic(settings, "events") if r.key == user.encode())


# --- restoring ---------------------------------------------------------------------------------------------------------


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


# --- committing --------------------------------------------------------------------------------------------------------


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


def test_a_worker_that_was_replaced_while_it_computed_commits_nothing(
    settings: Settings, start: Start, wait_for: Wait
) -> None:
    task, released = Count(settings), threading.Event()
    task.before_commit = lambda: bool(released.wait(30))
    zombie = start(task)
    click(settings, "a")
    assert task.begun.wait(20)
    successor = start()
    wait_for(lambda: successor.processed == 1)
    released.set()
    wait_for(lambda: not zombie.thread.is_alive())
    assert isinstance(zombie.error, Stopped)
    assert "another process has this --instance" in str(zombie.error)
    assert task.commits == 0
    assert said(settings) == {(b"a", b"1"): 1}
    click(settings, "a")
    wait_for(lambda: successor.processed == 2)
    assert counts(settings) == {"a": 2}


def test_an_idle_worker_ends_when_another_takes_its_name(settings: Settings, start: Start, wait_for: Wait) -> None:
    first = start(own=quick(settings))
    click(settings, "a")
    wait_for(lambda: first.processed == 1)
    second = start()
    wait_for(lambda: not first.thread.is_alive())
    assert "instance" in str(first.error)
    assert "another process has this --instance" in str(first.error)
    click(settings, "a")
    wait_for(lambda: second.processed == 1)
    assert counts(settings) == {"a": 2}


def test_what_retention_has_overtaken_is_an_error_never_a_jump(
    settings: Settings, start: Start, wait_for: Wait
) -> None:
    first = start()
    click(settings, "a")
    wait_for(lambda: first.processed == 1)
    first.end()
    click(settings, *"aaa")
    admin = clients.admin(settings)
    gone = TopicPartition(settings.prefix + "events", partition_of(settings, "a"), 3)
    for future in admin.delete_records([gone]).values():
        future.result()
    second = start()
    wait_for(lambda: not second.thread.is_alive())
    assert "the topic no longer has what was to be read next" in str(second.error)
    assert second.task.batches == []


def test_offsets_that_the_broker_has_forgotten_are_no_first_start(
    settings: Settings, start: Start, wait_for: Wait
) -> None:
    send(settings, "profiles", [(b"a", b"1")])  # it has worked, and was down for so long that its group is forgotten
    click(settings, *"aaaa")
    admin, at = clients.admin(settings), partition_of(settings, "a")
    gone = TopicPartition(settings.prefix + "events", at, 3)
    for future in admin.delete_records([gone]).values():
        future.result()
    worker = start()
    wait_for(lambda: not worker.thread.is_alive())
    assert f"partition {at} has state" in str(worker.error)
    assert f"{settings.prefix}events begins at 3: what came before may not have been read" in str(worker.error)
    assert worker.task.batches == []


def test_an_input_that_is_missing_or_has_grown_alone_ends_with_what_to_do(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = msgspec.structs.replace(settings, prefix=f"{settings.prefix}nothing.")
    with pytest.raises(Stopped, match=r"nothing\.events.*; run `slatecast topics apply --execute`"):
        Worker(nothing, ROLE, Count(nothing), "0").run(threading.Event())
    monkeypatch.setattr("streams.state.ELECTION_S", 0.5)
    admin, topic = clients.admin(settings), settings.prefix + "events"
    admin.create_partitions([NewPartitions(topic, 6)])[topic].result()
    with pytest.raises(Unavailable, match=r"more partitions than its other topics: .*docs/operations\.md"):
        Worker(settings, ROLE, Count(settings), "0").run(threading.Event())


def test_sigterm_ends_a_role_within_five_seconds_having_committed(
    settings: Settings, tmp_path: Path, wait_for: Wait
) -> None:
    supervisor = Supervisor(settings, ("ranker",), tmp_path / "roles.log")
    try:
        now_ms = time.time_ns() // 1_000_000
        clicks = [Click(user=f"u{n % 50}", item="i1", ts_ms=now_ms - 5_000 + n, id=f"e{n}") for n in range(5_000)]
        send_events(settings, clicks)
        wait_for(lambda: 0 < records_behind(clients.admin(settings), settings, "ranker", "events") < len(clicks))
        ranker, asked_s = supervisor.processes["ranker"], time.monotonic()
        ranker.terminate()
        assert ranker.wait(5) == 0, (tmp_path / "roles.log").read_text()
        assert time.monotonic() - asked_s < 5
    finally:
        supervisor.stop()
    done = committed_offsets(settings, "ranker", "events", [0, 1, 2, 3])
    profiles = dict[str, Profile]()
    for record in read_topic(settings, "events"):
        if record.offset < done[record.partition]:
            event = decode_event(record.value or b"")
            before = profiles.get(event.user, EMPTY)
            profiles[event.user] = apply(before, event, event_hash(event, encode_event(event)))
    assert sum(done.values()) > 0
    found = {(record.key or b"").decode(): record.value for record in read_topic(settings, "profiles")}
    assert found == {user: encode_profile(profile) for user, profile in profiles.items()}


def transaction_records(settings: Settings) -> int:
    """Records about the counter's transactional id in Kafka's own log of transactions."""
    admin, consumer, name = clients.admin(settings), clients.reader(settings), "__transaction_state"
    found: list[Record] = []
    read_to(consumer, name, end_offsets(admin, name, clients.partitions_of(admin, name)), found.append)
    consumer.close()
    return sum(f"{settings.prefix}{ROLE}.0".encode() in (record.key or b"") for record in found)
