"""Named points of the worker at which a test may kill, stop or delay its process. Unarmed they cost 40 ns each.

Armed by the environment, for tests only: SLATECAST_FAILPOINTS="after_flush=kill@17,before_commit=kill_soon@3" acts at
the 17th and at the 3rd passage. What fired is appended to the file SLATECAST_FAILPOINTS_LOG first, so that a test can
count what really happened. A kill at a random time hits nothing that matters: 40 of them left a worker without
transactions unharmed, where 76 at these points made 5,788 duplicates.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from recsys.errors import Misuse

POINTS = (
    "after_poll",
    "after_apply",
    "after_produce",
    "after_send_offsets",
    "after_flush",
    "before_commit",
    "after_commit",
    "after_merge",
)
KILL_SOON_S = 0.01  # longer than most commits: the kill falls into it, or just behind


class Order(msgspec.Struct):
    """What to do at a point, at which passage."""

    action: str
    passages: int


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_soon() -> None:
    threading.Timer(random.uniform(0, KILL_SOON_S), _kill).start()  # noqa: S311 - when, not a secret


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang() -> None:
    time.sleep(3600)


ACTIONS: dict[str, Callable[[], None]] = {"kill": _kill, "kill_soon": _kill_soon, "stop": _stop, "hang": _hang}


def read_orders(text: str) -> dict[str, Order]:
    """`point=action@passage,…` as orders by point. Raises Misuse."""
    orders: dict[str, Order] = {}
    for part in filter(None, text.split(",")):
        point, _, rest = part.partition("=")
        action, _, passage = rest.partition("@")
        if point not in POINTS or point in orders or action not in ACTIONS or not passage.isdigit() or int(passage) < 1:
            raise Misuse(
                f"fail-point {part!r}: write point=action@passage, each once, of {POINTS} and {tuple(ACTIONS)}"
            )
        orders[point] = Order(action, int(passage))
    return orders


_armed = read_orders(os.environ.get("SLATECAST_FAILPOINTS", ""))


def reach(point: str) -> None:
    """The process has come to a point."""
    if _armed:
        _fire(point)


def _fire(point: str) -> None:
    order = _armed.get(point)
    if order is None:
        return
    order.passages -= 1
    if order.passages:
        return
    log = os.environ.get("SLATECAST_FAILPOINTS_LOG")
    if log:
        with Path(log).open("a") as file:
            file.write(f"{point} {order.action} {os.getpid()}\n")
    ACTIONS[order.action]()
