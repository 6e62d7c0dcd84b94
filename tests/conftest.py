"""Real services for the whole suite: Apache Kafka and Valkey, started once, or those of the environment.

SLATECAST_TEST_BOOTSTRAP and SLATECAST_TEST_REDIS point the suite at a cluster of one's own. `make test` runs it in two
processes, a file in one of them (pytest-xdist), each with services of its own.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does, before numpy is imported

import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
import pytest

from streams import clients, embedded, jars, topics
from streams.settings import Settings

hypothesis.settings.register_profile("suite", deadline=None)  # a busy core is no bug
hypothesis.settings.load_profile("suite")

HOME = Path(os.environ.get("SLATECAST_HOME", Path(__file__).parents[1] / "var"))
_numbers = itertools.count()
_run = uuid.uuid4().hex[:6]
_brokers: set[str] = set()


@pytest.fixture(scope="session")
def home() -> Path:
    """Where the jars are."""
    return HOME


@pytest.fixture(scope="session")
def services(home: Path, pytestconfig: pytest.Config) -> Iterator[Settings]:
    """Settings of the running services."""
    bootstrap, redis = os.environ.get("SLATECAST_TEST_BOOTSTRAP"), os.environ.get("SLATECAST_TEST_REDIS")
    if bootstrap and redis:
        _say_broker(pytestconfig, f"the cluster at {bootstrap}")
        yield Settings(bootstrap=bootstrap, redis=redis)
        return
    jars.fetch_kafka(home)
    with embedded.Embedded(home) as running:
        _say_broker(pytestconfig, f"Apache Kafka {jars.kafka_version()} (embedded) and {_valkey_version(running)}")
        yield Settings(bootstrap=running.bootstrap, redis=running.redis_url)


@pytest.fixture
def settings(services: Settings, tmp_path: Path) -> Settings:
    """Topics and keys of this test alone, empty."""
    own = msgspec.structs.replace(services, prefix=f"t{_run}-{next(_numbers)}.", home=str(tmp_path))
    topics.apply(clients.check_broker(own), own)
    return own


@pytest.fixture(scope="session")
def wait_for() -> Callable[[Callable[[], bool], float], None]:
    """Wait for a condition, not for a time."""

    # Long enough for a machine that does three other things; who waits in vain fails all the same.
    def wait(condition: Callable[[], bool], limit_s: float = 90.0) -> None:
        deadline_s = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {limit_s} s"
            time.sleep(0.02)

    return wait


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which broker ran."""
    for line in sorted(_brokers):
        terminalreporter.write_line(f"broker: {line}")


def _say_broker(config: pytest.Config, line: str) -> None:
    """To this process, and to the one that began it and writes the summary, if there is one."""
    _brokers.add(line)
    getattr(config, "workeroutput", {})["broker"] = line


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a process of the suite says when it ends (a hook of pytest-xdist)."""
    if line := getattr(node, "workeroutput", {}).get("broker"):
        _brokers.add(line)


def _valkey_version(running: embedded.Embedded) -> str:
    client = clients.redis_client(Settings(redis=running.redis_url))
    version = client.info("server").get("valkey_version", "?")
    client.close()
    return f"Valkey {version}"
