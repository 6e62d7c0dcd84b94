"""The faults of `make chaos`, small: real workers, a real broker of their own, real kills."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from chaos import broker, kills, storm, zombies
from chaos.__main__ import summarise
from chaos.arena import ROOT, Row, arena, attempt, make_events

from streams.embedded import Embedded
from streams.jars import fetch_kafka


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[Embedded]:
    """A broker that may be killed: the suite's other one is shared."""
    fetch_kafka(home)
    with Embedded(home, valkey=False) as services:
        yield services


def test_kills_at_every_point_cost_nothing_where_without_transactions_they_would(
    running: Embedded, tmp_path: Path
) -> None:
    _all_passed(kills.rows(running, tmp_path, quick=True))


def test_a_worker_that_was_replaced_while_it_slept_is_refused(running: Embedded, tmp_path: Path) -> None:
    _all_passed(zombies.rows(running, tmp_path, quick=True))


def test_a_broker_that_is_killed_under_load_costs_nothing(running: Embedded, tmp_path: Path) -> None:
    _all_passed(broker.rows(running, tmp_path, quick=True))


def test_members_that_join_leave_and_die_cost_nothing(running: Embedded, tmp_path: Path) -> None:
    _all_passed(storm.rows(running, tmp_path, quick=True))


def test_what_nobody_processed_is_found_to_be_lost(running: Embedded, tmp_path: Path) -> None:
    with arena(running, tmp_path, "idle") as ring:
        events = make_events(20, users=5, seed=1)
        ring.send(events)
        row = ring.row("idle", 1, events, passed=True)
    users = len({event.user for event in events})
    assert (row.lost, row.profiles_differ, row.passed) == (users, users, False)
    assert row.said["increments_differ"] == len({event.item for event in events})


def test_a_call_that_hangs_though_brokers_answer_again_is_given_up() -> None:
    program = """
import itertools, time
from streams.watchdog import Watchdog

answers = itertools.chain({answers}, itertools.repeat({{1, 2}}))
dog = Watchdog("ranker", lambda: frozenset(next(answers)))
with dog.watching(stuck_s=30):
    time.sleep({idle_s})
    with dog.limit("send_offsets", 30, asks_broker=True):
        time.sleep(9)
"""

    cases = {
        ("[{1, 2}, ()]", 0): (70, "send_offsets hangs though brokers answer"),  # all were away
        ("[{1, 2}, ()]", 6): (70, "send_offsets hangs though brokers answer"),  # they were away before the call
        ("[{1, 2, 3}]", 0): (70, "send_offsets hangs though brokers answer"),  # one is gone, the others do its work
        ("[]", 0): (0, ""),  # brokers that were never away may be slow
        ("itertools.repeat(())", 0): (0, ""),  # if all stay away they are waited for, up to the limit
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program.format(answers=answers, idle_s=idle_s)],
            env={"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for answers, idle_s in cases
    ]
    for process, (code, words) in zip(running, cases.values(), strict=True):
        said = process.communicate(timeout=60)[1]
        assert (process.returncode, bool(said)) == (code, bool(words))
        assert words in said


def test_a_row_that_raises_has_failed_and_says_why() -> None:
    def run() -> Row:
        raise OSError("no disk")

    row = attempt("broken", run)
    assert not row.passed
    assert row.said == {"error": "OSError: no disk"}


def test_totals_leave_out_the_control() -> None:
    good = Row("kills", 100, 0, 0, 0, passed=True)
    control = Row("control", 20, 3, 200, 5, passed=True)
    report = summarise([good, control])
    assert (report.kills, report.lost, report.duplicated, report.profiles_differ) == (100, 0, 0, 0)
    assert report.control_duplicates == 200


def _all_passed(rows: Sequence[Row]) -> None:
    assert rows
    assert all(row.passed for row in rows), "\n".join(row.shown() for row in rows)
