"""Fail-points: what may be ordered, that an order is carried out at its passage, and that without one nothing happens."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.errors import Misuse
from streams import failpoints
from streams.failpoints import ACTIONS, POINTS, reach, read_orders
from streams.transactions import CALL_LIMIT_S

ROOT = Path(__file__).parents[1]
WALK = """
import sys
from streams.failpoints import reach
for n in range(1, 6):
    for point in sys.argv[1:]:
        reach(point)
        print(point, n, flush=True)
"""


def walk(tmp_path: Path, orders: str, *points: str) -> subprocess.Popen[str]:
    """A process that comes to each point five times and says so."""
    environ = {
        "PYTHONPATH": str(ROOT),
        "SLATECAST_FAILPOINTS": orders,
        "SLATECAST_FAILPOINTS_LOG": str(tmp_path / "fired"),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", WALK, *points], env=environ, text=True, **pipes)


def fired(tmp_path: Path) -> list[str]:
    log = tmp_path / "fired"
    return [line.rsplit(" ", 1)[0] for line in log.read_text().splitlines()] if log.exists() else []


def test_orders_are_read_by_point() -> None:
    orders = read_orders("after_flush=kill@17,before_commit=kill_soon@3")
    assert {point: (order.action, order.passages) for point, order in orders.items()} == {
        "after_flush": ("kill", 17),
        "before_commit": ("kill_soon", 3),
    }
    assert read_orders("") == {}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("point", POINTS)
def test_every_action_may_be_ordered_at_every_point(point: str, action: str) -> None:
    assert read_orders(f"{point}={action}@1")[point].action == action


@pytest.mark.parametrize(
    "orders",
    [
        "after_lunch=kill@1",
        "after_poll=sing@1",
        "after_poll=kill",
        "after_poll=kill@",
        "after_poll=kill@x",
        "after_poll=kill@-1",
        "after_poll",
        "=@",
        "after_poll=kill@1;after_apply=kill@1",
        "after_poll=kill@0",
        "after_merge=kill@3",
    ],
)
def test_a_wrong_order_says_how_to_write_one(orders: str) -> None:
    with pytest.raises(Misuse, match=re.escape("write point=action@passage")) as said:
        read_orders(f"after_merge=kill@2,{orders}")
    assert all(word in str(said.value) for word in (*POINTS, *ACTIONS))


def test_a_wrong_order_stops_the_process_before_it_works(tmp_path: Path) -> None:
    process = walk(tmp_path, "after_poll=kill", "after_poll")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert "write point=action@passage" in err


def test_a_kill_falls_at_its_passage_and_is_written_down_first(tmp_path: Path) -> None:
    process = walk(tmp_path, "after_flush=kill@3", "after_poll", "after_flush")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert out.splitlines()[-1] == "after_poll 3"
    assert (tmp_path / "fired").read_text() == f"after_flush kill {process.pid}\n"


def test_each_point_has_its_own_count(tmp_path: Path) -> None:
    process = walk(tmp_path, "after_flush=kill@4,after_poll=kill@5", "after_poll", "after_flush")
    process.communicate(timeout=30)
    assert fired(tmp_path) == ["after_flush kill"], "after_poll was passed four times then"


def test_a_kill_soon_falls_behind_the_point(tmp_path: Path) -> None:
    process = walk(tmp_path, "before_commit=kill_soon@5", "before_commit")
    out, _ = process.communicate(timeout=30)
    assert fired(tmp_path) == ["before_commit kill_soon"]
    assert process.returncode == -signal.SIGKILL, "its timer is waited for, even by a process that has done its work"
    assert "before_commit 4" in out


def test_a_stopped_process_goes_on_where_it_stood(tmp_path: Path) -> None:
    process = walk(tmp_path, "after_apply=stop@2", "after_apply")
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert fired(tmp_path) == ["after_apply stop"]
    os.kill(process.pid, signal.SIGCONT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out.splitlines()[-1]) == (0, "after_apply 5")


def test_a_hang_outlasts_every_limit_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    slept_s: list[float] = []
    monkeypatch.setattr(failpoints.time, "sleep", slept_s.append)
    monkeypatch.setattr(failpoints, "_armed", read_orders("after_apply=hang@2"))
    for passed in ([], [3600], [3600]):
        reach("after_apply")
        assert slept_s == passed
    assert CALL_LIMIT_S < 3600


def test_what_is_not_ordered_does_nothing(tmp_path: Path) -> None:
    for orders in ("", "after_merge=kill@1", "after_poll=kill@6"):
        process = walk(tmp_path, orders, "after_poll", "after_flush")
        out, _ = process.communicate(timeout=30)
        assert (process.returncode, out.splitlines()[-1]) == (0, "after_flush 5")
    assert fired(tmp_path) == []


def test_unarmed_a_point_is_one_look_at_an_empty_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_fire", lambda point: pytest.fail(f"{point} went on"))
    assert failpoints._armed == {}
    for point in POINTS:
        reach(point)


def test_the_worker_comes_to_every_point() -> None:
    source = "".join((ROOT / "streams" / name).read_text() for name in ("worker.py", "transactions.py"))
    assert set(re.findall(r'reach\("(\w+)"\)', source)) == set(POINTS)
