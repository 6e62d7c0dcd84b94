"""Metrics as an operator meets them: over HTTP, of real roles that have worked on the real broker."""

import json
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator

import msgspec
import pytest
from prometheus_client import Counter, Gauge, Histogram, Metric
from scrape_helpers import ask, read_page, value
from stream_helpers import send, send_events, send_items

from models.ladder import SCORERS
from recsys.catalogue import Item
from recsys.errors import REASON_CLASSES
from recsys.events import Click
from streams import clients, telemetry, topics
from streams.roles import ROLES, Supervisor
from streams.settings import Settings

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
