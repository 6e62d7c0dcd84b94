"""The supervisor of `slatecast run`, and its children: whatever fails, and however often, the others go on."""

import time
from collections.abc import Callable
from pathlib import Path

from streams.roles import BACKOFF_MAX_S, Supervisor
from streams.settings import Settings

Wait = Callable[..., None]
NOBODY = Settings(bootstrap="127.0.0.1:9")


def test_a_role_that_has_failed_two_thousand_times_is_waited_for_no_longer_than_any(
    tmp_path: Path, wait_for: Wait
) -> None:
    supervisor = Supervisor(NOBODY, ("signals",), tmp_path / "roles.log")
    try:
        supervisor.processes["signals"].kill()
        wait_for(lambda: supervisor.processes["signals"].poll() is not None)
        supervisor._failures["signals"] = 2000
        supervisor.tend()
        assert supervisor._failures["signals"] == 2001
        assert supervisor._again_s["signals"] - time.monotonic() <= BACKOFF_MAX_S
    finally:
        supervisor.stop()
