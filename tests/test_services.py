"""`slatecast up`, `topics` and `doctor` as a person types them: what they print, and how they end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from streams import jars
from streams.settings import Running, Settings, running_file

Wait = Callable[..., None]
SLATECAST = [sys.executable, "-P", "-m", "streams.cli.main"]


@pytest.fixture
def environ(home: Path, tmp_path: Path) -> dict[str, str]:
    """A home of its own with the jars in it, and no word of where Kafka is."""
    folder = jars.jars_folder(tmp_path)
    folder.parent.mkdir(parents=True)
    folder.symlink_to(jars.jars_folder(home).resolve())
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLATECAST_")}
    return {**kept, "SLATECAST_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "200"}


def slatecast(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SLATECAST, *arguments], env=environ, capture_output=True, text=True, timeout=60)


def connection(settings: Settings) -> tuple[str, ...]:
    return ("--bootstrap", settings.bootstrap, "--redis", settings.redis, "--prefix", settings.prefix)


def test_up_is_found_by_other_commands_and_ctrl_c_ends_it_cleanly(environ: dict[str, str], wait_for: Wait) -> None:
    file = running_file(environ["SLATECAST_HOME"])
    with subprocess.Popen([*SLATECAST, "up"], env=environ, stdout=subprocess.PIPE, text=True) as up:
        wait_for(lambda: file.exists() or up.poll() is not None, 60)
        assert up.poll() is None
        found = msgspec.json.decode(file.read_bytes(), type=Running)
        assert found.pid == up.pid
        done = slatecast(environ, "topics", "apply", "--json")
        assert (done.returncode, done.stdout) == (0, "[]\n")
        second = slatecast(environ, "up")
        assert second.returncode == 1
        assert "in use by another `slatecast up`" in second.stderr
        up.send_signal(signal.SIGINT)
        said, _ = up.communicate(timeout=30)
    assert up.returncode == 0
    assert found.bootstrap in said
    assert found.redis in said
    assert not file.exists()
    assert b"Traceback" not in b"".join(path.read_bytes() for path in (file.parent / "up").glob("*.log"))


def test_topics_apply_is_a_dry_run_until_it_is_told(settings: Settings, environ: dict[str, str]) -> None:
    bare = msgspec.structs.replace(settings, prefix=settings.prefix + "bare.")
    for extra, said in (((), "Nothing was changed; --execute does it."), (("--execute",), bare.prefix + "events")):
        done = slatecast(environ, "topics", "apply", *connection(bare), *extra)
        assert done.returncode == 0
        assert said in done.stderr
        assert "10 differ" in slatecast(environ, "doctor", *connection(bare)).stderr or extra


def test_topics_with_another_number_of_partitions_are_not_said_to_be_mended_by_execute(
    settings: Settings, environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "other.toml").write_text(f"partitions = {settings.partitions + 1}")
    other = (*connection(settings), "--config", str(tmp_path / "other.toml"))
    for command in (("topics", "apply"), ("topics", "apply", "--execute"), ("doctor",)):
        said = slatecast(environ, *command, *other).stderr
        assert "set `partitions` to what it has, or grow into another prefix" in said
        assert f"has {settings.partitions} partitions, not {settings.partitions + 1}" in said
        assert "--execute" not in said


def test_the_doctor_ends_with_1_where_something_stops_and_0_where_nothing_does(
    settings: Settings, environ: dict[str, str]
) -> None:
    well = slatecast(environ, "doctor", *connection(settings), "--json")
    assert well.returncode == 0, well.stderr
    assert {finding["verdict"] for finding in msgspec.json.decode(well.stdout)} == {"ok", "warn"}
    ill = slatecast(environ, "doctor")
    assert ill.returncode == 1
    assert "slatecast up, or --bootstrap host:port" in ill.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("topics", "apply"), 2, "slatecast: no Kafka named: give --bootstrap host:port"),
        (("topics", "apply", "--bootstrap", "127.0.0.1:9"), 1, "slatecast: no Kafka answers at 127.0.0.1:9"),
        (("topics", "apply", "--config", "missing.toml"), 2, "slatecast: missing.toml: no such file"),
        (("topics", "apply", "--prefix", "a b"), 2, "slatecast: settings:"),
    ],
)
def test_a_failure_is_one_line_and_a_code(
    environ: dict[str, str], arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = slatecast(environ, *arguments)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
