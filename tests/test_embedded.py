"""The embedded services: what they check before a start, and that nothing of them outlives us."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from stream_helpers import read_topic, send

from recsys.errors import Unavailable
from streams import clients, embedded, jars, topics
from streams.embedded import Embedded
from streams.settings import Settings

Wait = Callable[..., None]
PARENT = """
import sys
from pathlib import Path
from streams.embedded import Embedded
running = Embedded(Path(sys.argv[1]))
print(*running.pids.values(), running.folder, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def altered_home(home: Path, tmp_path: Path) -> Path:
    """A home of its own, with every jar as locked."""
    shutil.copytree(jars.jars_folder(home), jars.jars_folder(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def kept(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Services of this module alone, in a folder that stays: some tests kill them."""
    with Embedded(home, tmp_path_factory.mktemp("kept") / "up") as running:
        yield running


def ended(pid: int) -> bool:
    """Gone, or waiting to be buried by an init that is in no hurry."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return state in ("", "Z", "Zs", "Zsl", "Zl")


def test_the_lock_names_every_jar_once_and_no_address() -> None:
    locked = jars.locked_jars()
    assert len({(jar.group, jar.artifact) for jar in locked}) == len(locked)
    assert all(len(jar.sha256) == 64 for jar in locked)
    assert {jar.version for jar in locked if jar.group == "org.apache.kafka"} == {jars.kafka_version()}
    assert "://" not in jars.deploy_file("kafka/jars.lock").read_text()


def test_a_jar_with_a_byte_appended_stops_the_start(altered_home: Path) -> None:
    with (jars.jars_folder(altered_home) / "kafka-clients-4.3.1.jar").open("ab") as jar:
        jar.write(b"x")
    assert [jar.artifact for jar in jars.verify_jars(altered_home)] == ["kafka-clients"]
    with pytest.raises(Unavailable, match="kafka-clients-4.3.1.jar is missing or altered; run `slatecast kafka fetch`"):
        Embedded(altered_home, valkey=False)


def test_jars_that_are_there_are_not_fetched_again(altered_home: Path) -> None:
    steps: list[str] = []
    folder = jars.fetch_kafka(altered_home, lambda done, of, name: steps.append(name))
    assert steps == []
    assert folder == jars.jars_folder(altered_home)


def test_without_a_registry_the_missing_jar_is_named(altered_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # discard: nobody listens
    missing = jars.locked_jars()[0]
    (jars.jars_folder(altered_home) / missing.file).unlink()
    with pytest.raises(Unavailable, match=f"{missing.artifact}:{missing.version} could not be had from Maven Central"):
        jars.fetch_kafka(altered_home)
    assert [path.name for path in (altered_home / "kafka").iterdir()] == [jars.jars_folder(altered_home).name]


def test_a_folder_serves_one_broker_at_a_time(kept: Embedded, home: Path) -> None:
    with pytest.raises(Unavailable, match="in use by another `slatecast up`"):
        Embedded(home, kept.folder)


def test_a_killed_broker_comes_back_on_its_port_with_its_records(kept: Embedded) -> None:
    settings = Settings(bootstrap=kept.bootstrap, redis=kept.redis_url)
    topics.apply(clients.check_broker(settings), settings)
    send(settings, "events", [(b"u1", b"before")])
    kept.kill("kafka")
    with pytest.raises(Unavailable, match="kafka ended by itself"):
        kept.check()
    kept.start_broker()
    kept.check()
    send(settings, "events", [(b"u1", b"after")])
    assert [record.value for record in read_topic(settings, "events")] == [b"before", b"after"]


def test_a_killed_valkey_comes_back_empty_on_its_port(kept: Embedded) -> None:
    client = redis.Redis.from_url(kept.redis_url)
    with contextlib.closing(client):
        client.set("key", "value")
        kept.kill("valkey")
        kept.start_valkey()
        assert client.get("key") is None


def test_services_listen_on_loopback_only(kept: Embedded) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: asks the kernel which address it would use
        outside = probe.getsockname()[0]
    for address in (kept.bootstrap, kept.redis_url.removeprefix("redis://").removesuffix("/0")):
        port = int(address.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)), socket.socket() as other:
            assert other.connect_ex((outside, port)) != 0


def test_a_port_that_was_taken_meanwhile_is_given_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        offers = iter([[holder.getsockname()[1]], embedded._free_ports(1)])
        monkeypatch.setattr(embedded, "_free_ports", lambda count: next(offers))
        with Embedded(home, kafka=False) as running:
            assert f":{holder.getsockname()[1]}/" not in running.redis_url
            assert clients.check_redis(Settings(redis=running.redis_url)).close() is None


def test_a_folder_has_the_ports_of_its_last_start_as_long_as_they_are_free(home: Path, tmp_path: Path) -> None:
    """Else a `slatecast run` that outlives `slatecast up` would look for its broker where none comes again."""
    with Embedded(home, tmp_path) as first:
        found = first.bootstrap, first.redis_url
    with Embedded(home, tmp_path) as second:
        assert (second.bootstrap, second.redis_url) == found
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", int(first.bootstrap.partition(":")[2])))
        holder.listen()
        with Embedded(home, tmp_path) as third:
            assert third.bootstrap != first.bootstrap
            assert third.redis_url == first.redis_url


def test_stop_ends_the_services_and_removes_their_folder(home: Path) -> None:
    running = Embedded(home, kafka=False)
    (pid,) = running.pids.values()
    running.stop()
    assert ended(pid)
    assert not running.folder.exists()
    running.stop()


def test_a_parent_killed_with_sigkill_leaves_no_service_and_no_folder(home: Path, wait_for: Wait) -> None:
    command = [sys.executable, "-c", PARENT, str(home)]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=here) as parent:
        assert parent.stdout is not None
        *pids, folder = parent.stdout.readline().split()
        assert len(pids) == 2
        assert not any(ended(int(pid)) for pid in pids)
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: all(ended(int(pid)) for pid in pids) and not Path(folder).exists())
