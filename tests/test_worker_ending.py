"""How a worker ends: replaced by another, without the records or the topics that it needs, or by SIGTERM."""

import threading
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewPartitions
from stream_helpers import read_topic, send, send_events
from worker_helpers import ROLE, Count, Running, Start, Wait, click, counts, partition_of, quick, said, start

from recsys.errors import Unavailable
from recsys.events import Click, decode_event, encode_event, event_hash
from recsys.profiles import EMPTY, Profile, apply, encode_profile
from streams import clients, topics
from streams.lag import committed_offsets, records_behind
from streams.roles import Supervisor
from streams.settings import Settings
from streams.worker import Stopped, Worker

__all__ = ["start"]  # the fixture


def start_held(settings: Settings, start: Start, *users: str) -> tuple[Running, threading.Event]:
    """A worker in the middle of its first batch, which goes on when the event is set."""
    task, released = Count(settings), threading.Event()
    task.before_commit = lambda: bool(released.wait(30))
    worker = start(task)
    click(settings, *users)
    assert task.begun.wait(20)
    return worker, released


def test_a_worker_that_was_replaced_while_it_computed_commits_nothing(
    settings: Settings, start: Start, wait_for: Wait
) -> None:
    zombie, released = start_held(settings, start, "a")
    successor = start()
    wait_for(lambda: successor.processed == 1)
    released.set()
    wait_for(lambda: not zombie.thread.is_alive())
    assert isinstance(zombie.error, Stopped)
    assert "another process has this --instance" in str(zombie.error)
    assert zombie.task.commits == 0
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


def test_two_runs_of_one_instance_take_turns_and_lose_nothing(
    settings: Settings, tmp_path: Path, wait_for: Wait
) -> None:
    runs = [Supervisor(settings, ("ranker",), tmp_path / f"{n}.log") for n in range(2)]
    sent, fenced = list[Click](), [False, False]

    def have_taken_turns() -> bool:
        if records_behind(clients.admin(settings), settings, "ranker", "events") == 0:
            more = [Click(user=f"u{len(sent) + n}", item="i1", ts_ms=time.time_ns() // 1_000_000) for n in range(20)]
            send_events(settings, more)
            sent.extend(more)
        for n, run in enumerate(runs):
            ended = run.processes["ranker"].poll()
            assert ended in (None, Stopped.exit_code), (tmp_path / f"{n}.log").read_text()
            fenced[n] |= ended == Stopped.exit_code
            run.tend()
        return all(fenced)

    def all_is_done() -> bool:
        runs[0].tend()
        return records_behind(clients.admin(settings), settings, "ranker", "events") == 0

    try:
        wait_for(have_taken_turns)
        runs.pop().stop()
        wait_for(all_is_done)
    finally:
        for run in runs:
            run.stop()
    written = Counter(record.key for record in read_topic(settings, "profiles"))
    assert written == Counter(click.user.encode() for click in sent), "every click once"


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


def test_an_input_that_was_made_again_is_not_read_on_where_the_old_one_was(
    settings: Settings, start: Start, wait_for: Wait
) -> None:
    first, released = start_held(settings, start, *"aaa")
    admin, topic = clients.admin(settings), settings.prefix + "events"
    admin.delete_topics([topic])[topic].result()
    topics.apply(admin, settings)
    click(settings, *"aaaaaa")
    released.set()
    wait_for(lambda: not first.thread.is_alive())
    assert first.task.commits == 1, "its offset stands on the new topic now"
    second = start()
    wait_for(lambda: not second.thread.is_alive())
    assert "events was made again while a role read it" in str(second.error)
    assert second.processed == 0


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
