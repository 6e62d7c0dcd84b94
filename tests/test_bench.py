"""Benchmarks at a tiny size, through the command line: what they say, and that nothing of them stays."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import Unavailable
from streams import clients
from streams.bench import ground as grounds
from streams.bench.commit import SIZES
from streams.bench.ground import ask, ground, produce
from streams.bench.restore import Done, Order
from streams.bench.scale import limit_of
from streams.cli.bench import keep_from_engines, show
from streams.cli.main import main
from streams.settings import Settings

Wait = Callable[..., None]
Bench = Callable[..., dict[str, Any]]
RATIOS = {"ratio_bare", "ratio_disk_hot_path", "ratio_plain", "efficiency", "machine_efficiency"}


@pytest.fixture
def bench(settings: Settings, capsys: pytest.CaptureFixture[str], wait_for: Wait) -> Bench:
    """A benchmark's JSON; after it the broker has the same topics as before, and the home the same files."""
    admin, home = clients.admin(settings), Path(settings.home)
    where = ["--bootstrap", settings.bootstrap, "--home", settings.home, "--json"]

    def run(*arguments: object) -> dict[str, Any]:
        topics, files = set(admin.list_topics().topics), set(home.rglob("*"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["slatecast", "bench", *map(str, arguments), "--rounds", "1", *where])
            with pytest.raises(SystemExit) as left:
                main()
        out, err = capsys.readouterr()
        assert not left.value.code, err
        wait_for(lambda: {name for name in admin.list_topics().topics if name.startswith("bench-")} <= topics)
        assert set(home.rglob("*")) == files
        found = json.loads(out)
        assert all(value > 0 for name, value in found.items() if name in RATIOS), found
        return found

    return run


def test_restore_says_how_fast_a_state_is_there_again(bench: Bench) -> None:
    found = bench("restore", "--profiles", 1000)
    assert found.keys() >= {"records_per_s", "ratio_bare", "snapshot_1m_s", "disk_mib", "tail_s", "ratio_disk_hot_path"}
    assert (found["profiles"], found["tail_records"]) == (1000, 10)
    assert found["hot_path_events_per_s"].keys() == found["resident_mib"].keys() == {"memory", "disk"}
    assert found["profile_bytes"] == pytest.approx(600, rel=0.1)
    assert found["disk_mib"] > 1000 * 600 / 1024 / 1024, "all of the profiles"


def test_commit_says_what_a_transaction_costs_by_its_size(bench: Bench) -> None:
    found = bench("commit", "--transactions", 3)
    assert [row["events"] for row in found["batches"]] == list(SIZES)
    for row in found["batches"]:
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["ratio_plain"] == pytest.approx(row["events_per_s"] / row["plain_events_per_s"])
        assert row["transactions"] >= 2


def test_scale_says_what_two_workers_do_and_what_they_lacked(bench: Bench) -> None:
    found = bench("scale", "--seconds", 0.2)
    assert found["limit"] in ("broker", "cores", "workers", "unknown")
    assert found["events_per_s"].keys() == {"1", "2"}
    assert found["broker_cores"] is None, "whose broker this is, nobody told"
    assert found.keys() >= {"efficiency", "machine_efficiency", "efficiency_per_cpu_s", "worker_cores", "idle_cores"}


@pytest.mark.parametrize(
    ("worker_cores", "idle_cores", "limit"),
    [
        (0.97, 0.0, "workers"),
        (0.97, None, "workers"),
        (0.6, 0.02, "cores"),
        (0.6, 0.5, "broker"),
        (0.6, None, "unknown"),
    ],
)
def test_the_limit_is_named_by_who_waits_for_whom(worker_cores: float, idle_cores: float | None, limit: str) -> None:
    assert limit_of(worker_cores, idle_cores) == limit


def test_an_engine_that_fails_is_no_measurement() -> None:
    with pytest.raises(Unavailable, match="ended with code 1"):
        ask("streams.bench.restore", Order("memory", Settings()), Done)


def test_the_ground_goes_even_when_a_benchmark_fails(settings: Settings, wait_for: Wait) -> None:
    admin, home = clients.admin(settings), Path(settings.home)

    def fail() -> None:
        with ground(settings, "torn") as own:
            produce(own, "events", [("u1", b"x")])
            produce(own, "events", [("u1", b"x")] * 5, together=2)
            assert Path(own.home).parent == home
            topics.append(f"{own.prefix}events")
            assert topics[0] in admin.list_topics().topics
            raise ZeroDivisionError

    topics: list[str] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    wait_for(lambda: topics[0] not in admin.list_topics().topics)
    assert not list(home.glob("bench-*"))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="run it on Linux: other systems pin nothing")
def test_every_thread_of_a_broker_is_kept_from_the_core_of_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    core = min(os.sched_getaffinity(0))
    monkeypatch.setattr(grounds, "ENGINE_CORE", core)
    monkeypatch.setattr("streams.cli.bench.ENGINE_CORE", core)
    program = "import threading, time; threading.Thread(target=time.sleep, args=[60]).start(); print(flush=True)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        keep_from_engines(process.pid)
        threads = [int(thread.name) for thread in Path(f"/proc/{process.pid}/task").iterdir()]
        cores = [os.sched_getaffinity(thread) for thread in threads]
        process.kill()
    assert len(threads) == 2
    assert all(core not in each for each in cores)


def test_rows_are_shown_as_a_table_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        {"rounds": 3, "share": 0.123, "batches": [{"events": 1, "p50_ms": 7.891}, {"events": 10, "p50_ms": 9.0}]}, False
    )
    said = capsys.readouterr().err
    assert "0.12" in said
    assert said.split()[-6:] == ["events", "p50_ms", "1", "7.89", "10", "9.00"]
