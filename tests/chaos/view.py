"""Redis is killed, stopped, restored from an old copy and wiped, while lists are published: the view comes back.

Publishing does not wait for Redis; afterwards every user has their last committed list there, and never an older one
than they had.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import redis
from chaos.arena import Arena, Flow, Row, arena, attempt, make_events, wait_for
from confluent_kafka import TopicPartition

from recsys.events import Click
from streams import clients
from streams.embedded import Embedded
from streams.materialiser import slate_key
from streams.records import Record, is_end, read_record

PER_S = 50.0  # events
GAP_S, CONVERGED_S, REBUILT_S = 1.0, 10.0, 5.0
SEED = 19


def rows(services: Embedded, folder: Path, quick: bool) -> list[Row]:
    """One row. Valkey runs afterwards, empty but for this tenant."""
    size = {"users": 300, "down_s": 2.0, "slack": 3.0} if quick else {"users": 2000, "down_s": 30.0, "slack": 1.0}
    return [attempt("redis", lambda: run(services, folder, **size))]  # type: ignore[arg-type]


def run(services: Embedded, folder: Path, users: int, down_s: float, slack: float) -> Row:
    """slack: how much longer all may take on a machine that is busy with a whole suite."""
    with (
        arena(services, folder, "view") as ring,
        contextlib.closing(Published(ring)) as published,
        contextlib.closing(View(ring, published)) as view,
    ):
        ring.start("ranker")
        ring.start("materialiser")
        made = make_events(users + 100_000, users, SEED)
        first = [Click(user=f"u{n}", item="i1", ts_ms=made[n].ts_ms, id=f"first-{n}") for n in range(users)]
        ring.send(first)
        wait_for(lambda: len(published.last) == users, 120, "everybody has a list")
        view.converge()
        flow, flowing_ms = Flow(ring, made[users:], PER_S), time.time() * 1000
        took_s = dict[str, float]()
        try:
            view.watch(1)

            services.kill("valkey")
            view.watch(down_s)
            missed = view.missed
            services.start_valkey()
            took_s["converged_s"] = view.converge(wiped=True)

            os.kill(services.pids["valkey"], SIGSTOP)
            view.watch(down_s / 2)
            stopped = view.missed - missed
            os.kill(services.pids["valkey"], SIGCONT)
            took_s["converged_after_stop_s"] = view.converge()

            copy = view.copy()
            view.watch(1)
            older = view.put_back(copy)
            took_s["converged_after_old_copy_s"] = view.converge(wiped=True)

            emptied = int(view.wipe())
            took_s["rebuilt_s"] = view.converge(wiped=True)
        finally:
            os.kill(services.pids["valkey"], SIGCONT)
            events = flow.stop()
        flowed_ms = time.time() * 1000
        wait_for(lambda: not ring.behind(), 60, "all is processed")
        lists = len(ring.read("slates"))
        wait_for(lambda: len(published.times_ms) == lists, 60, "the subscriber has read them")
        emptied += view.wipe()
        took_s["rebuilt_in_silence_s"] = view.converge(wiped=True)
        wrong, gap_s = view.wrong(), published.gap_s(flowing_ms, flowed_ms)
        limits_s = {name: REBUILT_S if name.startswith("rebuilt") else CONVERGED_S for name in took_s}
        happened = [missed > 0, stopped > 0, older > 0, emptied == 2]
        return ring.row(
            "redis",
            sum(happened),
            [*first, *events],
            passed=all(happened)
            and gap_s <= GAP_S * slack
            and all(took_s[name] <= limit_s * slack for name, limit_s in limits_s.items())
            and not (wrong or view.stale)
            and all(process.poll() is None for process in ring.processes.values()),
            publish_gap_s=round(gap_s, 2),
            **took_s,
            users=users,
            lists=lists,
            unlike_the_last_list=wrong,
            older_than_before=view.stale,
        )


class Published:
    """What a subscriber has of the slates: each user's last one, and when each was made."""

    def __init__(self, ring: Arena) -> None:
        self.last: dict[str, Record] = {}
        self.times_ms: list[int] = []
        self._reader, topic = clients.reader(ring.settings), f"{ring.settings.prefix}slates"
        self._reader.assign([TopicPartition(topic, p, 0) for p in range(ring.settings.partitions)])
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Read no more."""
        self._over.set()
        self._thread.join()
        self._reader.close()

    def gap_s(self, begin_ms: float, end_ms: float) -> float:
        """The longest time without a list in a span."""
        times_ms = [begin_ms, *sorted(t for t in self.times_ms if begin_ms < t < end_ms), end_ms]
        return max(later - earlier for earlier, later in zip(times_ms, times_ms[1:], strict=False)) / 1000

    def _read(self) -> None:
        while not self._over.is_set():
            for message in self._reader.consume(500, 0.05):
                error = message.error()
                if error is None:
                    record = read_record(message)
                    self.last[(record.key or b"").decode()] = record
                    self.times_ms.append(record.arrived_ms)
                else:
                    assert is_end(error), error


class View:
    """What shops see in Redis, looked at again and again."""

    def __init__(self, ring: Arena, published: Published) -> None:
        self._ring, self._published = ring, published
        self._redis = redis.Redis.from_url(ring.settings.redis, socket_timeout=0.5, socket_connect_timeout=0.5)
        self._seen: dict[str, int] = {}
        self.missed = 0  # looks at a Redis that did not answer
        self.stale = 0  # users who had a newer list before

    def close(self) -> None:
        """Look no more."""
        self._redis.close()

    def watch(self, duration_s: float) -> None:
        """Look for a while."""
        until_s = time.monotonic() + duration_s
        while time.monotonic() < until_s:
            self._look()
            time.sleep(0.1)

    def converge(self, *, wiped: bool = False) -> float:
        """How long it takes from now until every list that is committed now, or a newer one, is there."""
        if wiped:
            self._seen = {}
        wanted = {user: record.offset for user, record in self._published.last.items()}

        def there() -> bool:
            found = self._look()
            return all(found.get(user, -1) >= offset for user, offset in wanted.items())

        return round(wait_for(there, 60, "the view has converged"), 2)

    def wrong(self) -> int:
        """Users whose list in Redis is not their last one. Nothing may be published meanwhile."""
        last = dict(self._published.last)
        found = self._ask(lambda pipe, key: pipe.hgetall(key), list(last))
        wanted = [{b"v": b"%d" % record.offset, b"body": record.value or b""} for record in last.values()]
        return sum(one != other for one, other in zip(found, wanted, strict=True))

    def copy(self) -> list[tuple[bytes, bytes]]:
        """All that is there, as a backup has it."""
        keys = sorted(self._redis.scan_iter(f"{self._ring.settings.prefix}*", 1000))
        with self._redis.pipeline(transaction=True) as pipe:
            for key in keys:
                pipe.dump(key)
            return list(zip(keys, pipe.execute(), strict=True))

    def put_back(self, copy: list[tuple[bytes, bytes]]) -> int:
        """Restore a copy; how many users then have an older list than before.

        Read in the same transaction: ten milliseconds later the view may be whole again.
        """
        before, self._seen = self._seen, {}
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.flushall()
            for key, dumped in copy:
                pipe.restore(key, 0, dumped)
            for user in before:
                pipe.hget(slate_key(self._ring.settings, user), "v")
            after = pipe.execute()[1 + len(copy) :]
        return sum(int(value or -1) < offset for value, offset in zip(after, before.values(), strict=True))

    def wipe(self) -> bool:
        """FLUSHALL; whether it is empty."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.flushall()
            pipe.dbsize()
            return bool(pipe.execute()[1] == 0)

    def _look(self) -> dict[str, int]:
        """The offset of every user's list; nothing while Redis does not answer."""
        users = list(self._published.last)
        try:
            values = self._ask(lambda pipe, key: pipe.hget(key, "v"), users)
        except redis.RedisError:
            self.missed += 1
            return {}
        found = {user: int(value) for user, value in zip(users, values, strict=True) if value is not None}
        self.stale += sum(found.get(user, -1) < offset for user, offset in self._seen.items())
        self._seen = found
        return found

    def _ask(self, one: Callable[["redis.client.Pipeline", str], object], users: list[str]) -> list[Any]:
        with self._redis.pipeline(transaction=False) as pipe:
            for user in users:
                one(pipe, slate_key(self._ring.settings, user))
            return list(pipe.execute())
