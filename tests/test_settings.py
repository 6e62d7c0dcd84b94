"""Settings: where they come from, which are refused, and that nothing of a secret is ever printed."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from recsys.errors import Misuse
from streams.settings import Running, Settings, hide_secrets, load_settings, running_file


def write(folder: Path, text: str) -> Path:
    file = folder / "slatecast.toml"
    file.write_text(text)
    return file


def test_options_win_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'bootstrap = "file:1"\nredis = "redis://file"\nprefix = "file."\npartitions = 8\n')
    environ = {"SLATECAST_BOOTSTRAP": "environment:1", "SLATECAST_REDIS": "redis://environment"}
    settings = load_settings(file, {"bootstrap": "option:1", "redis": None}, environ)
    assert settings.bootstrap == "option:1"
    assert settings.redis == "redis://environment"
    assert (settings.prefix, settings.partitions) == ("file.", 8)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bootstrp = 'x:1'", "unknown field `bootstrp`. Known settings: bootstrap, redis"),
        ("partitions = 0", r"`int` >= 1 - at `\$.partitions`"),
        ("prefix = 'a b'", r"at `\$.prefix`"),
        ("bootstrap = ", "not TOML"),
        ("kafka = 3", r"at `\$.kafka`"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(Misuse, match=said):
        load_settings(write(tmp_path, text), {}, {})


def test_a_file_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    (file := tmp_path / "slatecast.toml").write_text('prefix = "shop."\n[policy]\nstrength = 0.3', "utf-8-sig")
    settings = load_settings(file, {}, {})
    assert (settings.prefix, settings.policy.strength) == ("shop.", 0.3)


def test_a_file_that_is_missing_or_a_folder_or_binary_is_misuse(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    for file in (tmp_path / "missing", tmp_path, tmp_path / "binary"):
        with pytest.raises(Misuse, match=str(file)):
            load_settings(file, {}, {})


def test_a_librdkafka_key_may_come_from_the_environment_and_is_not_printed(tmp_path: Path) -> None:
    file = write(tmp_path, 'bootstrap = "x:1"\n[kafka]\n"security.protocol" = "SASL_SSL"\n')
    environ = {"SLATECAST_KAFKA_SASL_PASSWORD": "canary", "SLATECAST_REDIS": "rediss://shop:canary@cache:1/0"}
    settings = load_settings(file, {}, environ)
    assert settings.kafka == {"security.protocol": "SASL_SSL", "sasl.password": "canary"}
    assert "canary" not in repr(settings)
    assert "sasl.password" in repr(settings)
    assert "cache:1" in repr(settings)


def test_a_wrong_url_shows_no_password() -> None:
    assert hide_secrets("redis://u:canary@h:1/0") == "redis://h:1/0"
    assert hide_secrets("redis://h?password=canary") == "redis://h"
    for password in ("/canary", "[canary", "#canary", "?canary", "canary/", "canary@canary", "12/canary", "canary://x"):
        assert "canary" not in hide_secrets(f"redis://u:{password}@h:1/0")
    assert "canary" not in hide_secrets("u:canary@h:1/0")
    assert "canary" not in hide_secrets("redis://h?password=can@canary")
    assert hide_secrets("") == ""


def test_what_slatecast_up_runs_is_found_while_its_process_lives(tmp_path: Path) -> None:
    file, running = running_file(str(tmp_path)), Running(os.getpid(), "up:1", "redis://up")
    file.write_bytes(msgspec.json.encode(running))
    here = {"home": str(tmp_path)}
    assert load_settings(None, here, {}).bootstrap == "up:1"
    assert load_settings(None, here, {}).redis == "redis://up"
    assert load_settings(None, {**here, "redis": "redis://mine"}, {}).redis == "redis://mine"
    assert load_settings(None, {**here, "bootstrap": "mine:1"}, {}).redis == "", "another cluster, another Redis"
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(running, pid=ended.pid)))
    assert load_settings(None, here, {}) == Settings(home=str(tmp_path))
    for damaged in (b"{", msgspec.json.encode(running).replace(b"up:1", b"up\xff1")):
        file.write_bytes(damaged)
        assert load_settings(None, here, {}).bootstrap == ""
