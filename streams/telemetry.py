"""Every metric that Slatecast exports, in Prometheus' words, and the port on which a role shows them and its health.

`/metrics`; `/livez`: the loop has made progress lately, whatever Kafka and Redis do (an outage must not restart a
fleet); `/readyz`: restored, assigned or standing by, and able to do its work. No metric is labelled by user or item.
Updated by the worker, the ranker and the materialiser; served by `run_role`.
"""

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec
from prometheus_client import Counter, Gauge, Histogram, make_wsgi_app

from recsys.errors import Unavailable

WAIT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# The worker's own watchdog ends it after 25 s: later than this there is no loop that could make progress.
LIVE_S = 30.0

RECORDS = Counter("slatecast_records", "Input records processed, those put aside included", ["role"])
DUPLICATES = Counter("slatecast_duplicates", "Events that were known already")
REJECTS = Counter("slatecast_rejects", "Records put aside, by class", ["role", "reason_class"])
BAD_ITEMS = Counter("slatecast_bad_items", "Records of the topic items that are no items, read since the start")
SLATES = Counter(
    "slatecast_slates", "Lists published, by scorer, and whether it was a lesser one", ["scorer", "degraded"]
)
EVENT_TO_SLATE_SECONDS = Histogram(
    "slatecast_event_to_slate_seconds",
    "From the event's arrival at the broker to its committed list",
    buckets=WAIT_BUCKETS_S,
)
TRANSACTIONS = Counter("slatecast_transactions", "Transactions by result: commit, abort, fatal", ["role", "result"])
TRANSACTION_SECONDS = Histogram(
    "slatecast_transaction_seconds", "From begin to commit", ["role"], buckets=WAIT_BUCKETS_S
)
BATCH_RECORDS = Gauge("slatecast_batch_limit_records", "Records that the next batch may have", ["role"])
LAG_RECORDS = Gauge("slatecast_lag_records", "Records that are not processed yet", ["role", "partition"])
LAG_SECONDS = Gauge(
    "slatecast_lag_seconds", "Age of the newest processed record while others wait", ["role", "partition"]
)
COMMITTED_OFFSET = Gauge("slatecast_committed_offset", "Next offset of a partition", ["role", "partition"])
REBALANCES = Counter("slatecast_rebalances", "Partitions given, taken and lost", ["role", "kind"])
RESTORE_SECONDS = Gauge("slatecast_restore_seconds", "How long the last restore took", ["role"])
RESTORE_RECORDS = Counter("slatecast_restore_records", "Changelog records read by restores", ["role"])
REDIS_WRITES = Counter("slatecast_redis_writes", "Lists written to Redis: applied, stale, error", ["result"])
LOOP_TIMESTAMP = Gauge("slatecast_loop_timestamp_seconds", "When a role's loop last made progress", ["role"])
RELEASES = Counter("slatecast_releases", "Releases that were made champion: swapped in, or refused", ["result"])
for _result in ("swapped", "refused"):
    RELEASES.labels(_result)  # an alarm needs the 0 before the first
MODEL_INFO = Gauge("slatecast_model_info", "1 for the release that serves", ["release", "provider"])
POLICIES = Counter("slatecast_policies", "Policies published on the topic control: taken up, or refused", ["result"])
for _result in ("applied", "refused"):
    POLICIES.labels(_result)
POLICY_INFO = Gauge("slatecast_policy_info", "1 for the policy by which lists are made", ["digest"])


class Health:
    """What one role's process says of itself. Written by its loop, read by the port's thread."""

    def __init__(self, role: str, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._role, self._clock_s = role, clock_s
        self._beat_s = clock_s()
        self.waiting_for = "its start"  # empty: ready

    def beat(self) -> None:
        """The loop has come round."""
        self._beat_s = self._clock_s()
        LOOP_TIMESTAMP.labels(self._role).set_to_current_time()

    def begin(self, what: str, most_s: float) -> None:
        """Something long in which the loop cannot come round, and for which it has so much time."""
        self.waiting_for, self._beat_s = what, self._clock_s() + most_s

    def live(self) -> tuple[bool, dict[str, Any]]:
        """Whether the loop makes progress."""
        age_s = max(0.0, self._clock_s() - self._beat_s)
        return age_s < LIVE_S, {"role": self._role, "progress_age_s": round(age_s, 3)}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether the role can do its work."""
        return not self.waiting_for, {"role": self._role, "waiting_for": self.waiting_for}


class _Quiet(WSGIRequestHandler):
    timeout = 10.0  # seconds: else each client that says nothing would keep a thread for ever

    def handle(self) -> None:
        """One request. Who says nothing, or hangs up, as load balancers do to see who listens, is no news either."""
        with contextlib.suppress(TimeoutError, ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """A scrape every few seconds is no news."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


def serve(port: int, health: Health, host: str) -> _Server:
    """Show metrics and health on a port until `shutdown`. Port 0 takes a free one. Raises Unavailable.

    host: a name or an address of this machine, IPv6 too; empty: all addresses of IPv4.
    """
    metrics = make_wsgi_app()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        checks = {"/livez": health.live, "/readyz": health.ready}
        path = environ["PATH_INFO"]
        if path == "/metrics":
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        if path not in checks:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/metrics /livez /readyz\n"]
        good, said = checks[path]()
        start_response("200 OK" if good else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [msgspec.json.encode(said) + b"\n"]

    try:
        kind = _Server6 if ":" in host else _Server
        server = make_server(host, port, app, server_class=kind, handler_class=_Quiet)
    except OSError as error:
        elsewhere = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        remedy = "see metrics_host" if elsewhere else "choose another with --metrics-port"
        where = f"port {port} of {host}" if host else f"port {port}"
        raise Unavailable(f"{where} for metrics: {error.strerror}; {remedy}") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
