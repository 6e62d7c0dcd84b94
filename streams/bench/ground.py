"""What a benchmark stands on: topics and a folder of its own, which go when it ends, and engines in processes.

Called by the benchmarks. An engine is a module that reads its order from stdin, works, and prints an answer.
"""

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from confluent_kafka import KafkaException, Producer

from recsys.errors import Unavailable
from streams import clients, topics
from streams.settings import Settings

log = logging.getLogger(__name__)

ENGINE_LIMIT_S = 300.0
ENGINE_CORE = 1  # the broker has the others (cli/bench.py)
T = TypeVar("T")


@contextlib.contextmanager
def ground(settings: Settings, name: str) -> Iterator[Settings]:
    """Settings under a prefix and a home of their own, the topics being there."""
    admin = clients.check_broker(settings)
    home = Path(settings.home)
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=home) as folder:  # beside the real state, on its disk
        own = msgspec.structs.replace(settings, prefix=f"bench-{os.getpid()}-{name}.", home=folder)
        topics.apply(admin, own)
        try:
            yield own
        finally:
            gone = admin.delete_topics([topic.name for topic in topics.plan(own)])
            try:
                for future in gone.values():
                    future.result(30)
            except (KafkaException, TimeoutError) as error:  # what the block itself met is the better news
                log.warning("topics %s* are left behind: %s", own.prefix, error)


def produce(settings: Settings, topic: str, pairs: Iterable[tuple[str, bytes]], together: int = 0) -> None:
    """Keyed records onto a topic; in transactions of `together`, or in none. Raises Unavailable if any is not there."""
    producer = clients.producer(settings, f"{settings.prefix}ground.0" if together else None)
    if together:
        producer.init_transactions(30)
    for n, (key, value) in enumerate(pairs):
        if together and n % together == 0:
            if n:
                producer.commit_transaction(60)
            producer.begin_transaction()
        _send(producer, settings.prefix + topic, key, value)
    if together:
        producer.commit_transaction(60)
    elif producer.flush(60):
        raise Unavailable(f"{topic}: the broker takes nothing; look at its log")


def _send(producer: Producer, topic: str, key: str, value: bytes) -> None:
    while True:
        try:
            producer.produce(topic, value, key.encode())
        except BufferError:
            producer.poll(0.1)
        else:
            return


def command(module: str) -> Sequence[str]:
    """The command line of an engine."""
    return [sys.executable, "-P", "-m", module]


def environ() -> dict[str, str]:
    """Its environment: one BLAS thread, as the command line sets it."""
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1"}


def ask(module: str, order: msgspec.Struct, answer: type[T]) -> T:
    """Run an engine to its end; what it says. Raises Unavailable if it fails."""
    done = subprocess.run(
        command(module),
        input=msgspec.json.encode(order) + b"\n",
        stdout=subprocess.PIPE,
        env=environ(),
        timeout=ENGINE_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise Unavailable(f"{module} ended with code {done.returncode}; what it said stands above")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=answer)


def pin(core: int) -> None:
    """Keep this process to one core, if the system can; -1: leave it."""
    if core >= 0 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core} & os.sched_getaffinity(0) or os.sched_getaffinity(0))
