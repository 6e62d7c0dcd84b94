"""The watchdog: what takes too long ends its process, saying where it stood; what does not is left alone."""

import subprocess
import sys
from pathlib import Path

from streams.transactions import Stopped
from streams.watchdog import EXIT_CODE

ROOT = Path(__file__).parents[1]
FINE = (0, "after\n", "")
# One letter more doubles it: 24 take a second, 60 take longer than the world has been. `re` never lets go of the lock.
HOLDS_THE_LOCK = 're.match(r"(a+)+$", "a" * 60 + "b")'
PROGRAM = """
import re, threading, time
from streams.watchdog import Watchdog

def work():
    {work}

dog = Watchdog("ranker")
with dog.watching(stuck_s={stuck_s}):
    {block}
{then}
print("after", flush=True)
"""


def end(
    block: str, work: str = "time.sleep(60)", stuck_s: float = 30, then: str = "", limit_s: float = 20
) -> tuple[int, str, str]:
    """Exit code and output of a process that runs a block under a watchdog."""
    program = PROGRAM.format(block=block, work=work, stuck_s=stuck_s, then=then)
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=limit_s
    )
    return done.returncode, done.stdout, done.stderr


def framed(limit_s: float, block: str = "work()") -> str:
    return f'with dog.limit("processing 3 records", {limit_s}): {block}'


def test_a_slow_block_ends_the_process_and_says_where_it_stood() -> None:
    code, out, err = end(framed(0.1))
    assert (code, out) == (70, "")
    assert EXIT_CODE == Stopped.exit_code == 70, "as every worker that must be started anew"
    assert "ranker: processing 3 records took too long" in err
    assert "in work" in err.partition("(most recent call first)")[2], "the stack of the thread that hung"


def test_a_block_that_never_lets_go_of_the_interpreter_ends_too() -> None:
    code, out, err = end("time.sleep(1.1); work()", HOLDS_THE_LOCK, stuck_s=1)
    assert (code, out) == (1, "")
    assert err.startswith("Timeout"), "the timer in C, not the thread"
    assert "in work" in err


def test_not_even_at_the_very_beginning() -> None:
    assert end("work()", HOLDS_THE_LOCK, stuck_s=1, limit_s=5)[0] == 1


def test_what_lets_go_of_the_lock_now_and_then_is_not_stuck() -> None:
    assert end("[time.sleep(0.01) for _ in range(260)]", stuck_s=2) == FINE


def test_quick_blocks_are_left_alone_however_long_they_take_together() -> None:
    assert end("for _ in range(8):\n        " + framed(1.3, "time.sleep(0.2)")) == FINE


def test_a_block_that_fails_in_time_is_over() -> None:
    assert end(f"try:\n        {framed(0.1, '1 / 0')}\n    except ZeroDivisionError: time.sleep(1.2)") == FINE


def test_between_frames_nothing_is_watched() -> None:
    assert end(framed(0.1, "pass") + "\n    time.sleep(1.2)") == FINE


def test_after_the_watch_a_process_may_take_its_time() -> None:
    assert end("time.sleep(0.7)", stuck_s=0.8, then="time.sleep(1.2)") == FINE


def test_a_frame_inside_another_does_not_lift_its_limit() -> None:
    block = framed(0.1, 'exec("with dog.limit(chr(105), 20): pass"); time.sleep(1.5)')
    assert end(block)[0] == EXIT_CODE


def test_the_thread_goes_with_the_block() -> None:
    there = 'any(thread.name == "ranker-watchdog" for thread in threading.enumerate())'
    assert end(f"assert {there}", then=f"while {there}: time.sleep(0.01)") == FINE
