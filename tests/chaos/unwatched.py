"""A role without its watchdog, which would end a process that slept for 10 s before the broker can refuse it.

Else as child.py; an error of ours ends it as it ends the command line: with its words and its exit code.
"""

import contextlib
import sys

from recsys.errors import SlatecastError
from streams.watchdog import Watchdog
from tests.chaos.child import main

Watchdog.watching = lambda self, stuck_s: contextlib.nullcontext()  # type: ignore[method-assign]

if __name__ == "__main__":
    try:
        main()
    except SlatecastError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
