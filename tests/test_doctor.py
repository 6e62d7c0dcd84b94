"""The doctor on this very machine, well and in several bad states; each finding that stops has a remedy."""

import shutil
from pathlib import Path

import msgspec
import pytest

from models.registry import CHAMPION, releases_folder
from streams import clients, doctor, jars, topics
from streams.doctor import Finding, examine
from streams.settings import Settings


@pytest.fixture
def well(settings: Settings, home: Path) -> Settings:
    """Everything there but a release."""
    shutil.copytree(jars.jars_folder(home), jars.jars_folder(Path(settings.home)))
    return settings


def findings(settings: Settings) -> dict[str, Finding]:
    found = examine(settings)
    assert all(finding.remedy for finding in found if finding.verdict != "ok")
    return {finding.what: finding for finding in found}


def test_a_machine_that_is_well_has_nothing_that_stops(well: Settings) -> None:
    found = findings(well)
    assert {what: f.verdict for what, f in found.items() if f.verdict != "ok"} == {"release": "warn"}
    assert "Kafka 4.3.1, jars as locked; openjdk version" in found["embedded services"].found
    assert found["provider"].found.startswith(("CPUExecutionProvider", "CUDAExecutionProvider"))


def test_a_broker_and_a_redis_that_are_down_stop_it_and_show_no_password() -> None:
    found = findings(Settings(bootstrap="127.0.0.1:9", redis="redis://u:canary@127.0.0.1:9/0", home="missing"))
    assert found["Kafka"].verdict == found["Redis"].verdict == "stop"
    assert "slatecast up" in found["Kafka"].remedy
    assert "canary" not in repr(found)
    assert "topics" not in found, "nothing can be said of them"


def test_kafka_settings_that_are_no_good_are_not_mended_by_another_broker(well: Settings) -> None:
    found = findings(msgspec.structs.replace(well, kafka={"sasl.mechanism": "SCRAM-SHA-512", "acks": "0"}))["Kafka"]
    assert (found.verdict, found.remedy) == ("stop", "mend the settings file or the environment")
    assert "acks is not yours to set" in found.found


def test_topics_that_are_missing_stop_it(well: Settings) -> None:
    found = findings(msgspec.structs.replace(well, prefix=well.prefix + "bare."))
    assert found["topics"].verdict == "stop"
    assert found["topics"].found.startswith("10 differ, ")
    assert found["topics"].remedy == "slatecast topics apply --execute"


def test_a_topic_that_keeps_its_records_otherwise_is_told_and_stops_nothing(
    well: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = topics.plan(well)
    longer = msgspec.structs.replace(planned[0], config={**planned[0].config, "retention.ms": "1"})
    monkeypatch.setattr(topics, "plan", lambda settings: [longer, *planned[1:]])
    found = findings(well)["topics"]
    assert (found.verdict, found.remedy) == ("warn", "slatecast topics apply --execute")
    assert found.found == f"1 differ, {longer.name}: retention.ms: 2419200000 -> 1"


def test_a_broker_that_soon_forgets_where_a_stopped_role_stood_is_told(
    well: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = findings(well)["offsets"]
    assert (found.verdict, found.found) == ("ok", "a role may be down for 7 days")
    monkeypatch.setattr(doctor, "OFFSETS_KEPT_MIN", 40_320)
    found = findings(well)["offsets"]
    assert (found.verdict, found.found) == ("warn", "a role may be down for 7 days")
    assert "offsets.retention.minutes" in found.remedy


def test_an_altered_jar_is_told_with_the_command_that_mends_it(well: Settings) -> None:
    jar = jars.jars_folder(Path(well.home)) / jars.locked_jars()[0].file
    jar.write_bytes(jar.read_bytes()[:-1])
    found = findings(well)["embedded services"]
    assert (found.verdict, found.found, found.remedy) == ("warn", "1 jars missing or altered", "slatecast kafka fetch")


@pytest.mark.parametrize("pointer", [b"not JSON", b'{"release":"0123456789abcdef"}'])
def test_a_release_that_cannot_serve_stops_it(well: Settings, pointer: bytes) -> None:
    releases = releases_folder(Path(well.home))
    (releases / "0123456789abcdef").mkdir(parents=True)
    (releases / CHAMPION).write_bytes(pointer)
    found = findings(well)["release"]
    assert found.verdict == "stop"
    assert found.remedy == "slatecast train makes another; slatecast releases promote goes back to one"


def test_both_onnxruntimes_side_by_side_stop_it(
    well: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        info = tmp_path / "site" / f"{name}-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = findings(well)["onnxruntime"]
    assert found.verdict == "stop"
    assert found.remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


def test_another_package_called_models_stops_it(
    well: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "site" / "stranger-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1\n")
    (info / "RECORD").write_text("models/__init__.py,,\n")
    (info / "top_level.txt").write_text("models\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = findings(well)["package models"]
    assert found.verdict == "stop"
    assert "stranger" in found.found


def test_a_folder_called_models_before_ours_stops_it(well: Settings, tmp_path: Path) -> None:
    shadow = tmp_path / "models" / "__init__.py"
    original = doctor.models.__file__
    doctor.models.__file__ = str(shadow)
    try:
        found = findings(well)["package models"]
    finally:
        doctor.models.__file__ = original
    assert found.verdict == "stop"
    assert "start by the command `slatecast`" in found.remedy
    assert str(shadow) in found.found


def test_the_doctor_changes_nothing(well: Settings) -> None:
    bare = msgspec.structs.replace(well, prefix=well.prefix + "bare.", home=str(Path(well.home) / "nothing"))
    examine(bare)
    assert not Path(bare.home).exists()
    assert len(topics.diff(clients.admin(bare), topics.plan(bare))) == 10
