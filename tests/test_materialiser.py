"""Slates into Redis: nothing older ever wins, and whatever happens to Redis, it ends as the topic says."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import redis
from stream_helpers import send

from recsys.errors import Unavailable
from streams import clients, topics
from streams.embedded import Embedded
from streams.materialiser import COMPARE_AND_SET, TTL_MS, Materialiser, slate_key
from streams.settings import Settings
from streams.signals import SignalsTask
from streams.telemetry import Health
from streams.transactions import Stopped
from streams.worker import Worker

Wait = Callable[..., None]
USERS = [f"u{n}" for n in range(30)]


class Running(Materialiser):
    """A materialiser in a thread."""

    def __init__(self, settings: Settings) -> None:
        self.health = Health("materialiser")
        super().__init__(settings, "0", self.health)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(self.stop,), daemon=True)
        self.thread.start()

    def end(self, limit_s: float = 20.0) -> None:
        self.stop.set()
        self.thread.join(limit_s)
        assert not self.thread.is_alive()


@pytest.fixture
def start() -> Iterator[Callable[[Settings], Running]]:
    """Start a materialiser; all end with the test."""
    running: list[Running] = []

    def begin(settings: Settings) -> Running:
        running.append(Running(settings))
        return running[-1]

    yield begin
    for materialiser in running:
        materialiser.end()


@pytest.fixture
def view(settings: Settings) -> Iterator[redis.Redis]:
    """Redis, where the materialiser writes."""
    client = clients.redis_client(settings)
    yield client
    client.close()


Start = Callable[[Settings], Running]


def publish(settings: Settings, body: bytes | None, users: list[str] = USERS) -> None:
    send(settings, "slates", [(user.encode(), body) for user in users])


def bodies(settings: Settings, client: redis.Redis, users: list[str] = USERS) -> set[bytes | None]:
    """The different bodies that users have now."""
    try:
        return {client.hget(slate_key(settings, user), "body") for user in users}
    except redis.RedisError:
        return set()


def keys_of(settings: Settings, client: redis.Redis) -> list[bytes]:
    return list(client.scan_iter(f"{settings.prefix}*", count=1000))


def test_only_a_later_offset_is_written(view: redis.Redis, settings: Settings) -> None:
    key = slate_key(settings, "u1")
    written = [view.eval(COMPARE_AND_SET, 1, key, at, b"at %d" % at, TTL_MS) for at in (5, 5, 3, 6)]
    assert written == [1, 0, 0, 1]
    assert view.hgetall(key) == {b"v": b"6", b"body": b"at 6"}
    assert TTL_MS - 60_000 < view.pttl(key) <= TTL_MS


def test_large_offsets_are_compared_as_numbers(view: redis.Redis, settings: Settings) -> None:
    key = slate_key(settings, "u1")
    assert [view.eval(COMPARE_AND_SET, 1, key, at, b"x", TTL_MS) for at in (9, 10, 2**53 - 1, 2**53 - 2)] == [
        1,
        1,
        1,
        0,
    ]


def test_an_erased_slate_leaves_a_stub_that_nothing_older_brings_back(view: redis.Redis, settings: Settings) -> None:
    key = slate_key(settings, "u1")
    steps = ((5, b"list"), (7, b""), (6, b"older"), (7, b"same"))
    assert [view.eval(COMPARE_AND_SET, 1, key, at, body, TTL_MS) for at, body in steps] == [1, 1, 0, 0]
    assert view.hgetall(key) == {b"v": b"7"}
    assert view.pttl(key) > 0
    assert view.eval(COMPARE_AND_SET, 1, key, 8, b"newer", TTL_MS) == 1
    assert view.hget(key, "body") == b"newer"


def test_the_newest_slate_of_each_user_is_in_redis(
    settings: Settings, view: redis.Redis, start: Start, wait_for: Wait
) -> None:
    for body in (b"1", b"2", b"3"):
        publish(settings, body)
    start(settings)
    wait_for(lambda: bodies(settings, view) == {b"3"})
    publish(settings, None, ["u1"])
    wait_for(lambda: view.hgetall(slate_key(settings, "u1")).keys() == {b"v"})
    publish(settings, b"4", ["u1"])
    wait_for(lambda: view.hget(slate_key(settings, "u1"), "body") == b"4")


def test_one_that_is_replaced_ends_as_fenced_and_says_by_whom(settings: Settings, start: Start) -> None:
    successors: list[Running] = []

    class First(Materialiser):
        def step(self) -> None:
            super().step()
            if self._next and not successors:
                successors.append(start(settings))

    with pytest.raises(Stopped, match="another process has this --instance"):
        First(msgspec.structs.replace(settings, kafka={"heartbeat.interval.ms": 200}), "0").run(threading.Event())


def test_a_restart_goes_on_where_redis_says(
    settings: Settings, view: redis.Redis, start: Start, wait_for: Wait
) -> None:
    publish(settings, b"1")
    first = start(settings)
    wait_for(lambda: bodies(settings, view) == {b"1"})
    first.end()
    publish(settings, b"2")
    second = start(settings)
    wait_for(lambda: bodies(settings, view) == {b"2"})
    assert (second.applied, second.stale) == (len(USERS), 0)


def test_a_wiped_redis_is_made_again(settings: Settings, view: redis.Redis, start: Start, wait_for: Wait) -> None:
    publish(settings, b"1")
    publish(settings, None, ["u1"])
    start(settings)
    # Every user, the erased one as a stub: a user who is not written yet has no body either.
    wait_for(lambda: bodies(settings, view) == {b"1", None} and all(view.exists(slate_key(settings, u)) for u in USERS))
    before = {key: view.hgetall(key) for key in keys_of(settings, view) if b"slate:" in key}
    view.delete(*keys_of(settings, view))
    wait_for(lambda: {key: view.hgetall(key) for key in keys_of(settings, view) if b"slate:" in key} == before)


def test_a_wipe_is_noticed_though_slates_go_on_being_written(
    settings: Settings, view: redis.Redis, start: Start, wait_for: Wait
) -> None:
    publish(settings, b"1")
    materialiser = start(settings)
    wait_for(lambda: bodies(settings, view) == {b"1"})
    for body in (b"2", b"3", b"4"):
        wait_for(lambda: time.monotonic() - materialiser._checked_s < 0.5)  # not about to look by itself
        view.delete(*keys_of(settings, view))
        publish(settings, body, ["u1"])
        wait_for(lambda body=body: bodies(settings, view) == {b"1", body})


def test_a_redis_restored_from_an_older_copy_catches_up(
    settings: Settings, view: redis.Redis, start: Start, wait_for: Wait
) -> None:
    publish(settings, b"1")
    start(settings)
    wait_for(lambda: bodies(settings, view) == {b"1"})
    copy = {key: view.dump(key) for key in keys_of(settings, view)}
    publish(settings, b"2")
    publish(settings, None, ["u1"])
    wait_for(lambda: bodies(settings, view) == {b"2", None})
    with view.pipeline() as pipe:  # as a replica that was promoted too early would answer
        for key, value in copy.items():
            pipe.restore(key, 0, value, replace=True)
        pipe.execute()
    assert bodies(settings, view) == {b"1"}
    wait_for(lambda: bodies(settings, view) == {b"2", None})
    assert view.hgetall(slate_key(settings, "u1")).keys() == {b"v"}


def test_a_redis_that_knows_more_than_the_topic_is_said_to_be_of_another(settings: Settings, view: redis.Redis) -> None:
    view.set(f"{settings.prefix}applied:0", 50)
    with pytest.raises(Unavailable, match=r"slates has: the topic was made again\. Delete the keys "):
        Materialiser(settings, "0").run(threading.Event())


def test_lists_of_a_topic_that_was_made_again_are_not_taken_for_older_ones(
    settings: Settings, view: redis.Redis, start: Start, wait_for: Wait
) -> None:
    class Once(Materialiser):
        def step(self) -> None:
            super().step()
            if self._next:
                self._stop.set()

    publish(settings, b"old")
    first = start(settings)
    wait_for(lambda: bodies(settings, view) == {b"old"})
    first.end()
    admin, topic = clients.admin(settings), settings.prefix + "slates"
    admin.delete_topics([topic])[topic].result()
    topics.apply(admin, settings)
    publish(settings, b"new")
    publish(settings, b"new", [f"another{n}" for n in range(200)])  # so that the offsets that Redis knows are there
    with pytest.raises(
        Unavailable, match=r"other lists than .*slates has: the topic was made again\. Delete the keys "
    ):
        Once(settings, "0").run(threading.Event())
    view.delete(*keys_of(settings, view))
    start(settings)
    wait_for(lambda: bodies(settings, view) == {b"new"})


# --- a Redis that comes and goes ---------------------------------------------------------------------------------------


@pytest.fixture
def own(settings: Settings, home: Path) -> Iterator[tuple[Embedded, Settings]]:
    """A Valkey of the test's own, and settings that name it."""
    with Embedded(home, kafka=False) as running:
        yield running, msgspec.structs.replace(settings, redis=running.redis_url)


def test_a_redis_that_was_down_for_a_while_misses_nothing(
    own: tuple[Embedded, Settings], start: Start, wait_for: Wait
) -> None:
    running, settings = own
    client = clients.redis_client(settings)
    materialiser = start(settings)
    publish(settings, b"1")
    wait_for(lambda: bodies(settings, client) == {b"1"})
    running.kill("valkey")
    publish(settings, b"2", USERS[:10])
    publish(settings, b"3", USERS[10:20])
    assert materialiser.thread.is_alive()
    running.start_valkey()
    wait_for(lambda: [bodies(settings, client, USERS[n : n + 10]) for n in (0, 10, 20)] == [{b"2"}, {b"3"}, {b"1"}])
    publish(settings, b"4")
    wait_for(lambda: bodies(settings, client) == {b"4"})
    client.close()


def test_a_redis_that_is_down_at_the_start_is_waited_for(
    own: tuple[Embedded, Settings], start: Start, wait_for: Wait
) -> None:
    running, settings = own
    running.kill("valkey")
    publish(settings, b"1")
    start(settings)
    running.start_valkey()
    client = clients.redis_client(settings)
    wait_for(lambda: bodies(settings, client) == {b"1"})
    client.close()


@pytest.mark.parametrize("before", ["it started", "it went on"])
def test_a_materialiser_whose_redis_is_down_ends_within_five_seconds(
    own: tuple[Embedded, Settings], start: Start, wait_for: Wait, before: str, caplog: pytest.LogCaptureFixture
) -> None:
    running, settings = own
    client = clients.redis_client(settings)
    if before == "it started":
        running.kill("valkey")
    materialiser = start(settings)
    if before == "it went on":
        publish(settings, b"1")
        wait_for(lambda: bodies(settings, client) == {b"1"})
        running.kill("valkey")
    publish(settings, b"2")
    wait_for(lambda: "Redis does not answer" in caplog.text)
    materialiser.end(5)
    client.close()


def test_a_materialiser_is_ready_while_it_is_in_its_group_and_its_redis_answers(
    own: tuple[Embedded, Settings], start: Start, wait_for: Wait
) -> None:
    running, settings = own
    health = Health("materialiser")
    Materialiser(settings, "0", health).step()
    assert not health.ready()[0], "it has not even begun"
    view = start(settings)
    wait_for(lambda: view.health.ready()[0])
    running.kill("valkey")
    wait_for(lambda: view.health.waiting_for == "Redis")
    running.start_valkey()
    wait_for(lambda: view.health.ready()[0])


def test_who_fell_out_of_its_group_is_not_ready_until_it_is_back(home: Path, start: Start, wait_for: Wait) -> None:
    with Embedded(home) as running:
        soon: dict[str, str | int | float | bool] = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}
        settings = Settings(bootstrap=running.bootstrap, redis=running.redis_url, home=str(running.folder), kafka=soon)
        topics.apply(clients.check_broker(settings), settings)
        view, health, stop = start(settings), Health("signals"), threading.Event()
        worker = Worker(settings, "signals", SignalsTask(settings), "0", health)
        working = threading.Thread(target=worker.run, args=(stop,), daemon=True)
        working.start()
        wait_for(lambda: view.health.ready()[0] and health.ready()[0])
        running.kill("kafka")
        wait_for(lambda: view.health.waiting_for == health.waiting_for == "partitions")
        assert view.health.live()[0]
        assert health.live()[0]
        running.start_broker()
        wait_for(lambda: view.health.ready()[0] and health.ready()[0])
        stop.set()
        working.join(20)
        view.end()
