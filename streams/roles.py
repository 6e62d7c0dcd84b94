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

from models.serving import Models, NoModels, open_models
from recsys.errors import Misuse
from streams import clients
from streams.materialiser import Materialiser
from streams.ranker import RankerTask
from streams.settings import Settings
from streams.signals import SignalsTask
from streams.worker import Worker

log = logging.getLogger(__name__)

ROLES = ("signals", "ranker", "materialiser")  # signals first: a ranker reads what they have written
BACKOFF_S, BACKOFF_MAX_S = 0.5, 30.0
STOP_S = 8.0  # a role needs at most 5 s to commit what it holds


def run_role(settings: Settings, role: str, instance: str) -> None:
    """Be one role until SIGTERM, SIGINT or the end of the parent."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=_end_with_parent, args=(os.getppid(), stop), daemon=True).start()
    clients.check_broker(settings)
    if role == "signals":
        Worker(settings, role, SignalsTask(settings), instance).run(stop)
    elif role == "ranker":
        task = RankerTask(settings, load_models(settings))
        task.shelf.catch_up()
        Worker(settings, role, task, instance).run(stop)
    elif role == "materialiser":
        Materialiser(settings, instance).run(stop)
    else:
        raise Misuse(f"no role {role!r}; there are {', '.join(ROLES)}")


def load_models(settings: Settings) -> Models:
    """The champion release of this home, or none."""
    from models.registry import champion

    folder = champion(Path(settings.home))
    return open_models(folder) if folder is not None else NoModels()


class Supervisor:
    """Processes of roles. Each gets its settings through the environment."""

    def __init__(
        self, settings: Settings, roles: Sequence[str], environment: dict[str, str], log_file: Path | None
    ) -> None:
        self._environment = {
            **os.environ,
            "SLATECAST_BOOTSTRAP": settings.bootstrap,
            "SLATECAST_REDIS": settings.redis,
            "SLATECAST_PREFIX": settings.prefix,
            "SLATECAST_HOME": settings.home,
            **environment,
        }
        self._log_file = log_file
        self._stopping = False
        self._failures = dict.fromkeys(roles, 0)
        self._again_s: dict[str, float] = {}
        self.processes = {role: self._start(role) for role in roles}

    def tend(self) -> None:
        """Start again what has ended, after a growing, jittered pause."""
        for role, process in self.processes.items():
            if process.poll() is None:
                continue
            if role not in self._again_s:
                pause_s = min(BACKOFF_S * 2 ** self._failures[role], BACKOFF_MAX_S) * random.uniform(0.5, 1)  # noqa: S311
                self._failures[role] += 1
                self._again_s[role] = time.monotonic() + pause_s
                log.warning("%s ended with code %s, again in %.1f s", role, process.returncode, pause_s)
            elif time.monotonic() >= self._again_s[role]:
                del self._again_s[role]
                self.processes[role] = self._start(role)

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

    def _start(self, role: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "streams.cli.main", "run", role, "--child"]
        with self._log_file.open("ab") if self._log_file else contextlib.nullcontext() as output:
            # A session of its own: Ctrl-C reaches the parent, which ends the roles in order.
            return subprocess.Popen(
                command, env=self._environment, stdout=output, stderr=output, start_new_session=True
            )


def _end_with_parent(parent: int, stop: threading.Event) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    log.warning("the parent process is gone, stopping")
    stop.set()
