"""Metrics and health as an operator meets them: over HTTP, of real roles that have worked on the real broker."""

import json
import re
import socket
import struct
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread, active_count

import msgspec
import pytest
from prometheus_client import Counter, Gauge, Histogram, Metric
from prometheus_client.parser import text_string_to_metric_families
from stream_helpers import send, send_events, send_items

from models.ladder import SCORERS
from recsys.catalogue import Item
from recsys.errors import REASON_CLASSES, Unavailable
from recsys.events import Click
from streams import clients, telemetry, topics
from streams.ranker import RankerTask
from streams.roles import ROLES, Supervisor, await_broker, run_role
from streams.settings import Settings
from streams.telemetry import LIVE_S, Health, serve

Wait = Callable[..., None]
METRICS = {name: value for name, value in vars(telemetry).items() if isinstance(value, Counter | Gauge | Histogram)}
WORKERS = ("ranker", "signals")
# Who shows what. A metric that is missing here fails the test: say which role it is of.
SHOWN_BY = {
    "RECORDS": WORKERS,
    "DUPLICATES": ("ranker",),
    "REJECTS": ("ranker",),
    "BAD_ITEMS": ("ranker",),
    "SLATES": ("ranker",),
    "EVENT_TO_SLATE_SECONDS": ("ranker",),
    "TRANSACTIONS": WORKERS,
    "TRANSACTION_SECONDS": WORKERS,
    "BATCH_RECORDS": WORKERS,
    "LAG_RECORDS": ROLES,
    "LAG_SECONDS": ROLES,
    "COMMITTED_OFFSET": ROLES,
    "REBALANCES": WORKERS,
    "RESTORE_SECONDS": WORKERS,
    "RESTORE_RECORDS": WORKERS,
    "REDIS_WRITES": ("materialiser",),
    "LOOP_TIMESTAMP": ROLES,
    "RELEASES": ("ranker",),
    "MODEL_INFO": ("ranker",),
    "POLICIES": ("ranker",),
    "POLICY_INFO": ("ranker",),
}
USERS, EACH = [f"hidden-user-{n}" for n in range(10)], 4
GOOD, BAD = len(USERS) * EACH, 1
# In Prometheus' words a name ends in its unit, a counter in _total, and what is only a label in _info.
UNITS = ("_seconds", "_records", "_offset", "_info")
Pages = dict[str, dict[str, Metric]]


def ask(port: int, path: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def read_page(port: int) -> dict[str, Metric]:
    """Metrics by name; counters without their _total, as the parser gives them."""
    return {metric.name: metric for metric in text_string_to_metric_families(ask(port, "/metrics")[1])}


def value(page: dict[str, Metric], collector: Counter | Gauge | Histogram, **labels: str) -> float:
    """The sum of a metric's samples with these labels: the value of counters and gauges, the count of histograms."""
    name = next(iter(collector.describe())).name
    samples = page[name].samples if name in page else []
    wanted = (name, f"{name}_total", f"{name}_count")
    return sum(s.value for s in samples if s.name in wanted and labels.items() <= s.labels.items())


def free_port(count: int) -> int:
    """The first of so many ports in a row on which nobody listens."""
    while True:
        with socket.socket() as first:
            first.bind(("", 0))
            port = first.getsockname()[1]
            rest = [socket.socket() for _ in range(1, count)]
            try:
                for n, each in enumerate(rest, 1):
                    each.bind(("", port + n))
            except (OSError, OverflowError):
                continue
            else:
                return port
            finally:
                for each in rest:
                    each.close()


@pytest.fixture(scope="module")
def port() -> int:
    """Of the first of all roles."""
    return free_port(len(ROLES))


@pytest.fixture(scope="module")
def pages(services: Settings, tmp_path_factory: pytest.TempPathFactory, wait_for: Wait, port: int) -> Iterator[Pages]:
    """What each role shows after some events of which one came twice and one is no event."""
    home = tmp_path_factory.mktemp("home")
    own = msgspec.structs.replace(
        services, prefix=f"t{uuid.uuid4().hex[:6]}-metrics.", home=str(home), metrics_port=port
    )
    topics.apply(clients.check_broker(own), own)
    send_items(own, [Item(item=f"hidden-item-{n}", title=f"Thing {n}", category="a > b", price=1.0) for n in range(20)])
    send(own, "items", [(b"hidden-item-20", b"no item")] * BAD)
    supervisor = Supervisor(own, ROLES, home / "roles.log")
    at = {role: port + n for n, role in enumerate(ROLES)}

    def ready(role: str) -> bool:
        try:
            return ask(at[role], "/readyz")[0] == 200
        except OSError:  # it does not listen yet
            return False

    def worked() -> bool:
        page = {role: read_page(at[role]) for role in ROLES}
        slates = value(page["ranker"], telemetry.SLATES)
        # Shown once a second: the offsets say that the last look was behind the last record.
        return (
            value(page["ranker"], telemetry.COMMITTED_OFFSET) == GOOD + BAD + 1
            and value(page["materialiser"], telemetry.REDIS_WRITES, result="applied") == slates > 0
            and value(page["materialiser"], telemetry.COMMITTED_OFFSET) >= slates
            and value(page["signals"], telemetry.COMMITTED_OFFSET) >= value(page["signals"], telemetry.RECORDS) > 0
        )

    try:
        wait_for(lambda: all(map(ready, ROLES)))
        now_ms = time.time_ns() // 1_000_000
        clicks = [
            Click(user=user, item=f"hidden-item-{n + k}", ts_ms=now_ms - 60_000 + n * 1000 + k, id=f"e{n}-{k}")
            for n, user in enumerate(USERS)
            for k in range(EACH)
        ]
        send_events(own, [*clicks, clicks[-1]])
        send(own, "events", [(USERS[0].encode(), b"no event")] * BAD)
        wait_for(worked)
        yield {role: read_page(at[role]) for role in ROLES}
    finally:
        supervisor.stop()


# --- metrics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_shown_by_the_roles_that_know_it(pages: Pages, name: str) -> None:
    assert name in SHOWN_BY, "say above which role shows it"
    described = next(iter(METRICS[name].describe()))
    for role in SHOWN_BY[name]:
        shown = pages[role].get(described.name)
        assert shown is not None, f"{role} does not show {name}"
        assert shown.samples, f"{role} has no value of {name}"
        assert (shown.documentation, shown.type) == (described.documentation, described.type)


def test_what_is_counted_has_happened(pages: Pages) -> None:
    ranker = pages["ranker"]
    assert value(ranker, telemetry.RECORDS, role="ranker") == GOOD + BAD + 1
    assert value(ranker, telemetry.DUPLICATES) == 1
    assert value(ranker, telemetry.REJECTS, reason_class="decode") == value(ranker, telemetry.REJECTS) == BAD
    assert value(ranker, telemetry.BAD_ITEMS) == BAD
    slates = value(ranker, telemetry.SLATES)
    assert len(USERS) <= slates <= GOOD
    assert value(ranker, telemetry.SLATES, degraded="true", scorer="rank_fusion") == slates, "nothing was trained"
    assert value(ranker, telemetry.EVENT_TO_SLATE_SECONDS) == slates
    assert value(ranker, telemetry.TRANSACTIONS, result="commit") == value(ranker, telemetry.TRANSACTION_SECONDS) > 0
    assert value(ranker, telemetry.MODEL_INFO) == 1
    assert value(ranker, telemetry.POLICY_INFO) == 1
    assert value(pages["materialiser"], telemetry.REDIS_WRITES) == slates
    for role in WORKERS:
        assert value(pages[role], telemetry.REBALANCES, kind="assigned") == 1
        assert value(pages[role], telemetry.RESTORE_SECONDS) > 0


def test_what_has_not_happened_yet_is_shown_too(pages: Pages) -> None:
    def shown(role: str, name: str, label: str) -> set[str]:
        return {s.labels[label] for s in pages[role][name].samples if s.name == f"{name}_total"}

    for role in WORKERS:
        assert shown(role, "slatecast_transactions", "result") == {"commit", "abort", "fatal"}
        assert shown(role, "slatecast_rebalances", "kind") == {"assigned", "revoked", "lost"}
        assert shown(role, "slatecast_rejects", "reason_class") == set(REASON_CLASSES)
    lesser = [s for s in pages["ranker"]["slatecast_slates"].samples if s.name == "slatecast_slates_total"]
    assert {s.labels["scorer"] for s in lesser if s.labels["degraded"] == "true"} == set(SCORERS)
    assert shown("materialiser", "slatecast_redis_writes", "result") == {"applied", "stale", "error"}


@pytest.mark.parametrize("role", ["ranker", "signals", "materialiser"])
def test_who_has_read_everything_does_not_lag(pages: Pages, role: str) -> None:
    assert value(pages[role], telemetry.LAG_RECORDS) == 0
    assert value(pages[role], telemetry.LAG_SECONDS) == 0


def test_names_say_the_unit_as_prometheus_wants_it(pages: Pages) -> None:
    ours = {name: metric for page in pages.values() for name, metric in page.items() if name.startswith("slatecast")}
    assert {next(iter(metric.describe())).name for metric in METRICS.values()} <= ours.keys()
    for name, metric in ours.items():
        if name.endswith("_created"):  # the client's own, when a counter began
            continue
        assert re.fullmatch(r"slatecast_[a-z]+(_[a-z]+)*", name)
        assert metric.documentation
        assert not re.search(r"_(ms|millis|minutes|hours|days|kb|mb|counter|gauge|histogram|count|sum)$", name)
        if metric.type == "counter":
            assert all(sample.name in (f"{name}_total", f"{name}_created") for sample in metric.samples)
        else:
            assert name.endswith(UNITS), name
            assert not name.endswith("_total")


def test_nothing_is_labelled_by_user_or_item(pages: Pages, port: int) -> None:
    for page in pages.values():
        samples = [sample for metric in page.values() for sample in metric.samples]
        assert not [s for s in samples if any("user" in label or "item" in label for label in s.labels)]
        assert not [s for s in samples if any("hidden" in each for each in s.labels.values())]
    for collector in METRICS.values():
        assert not set(collector._labelnames) & {"user", "item", "user_id", "item_id", "session", "query"}
    for n in range(len(ROLES)):
        assert "hidden" not in ask(port + n, "/metrics")[1]


def test_a_scrape_stays_small(pages: Pages) -> None:
    assert max(sum(len(metric.samples) for metric in page.values()) for page in pages.values()) < 300


def test_roles_have_ports_in_a_row_as_they_are_named(pages: Pages, port: int) -> None:
    for path in ("/livez", "/readyz"):
        answers = [ask(port + n, path) for n in range(len(ROLES))]
        assert [(status, json.loads(body)["role"]) for status, body in answers] == [(200, role) for role in ROLES]


# --- health ------------------------------------------------------------------------------------------------------------


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


WITH_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


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


def test_an_address_that_is_not_this_machines_is_one_clear_line(settings: Settings) -> None:
    own = msgspec.structs.replace(settings, metrics_port=9400, metrics_host="192.0.2.1")
    with pytest.raises(Unavailable) as said:
        run_role(own, "ranker", "0", Event())
    assert str(said.value) == "port 9400 of 192.0.2.1 for metrics: Cannot assign requested address; see metrics_host"


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
