"""A header whose name is no text, which no file of the corpus can hold: another client sends it, and ours reads on."""

import os
import subprocess
import sys

from corpus_helpers import FOLDER
from stream_helpers import send_events
from verdict_helpers import NOW_MS

from recsys.events import Click
from streams.settings import Settings

ROGUE = """
import asyncio, sys
from aiokafka import AIOKafkaProducer

class Name(str):
    def encode(self, *_):
        return b"\\xff\\xfe"

async def main():
    async with AIOKafkaProducer(bootstrap_servers=sys.argv[1]) as producer:
        for _ in range(3):
            await producer.send_and_wait(sys.argv[2], b"rogue", b"u1", headers=[("a", b"1"), (Name("x"), b"2")])

asyncio.run(main())
"""
READER = """
import sys
from stream_helpers import read_topic
from streams.settings import Settings

print([r.value for r in read_topic(Settings(bootstrap=sys.argv[1], prefix=sys.argv[2]), "events")].count(b"rogue"))
"""


def test_a_header_whose_name_is_no_text_ends_no_reader(settings: Settings) -> None:
    """Kafka takes any bytes for a name; our client would not send them, so another one does. Reads in a process."""
    send_events(settings, [Click(user=f"u{n}", item="i1", ts_ms=NOW_MS) for n in range(2000)])
    where = (settings.bootstrap, settings.prefix)
    rogue = [sys.executable, "-c", ROGUE, settings.bootstrap, settings.prefix + "events"]
    subprocess.run(rogue, env={**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"}, check=True, timeout=60)
    paths = os.pathsep.join(map(str, (FOLDER.parents[1], FOLDER.parent)))
    reader = [sys.executable, "-c", READER, *where]
    done = subprocess.run(reader, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr[-500:]
