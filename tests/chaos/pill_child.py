"""A role whose process some events end while they are processed: the pills of pills.py. Else as child.py.

Each time a pill is met, one line goes to the file SLATECAST_PILLS first: when, and among how many records.
"""

import faulthandler
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import streams.roles
from streams.ranker import RankerTask
from streams.records import Output, Record
from streams.state import State
from tests.chaos.child import main

# Both hangs outlast every limit. The second never lets go of the interpreter's lock, so no thread of Python can see it.
PILLS: dict[bytes, Callable[[], object]] = {
    b'"pill-crash"': faulthandler._sigsegv,  # type: ignore[attr-defined]
    b'"pill-hang"': lambda: time.sleep(3600),
    b'"pill-stuck"': lambda: re.match(r"(a+)+$", "a" * 60 + "b"),
}


class Pilled(RankerTask):
    """A ranker that swallows what it is given."""

    def process(self, records: Sequence[Record], state: State) -> list[Output]:
        for at, record in enumerate(records):
            for mark, swallow in PILLS.items():
                if mark in (record.value or b""):
                    super().process(records[:at], state)  # it ends in the midst of its work
                    with Path(os.environ["SLATECAST_PILLS"]).open("a") as file:
                        file.write(f"{time.time()} {len(records)}\n")
                    swallow()
        return super().process(records, state)


streams.roles.RankerTask = Pilled  # type: ignore[misc]

if __name__ == "__main__":
    main()
