"""Committed slates into Redis, where shops read them. Redis is a view: it may be wiped, and is made again.

One hash per user, `{prefix}slate:{user}` = {v: offset, body: the slate}. A write is a compare-and-set on the offset, so
nothing older ever wins. How far a partition is applied stands in the same Redis (`{prefix}applied:{partition}`), in
the same transaction as the data: a Redis that was wiped, or restored from an old copy, itself says where to go on. So
does the topic's own id (`{prefix}applied:topic`), since the offsets of one that was made again begin anew.
"""

import logging
import threading
import time
from collections.abc import Sequence

import redis
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from recsys.errors import Unavailable
from streams import clients
from streams.lag import LagMeter
from streams.records import Record, read_record
from streams.settings import Settings
from streams.state import begin_offsets, topic_id
from streams.telemetry import REDIS_WRITES, Health
from streams.transactions import Stopped

log = logging.getLogger(__name__)

TTL_MS = 28 * 86_400_000  # as long as the topic keeps slates
CHECK_S = 1.0  # how soon a wipe is noticed when nothing else happens
BATCH = 500  # 44,000 writes/s in pipelines of 500 (measured)

# KEYS[1] user's hash; ARGV: offset, body ('' = erased, leaving the offset as a stub against resurrection), ttl
COMPARE_AND_SET = """
local v = redis.call('HGET', KEYS[1], 'v')
if v and tonumber(v) >= tonumber(ARGV[1]) then return 0 end
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], 'body')
  redis.call('HSET', KEYS[1], 'v', ARGV[1])
else
  redis.call('HSET', KEYS[1], 'v', ARGV[1], 'body', ARGV[2])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""


def slate_key(settings: Settings, user: str) -> str:
    """Where a user's newest slate stands."""
    return f"{settings.prefix}slate:{user}"


class Materialiser:
    """Reads slates, writes Redis. Not thread-safe: `run` owns it."""

    def __init__(self, settings: Settings, instance: str, health: Health | None = None) -> None:
        self._settings = settings
        self._health = health or Health("materialiser")
        for result in ("applied", "stale", "error"):
            REDIS_WRITES.labels(result)  # an alarm needs the 0 before the first
        self._topic = settings.prefix + "slates"
        self._redis = clients.redis_client(settings)
        self._consumer = clients.consumer(settings, f"{settings.prefix}materialiser", f"materialiser-{instance}")
        self._lag = LagMeter("materialiser", self._consumer, self._topic)
        self._admin = clients.admin(settings)
        self._stop = threading.Event()
        self._next: dict[int, int] = {}
        self._topic_id = ""
        self._checked_s = 0.0
        self.applied = self.stale = 0

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        self._stop = stop
        self._consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked)
        try:
            self._health.waiting_for = "partitions"
            while not stop.is_set():
                self.step()
                self._health.beat()
        except KafkaException as error:
            raise clients.broken(error.args[0]) from error
        finally:
            self._consumer.close()
            self._redis.close()

    def step(self) -> None:
        """One batch; when Redis does not answer, the batch is read again later."""
        records = []
        for message in self._consumer.consume(BATCH, 0.05):
            error = message.error()
            if error is not None:
                raise self._ended_by(error)
            record = read_record(message)
            if record.partition in self._next:
                records.append(record)
        try:
            if records:
                self._write(records)
            self._lag.show(self._next, records)
            if time.monotonic() - self._checked_s > CHECK_S:
                self._follow_redis()
                if self._health.waiting_for == "Redis":
                    self._health.waiting_for = ""
        except redis.RedisError as error:
            log.warning("materialiser: Redis does not answer (%s), trying again", type(error).__name__)
            REDIS_WRITES.labels("error").inc()
            self._health.waiting_for = "Redis"
            self._rewind(self._next)
            self._stop.wait(0.2)  # slates go on being published; only this view waits

    def _ended_by(self, error: KafkaError) -> Exception:
        if clients.is_fenced(error):
            return Stopped(f"materialiser: {clients.explain(error)}")
        if error.name() == "_AUTO_OFFSET_RESET":
            return self._made_again("later lists than")
        return clients.broken(error)

    def _made_again(self, lists: str) -> Unavailable:
        return Unavailable(
            f"Redis knows {lists} {self._topic} has: the topic was made again. "
            f"Delete the keys {self._settings.prefix}* in Redis; they are written anew"
        )

    def _write(self, records: Sequence[Record]) -> None:
        """All of a batch or, where Redis is no longer where we left it, nothing."""
        ends = {record.partition: record.offset + 1 for record in records}
        with self._redis.pipeline(transaction=True) as pipe:
            # From here on a wipe fails the transaction, and the batch is read again.
            pipe.watch(*map(self._applied_key, ends))  # type: ignore[no-untyped-call]
            if self._go_back(self._positions(pipe, list(ends))):
                return
            pipe.multi()
            for record in records:
                key = slate_key(self._settings, (record.key or b"").decode())
                pipe.eval(COMPARE_AND_SET, 1, key, record.offset, record.value or b"", TTL_MS)
            for partition, end in ends.items():
                pipe.set(self._applied_key(partition), end)
            pipe.set(self._applied_key("topic"), self._topic_id)
            written = pipe.execute()[: len(records)]
        self._next.update(ends)
        self.applied += sum(written)
        self.stale += len(written) - sum(written)
        REDIS_WRITES.labels("applied").inc(sum(written))
        REDIS_WRITES.labels("stale").inc(len(written) - sum(written))

    def _follow_redis(self) -> None:
        """Notice a wipe even when there is nothing to write."""
        self._checked_s = time.monotonic()
        self._go_back(self._positions(self._redis, list(self._next)))

    def _go_back(self, positions: dict[int, int]) -> bool:
        """To where Redis says it is, if that is before where we are: it was wiped, or restored from an older copy."""
        behind = {p: at for p, at in positions.items() if at < self._next[p]}
        if behind:
            log.warning("materialiser: Redis has lost what it had, rebuilding partitions %s", sorted(behind))
            self._next.update(behind)
            self._rewind(self._next)
        return bool(behind)

    def _positions(self, client: redis.Redis, partitions: Sequence[int]) -> dict[int, int]:
        if not partitions:
            return {}
        values = client.mget([self._applied_key(p) for p in partitions])
        return {p: int(value or 0) for p, value in zip(partitions, values, strict=True)}

    def _rewind(self, to: dict[int, int]) -> None:
        for tp in self._where(to):
            self._consumer.seek(tp)

    def _where(self, to: dict[int, int]) -> list[TopicPartition]:
        """Not before what the topic still has."""
        oldest = begin_offsets(self._admin, self._topic, list(to))
        return [TopicPartition(self._topic, p, max(oldest[p], offset)) for p, offset in to.items()]

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Go on where Redis says; while it does not answer, wait."""
        numbers = [tp.partition for tp in partitions]
        while not self._stop.is_set():
            try:
                self._check_topic()
                self._next = self._positions(self._redis, numbers)
                consumer.assign(self._where(self._next))
                self._health.waiting_for = ""
                return
            except redis.RedisError as error:
                log.warning("materialiser: Redis does not answer (%s), waiting", type(error).__name__)
                self._health.waiting_for = "Redis"
                self._health.beat()
                self._stop.wait(0.5)
            except KafkaException as error:  # through the client's callback it would become what no `except` catches
                raise clients.broken(error.args[0]) from error
        consumer.assign([])  # else the client would assign them itself, find no offset, and call that an error

    def _check_topic(self) -> None:
        """Lists of a topic before this one would count as the newer: all 30 users of a test kept theirs, with no word."""
        self._topic_id = topic_id(self._admin, self._topic)
        if self._redis.get(self._applied_key("topic")) not in (None, self._topic_id.encode()):
            raise self._made_again("other lists than")

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._health.waiting_for = "partitions"
        for tp in partitions:
            self._next.pop(tp.partition, None)
        self._lag.forget(tp.partition for tp in partitions)

    def _applied_key(self, what: int | str) -> str:
        return f"{self._settings.prefix}applied:{what}"
