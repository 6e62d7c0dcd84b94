"""Ends the process when one piece of work takes longer than it may: a call that ignores its time-out, a record that hangs.

A hung process serves nobody and may hold the partitions for ever; a new one fences it and goes on. Called by the worker.
Two dogs: a thread looks every half second, and a timer in C looks after the thread, for work that never lets go of the
interpreter's lock.
"""

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator

log = logging.getLogger(__name__)

EXIT_CODE = 70  # as every Stopped worker
LOOK_S = 0.5


class Watchdog:
    """One per worker. `limit` frames a piece of work; outside a frame nothing is watched."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._what, self._deadline_s = "", float("inf")
        self._over = threading.Event()

    @contextlib.contextmanager
    def limit(self, what: str, limit_s: float) -> Iterator[None]:
        """End the process if the block takes longer. 2 µs."""
        outer = self._what, self._deadline_s
        self._what, self._deadline_s = what, time.monotonic() + limit_s
        try:
            yield
        finally:
            self._what, self._deadline_s = outer

    @contextlib.contextmanager
    def watching(self, stuck_s: float) -> Iterator[None]:
        """Watch while the block runs. stuck_s: how long the interpreter's lock may be held at a stretch."""
        _arm(stuck_s)  # not only at the thread's first look: a record may never let it have one
        threading.Thread(target=self._look, args=[stuck_s], name=f"{self._name}-watchdog", daemon=True).start()
        try:
            yield
        finally:
            self._over.set()

    def _look(self, stuck_s: float) -> None:
        while not self._over.wait(LOOK_S):
            _arm(stuck_s)
            if time.monotonic() > self._deadline_s:
                log.critical("%s: %s took too long, ending the process; where it stood:", self._name, self._what)
                faulthandler.dump_traceback()
                os._exit(EXIT_CODE)
        faulthandler.cancel_dump_traceback_later()


def _arm(stuck_s: float) -> None:
    """Set the timer in C, again and again: it fires when nobody does any more."""
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(stuck_s, exit=True, file=sys.__stderr__)
