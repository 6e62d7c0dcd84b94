"""The port on which a role shows its metrics and health: alive, ready, and who may hold it up."""

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread, active_count

import msgspec
import pytest
from scrape_helpers import ask, read_page, value

from recsys.errors import Unavailable
from streams import telemetry
from streams.ranker import RankerTask
from streams.roles import await_broker, run_role
from streams.settings import Settings
from streams.telemetry import LIVE_S, Health, serve

Wait = Callable[..., None]


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health("ranker", clock)


@pytest.fixture
def served(health: Health) -> Iterator[int]:
    """The port that shows it."""
    server = serve(0, health, "127.0.0.1")
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_a_loop_that_has_stood_still_too_long_is_not_alive(served: int, health: Health, clock: Clock) -> None:
    assert ask(served, "/livez") == (200, '{"role":"ranker","progress_age_s":0.0}\n')
    clock.now_s += LIVE_S - 0.001
    assert ask(served, "/livez")[0] == 200
    clock.now_s += 0.001
    assert ask(served, "/livez") == (503, f'{{"role":"ranker","progress_age_s":{LIVE_S}}}\n')
    health.beat()
    assert ask(served, "/livez")[0] == 200


def test_what_is_long_by_nature_has_its_time_and_no_more(served: int, health: Health, clock: Clock) -> None:
    health.begin("its first list", 600)
    clock.now_s += 600 + LIVE_S - 0.001
    assert ask(served, "/livez")[0] == 200
    assert ask(served, "/readyz") == (503, '{"role":"ranker","waiting_for":"its first list"}\n')
    clock.now_s += 0.001
    assert ask(served, "/livez")[0] == 503


def test_a_ranker_that_warms_up_for_minutes_is_alive_and_not_ready(
    settings: Settings, health: Health, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, stop = [], Event()

    def warm_up(task: RankerTask) -> None:
        clock.now_s += 300
        said.append((health.live()[0], health.waiting_for))
        stop.set()

    monkeypatch.setattr("streams.roles.Health", lambda role: health)
    monkeypatch.setattr(RankerTask, "warm_up", warm_up)
    run_role(settings, "ranker", "0", stop)
    assert said == [(True, "its first list")]


def test_it_is_ready_when_it_waits_for_nothing_and_says_what_for(served: int, health: Health, clock: Clock) -> None:
    assert ask(served, "/readyz") == (503, '{"role":"ranker","waiting_for":"its start"}\n')
    for waiting_for in ("partitions", "Redis", "", "its end"):
        health.waiting_for = waiting_for
        status, body = ask(served, "/readyz")
        assert (status, json.loads(body)["waiting_for"]) == (503 if waiting_for else 200, waiting_for)
        assert ask(served, "/livez")[0] == 200, "an outage must not restart a fleet"
    health.waiting_for = ""
    clock.now_s += 10 * LIVE_S
    assert ask(served, "/readyz")[0] == 200, "of progress /livez speaks"


def test_there_is_nothing_else(served: int) -> None:
    for path in ("/", "/metrics/", "/livez/..", "/health", "/livezz", "/favicon.ico"):
        assert ask(served, path) == (404, "/metrics /livez /readyz\n")


def test_a_beat_is_a_metric_too(served: int, health: Health) -> None:
    before_s = time.time()
    health.beat()
    assert before_s - 1 <= value(read_page(served), telemetry.LOOP_TIMESTAMP, role="ranker") <= time.time() + 1


def test_a_scrape_is_not_held_up_by_a_client_that_says_nothing(served: int) -> None:
    with socket.create_connection(("127.0.0.1", served)):
        assert ask(served, "/livez")[0] == 200


def test_a_client_that_says_nothing_or_hangs_up_is_let_go_without_a_word(
    served: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], wait_for: Wait
) -> None:
    monkeypatch.setattr("streams.telemetry._Quiet.timeout", 0.2)
    threads = active_count()
    with socket.create_connection(("127.0.0.1", served), timeout=10) as silent:
        assert silent.recv(1) == b""
    wait_for(lambda: active_count() <= threads)
    monkeypatch.undo()
    with socket.create_connection(("127.0.0.1", served)) as gone:
        wait_for(lambda: active_count() > threads)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
    wait_for(lambda: active_count() <= threads)
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_one_clear_line(served: int, settings: Settings) -> None:
    own = msgspec.structs.replace(settings, metrics_port=served)
    with pytest.raises(Unavailable) as said:
        run_role(own, "ranker", "0", Event())
    assert str(said.value) == f"port {served} for metrics: Address already in use; choose another with --metrics-port"


def has_ipv6() -> bool:
    """Containers often have none."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


WITH_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6: run it on one with a loopback ::1")


@pytest.mark.parametrize("host", ["127.0.0.2", pytest.param("::1", marks=WITH_IPV6)])
def test_it_listens_on_the_address_that_is_named_and_on_no_other(host: str, health: Health) -> None:
    server = serve(0, health, host)
    try:
        with socket.create_connection((host, server.server_port), timeout=10) as scrape:
            scrape.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            assert scrape.recv(12) == b"HTTP/1.0 200"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.server_port), timeout=10)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("host", "why"), [("192.0.2.1", "Cannot assign requested address"), ("no.such.host.invalid", "[A-Z][a-z ]+")]
)
def test_an_address_that_is_not_this_machines_is_one_clear_line(settings: Settings, host: str, why: str) -> None:
    own = msgspec.structs.replace(settings, metrics_port=9400, metrics_host=host)
    with pytest.raises(Unavailable, match=rf"^port 9400 of {host} for metrics: {why}; see metrics_host$"):
        run_role(own, "ranker", "0", Event())


def test_without_a_port_nothing_listens(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("streams.roles.serve", lambda *_: pytest.fail("it listens"))
    stop = Event()
    stop.set()
    run_role(settings, "materialiser", "0", stop)


def test_a_role_that_starts_in_an_outage_waits_for_its_broker_and_says_so(wait_for: Wait) -> None:
    nobody, health, stop = Settings(bootstrap="127.0.0.1:9"), Health("ranker"), Event()
    found = list[bool]()
    waiting = Thread(target=lambda: found.append(await_broker(nobody, health, stop)))
    waiting.start()
    wait_for(lambda: health.ready()[1]["waiting_for"].startswith("no Kafka answers at 127.0.0.1:9"))
    assert health.live()[0]
    stop.set()
    waiting.join(30)
    assert found == [False]
