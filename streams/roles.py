"""The roles of a running Slatecast, one process each, and the parent that keeps them running.

`run_role` is what a role's process does; `Supervisor` starts the processes, starts a failed one again, says why, and
ends them in order. Called by `slatecast run` and by the demo.
"""

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from models.serving import follow_champion, open_best, pointer
from recsys.errors import Misuse, Unavailable
from streams import clients
from streams.ranker import RankerTask
from streams.settings import Settings
from streams.signals import SignalsTask
from streams.telemetry import Health, serve
from streams.transactions import Stopped
from streams.worker import Worker

log = logging.getLogger(__name__)

ROLES = ("signals", "ranker", "materialiser")  # signals first: a ranker reads what they have written
BACKOFF_S, BACKOFF_MAX_S = 0.5, 30.0
DOUBLINGS = 6  # of the pause, past the longest; 1,024 of them are no float
# A compiler needs 15 s of a core, an index .3 ms of one a text, both more of a share of one: who is ended for it and
# starts again, starts again with it.
WARM_UP_S = 600.0
HOPELESS = 3  # failures after which waiting for a role is in vain; `run` goes on trying, the demo says so
SETTLED_S = 60.0  # who lived this long and fails is no longer in the same trouble
STOP_S = 8.0  # a role needs at most 5 s to commit what it holds


def run_role(settings: Settings, role: str, instance: str, stop: threading.Event) -> None:
    """Be one role until `stop` is set."""
    health = Health(role)
    server = serve(settings.metrics_port, health, settings.metrics_host) if settings.metrics_port else None
    try:
        if not await_broker(settings, health, stop):
            return
        if role == "signals":
            Worker(settings, role, SignalsTask(settings), instance, health).run(stop)
        elif role == "ranker":
            home = Path(settings.home)
            seen = pointer(home)  # before the release: what is promoted meanwhile is not missed
            health.begin("its release", WARM_UP_S)
            models = open_best(home, settings.gpu)
            task = RankerTask(settings, models)
            health.begin("catalogue and signals", 0)
            task.shelf.catch_up(health.beat)
            log.info("ranker: warming up")
            health.begin("its first list", WARM_UP_S)
            task.warm_up()
            health.beat()
            told = (task.shelf.catalogue, settings.policy, task.successors.put, stop, settings.gpu)
            following = threading.Thread(
                target=follow_champion, args=(home, seen, models.release, *told), name="releases", daemon=True
            )
            following.start()
            Worker(settings, role, task, instance, health).run(stop)
        elif role == "materialiser":
            from streams.materialiser import Materialiser  # redis takes .4 s to import: not at each start of a worker

            Materialiser(settings, instance, health).run(stop)
        else:
            raise Misuse(f"no role {role!r}; there are {', '.join(ROLES)}")
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()


def await_broker(settings: Settings, health: Health, stop: threading.Event) -> bool:
    """Ask until a broker answers, so that a role is back with it, not after the supervisor's pause. False if stopped."""
    said = ""
    while not stop.is_set():
        health.beat()
        try:
            clients.check_broker(settings)
        except Unavailable as error:
            if str(error) != said:  # once per cause: an outage is no reason to fill a disk
                log.warning("waiting: %s", error)
            said = health.waiting_for = str(error)
            stop.wait(0.2)
        else:
            health.waiting_for = "its start"
            return True
    return False


def run_child() -> None:
    """Be the role that the parent names on stdin: one line of JSON, then silence for as long as it lives.

    The end of stdin is the end of the parent, and ours. Settings come this way since they may hold secrets, which
    neither a command line nor an environment keeps.
    """
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    stop = stop_on_signals()

    def end_with_parent() -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock, held by this thread, would stop the interpreter's exit
            pass
        stop.set()

    threading.Thread(target=end_with_parent, daemon=True).start()
    run_role(order.settings, order.role, order.instance, stop)


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM or Ctrl-C sets."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


class Order(msgspec.Struct, frozen=True):
    """What a child is told."""

    settings: Settings
    role: str
    instance: str


class Supervisor:
    """Processes of roles. With a log file they write there, else to our stderr."""

    def __init__(
        self, settings: Settings, roles: Sequence[str], log_file: Path | None = None, instance: str = "0"
    ) -> None:
        self._settings, self._log_file, self._instance = settings, log_file, instance
        self._failures = dict.fromkeys(roles, 0)
        self._again_s: dict[str, float] = {}
        self._started_s: dict[str, float] = {}
        self._ports = {role: settings.metrics_port + n for n, role in enumerate(roles) if settings.metrics_port}
        self.processes = {role: self._start(role) for role in roles}

    def tend(self) -> None:
        """Start again what has ended, after a growing, jittered pause."""
        for role, process in self.processes.items():
            if process.poll() is None:
                continue
            if role not in self._again_s:
                if time.monotonic() - self._started_s[role] > SETTLED_S:
                    self._failures[role] = 0
                longest_s = min(BACKOFF_S * 2 ** min(self._failures[role], DOUBLINGS), BACKOFF_MAX_S)
                pause_s = longest_s * random.uniform(0.5, 1)  # noqa: S311
                self._failures[role] += 1
                self._again_s[role] = time.monotonic() + pause_s
                log.warning("%s ended: %s; again in %.1f s", role, _cause(process.returncode), pause_s)
            elif time.monotonic() >= self._again_s[role]:
                del self._again_s[role]
                if process.stdin is not None:
                    process.stdin.close()
                self.processes[role] = self._start(role)

    def check(self) -> None:
        """Raise Unavailable if a role has ended again and again."""
        for role, count in self._failures.items():
            if count >= HOPELESS:
                raise Unavailable(f"{role} has ended {count} times{self._last_words()}")

    def _last_words(self) -> str:
        lines = self._log_file.read_text(errors="replace").splitlines() if self._log_file else []
        return f": {lines[-1]}" if lines else ""

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to what does not listen."""
        for process in self.processes.values():
            process.terminate()
        deadline_s = time.monotonic() + STOP_S
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def _start(self, role: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "streams.cli.main", "run", "--child"]
        with self._log_file.open("ab") if self._log_file else contextlib.nullcontext() as output:
            # A session of its own: Ctrl-C reaches the parent, which ends the roles in order.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
        assert process.stdin is not None  # noqa: S101 - it was opened as a pipe
        self._started_s[role] = time.monotonic()
        own = msgspec.structs.replace(self._settings, metrics_port=self._ports.get(role, 0))
        process.stdin.write(msgspec.json.encode(Order(own, role, self._instance)) + b"\n")
        process.stdin.flush()
        return process


def _cause(code: int) -> str:
    """Why a role's process ended, as far as its exit code tells; its own words are in its log."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    known = {
        0: "as if asked to",
        1: "something did not answer, or a bug",
        2: "misuse",
        Stopped.exit_code: "fenced or stuck",
    }
    return f"exit code {code}, {known.get(code, 'unknown')}"
