"""Ends the process when one piece of work takes longer than it may: a call that ignores its time-out, a record that hangs.

A hung process serves nobody and may hold the partitions for ever; a new one fences it and goes on. Called by the worker.
Two dogs: a thread looks every half second, and a timer in C looks after the thread, for work that never lets go of the
interpreter's lock. When a broker goes or comes, calls that waited for it may wait for ever (librdkafka 5511, and others):
one that still hangs a few seconds after the brokers that are there answer somebody else is given up early.
"""

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

EXIT_CODE = 70  # as every Stopped worker
LOOK_S = 0.5
ASKING_S = 1.0  # a call that takes longer may be waiting for a broker that is away
IDLE_ASKING_S = 2.0  # between calls too: an outage that met no call makes the next one hang (13 s lost, measured)
HANGS_S = 3.0  # after a broker has gone or come: an honest call then takes 0 to 2 s
RECENT_S = 60.0  # so long after that a call is still suspected


class Watchdog:
    """One per worker. `limit` frames a piece of work; outside a frame nothing is watched."""

    def __init__(self, name: str, brokers: Callable[[], frozenset[int]] = frozenset) -> None:
        """brokers: the ids of those that are there, none while nobody answers; asked by the thread, more often while a
        call to them takes long.
        """
        self._name, self._brokers = name, brokers
        self._what, self._deadline_s, self._asked_s = "", float("inf"), float("inf")
        self._over = threading.Event()

    @contextlib.contextmanager
    def limit(self, what: str, limit_s: float, *, asks_broker: bool = False) -> Iterator[None]:
        """End the process if the block takes longer. 2 µs."""
        outer = self._what, self._deadline_s, self._asked_s
        now_s = time.monotonic()
        self._what, self._deadline_s, self._asked_s = what, now_s + limit_s, now_s if asks_broker else float("inf")
        try:
            yield
        finally:
            self._what, self._deadline_s, self._asked_s = outer

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
        known: frozenset[int] | None = None
        changed_s = ask_s = -float("inf")
        while not self._over.wait(LOOK_S):
            _arm(stuck_s)
            now_s, asked_s = time.monotonic(), self._asked_s
            if now_s > self._deadline_s:
                self._end("took too long")
            if now_s - asked_s < ASKING_S and now_s < ask_s:
                continue
            ask_s = now_s + IDLE_ASKING_S
            found = self._brokers()
            if known is not None and found != known:
                changed_s = now_s
            known = found
            recent, hangs = changed_s > now_s - RECENT_S, now_s - max(changed_s, asked_s) > HANGS_S
            if found and recent and hangs and asked_s == self._asked_s:
                self._end("hangs though brokers answer")
        faulthandler.cancel_dump_traceback_later()

    def _end(self, why: str) -> None:
        log.critical("%s: %s %s, ending the process; where it stood:", self._name, self._what, why)
        faulthandler.dump_traceback()
        os._exit(EXIT_CODE)


def _arm(stuck_s: float) -> None:
    """Set the timer in C, again and again: it fires when nobody does any more."""
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(stuck_s, exit=True, file=sys.__stderr__)
