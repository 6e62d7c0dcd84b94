"""The same work in Faust: the events topic in, one profile per user in a Table, its changelog out. At least once.

A peer, started as it would be by its users (default transport, memory store, one worker); decoding and profiles are
our functions, so that only the engines differ. Reads a Run from stdin, prints what it measured.
"""

import os
import sys
import tempfile
from typing import Any

import faust
import msgspec

from recsys.events import decode_event, event_hash
from recsys.profiles import EMPTY, apply, decode_profile, encode_profile
from streams.bench.engines import Clock, Run


def main() -> None:
    """Work until every event was processed, then leave at once: closing a Faust worker takes seconds."""
    run = msgspec.json.decode(sys.stdin.buffer.readline(), type=Run)
    if run.core >= 0 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {run.core})
    stdout = os.dup(1)
    app = faust.App(
        f"{run.settings.prefix}faust",
        broker=f"kafka://{run.settings.bootstrap}",
        store="memory://",
        topic_partitions=run.settings.partitions,
        table_standby_replicas=0,
        web_enabled=False,
        key_serializer="raw",
        value_serializer="raw",
        datadir=tempfile.mkdtemp(),
        consumer_auto_offset_reset="earliest",
    )
    events = app.topic(f"{run.settings.prefix}events", value_serializer="raw", key_serializer="raw")
    table = app.Table("profiles", key_type=bytes, value_type=bytes, partitions=run.settings.partitions)
    clock, done = Clock(), 0

    @app.agent(events)
    async def profile(stream: Any) -> None:
        nonlocal done
        async for key, data in stream.items():
            event = decode_event(data)
            known = table.get(key)
            before = decode_profile(known) if known is not None else EMPTY
            table[key] = encode_profile(apply(before, event, event_hash(event, data)))
            done += 1
            if done % 100 == 0 or done == run.events:
                clock.mark(done)
            if done == run.events:
                os.write(stdout, b"\n" + msgspec.json.encode(clock.measured()) + b"\n")
                os._exit(0)

    faust.Worker(app, loglevel="error", quiet=True).execute_from_commandline()


if __name__ == "__main__":
    main()
