"""The supervisor of `slatecast run`, and its children: whatever fails, and however often, the others go on."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

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


def test_a_mistake_made_in_the_settings_file_later_does_not_end_a_restarted_role(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Wait
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slatecast.toml").write_text("bootstrp = 'kafka:9092'\n")
    log = tmp_path / "roles.log"
    supervisor = Supervisor(NOBODY, ("signals",), log)
    try:
        signals = supervisor.processes["signals"]
        wait_for(lambda: "waiting: no Kafka answers" in log.read_text() or signals.poll() is not None)
        assert signals.poll() is None, log.read_text()
    finally:
        supervisor.stop()
    assert signals.returncode == 0
