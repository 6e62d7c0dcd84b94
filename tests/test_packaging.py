"""What is shipped, and what may stand nowhere in it: the wheel's contents and rules over the whole tree."""

import ast
import configparser
import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("recsys", "models", "streams")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, as `make` would for a release."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {*PACKAGES, f"{wheel.name.split('-py3')[0]}.dist-info"}
    assert {name for name in names if name.endswith("py.typed")} == {f"{package}/py.typed" for package in PACKAGES}
    assert not [name for name in names if re.search(r"test_|__pycache__|/var/", name)]
    source = {path.relative_to(ROOT).as_posix() for path in SOURCES}
    assert {name for name in names if name.endswith(".py")} == source


def test_the_wheel_brings_what_the_services_need(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    deploy = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    assert {f"streams/deploy/{path.relative_to(ROOT / 'deploy').as_posix()}" for path in deploy} <= names
    assert {"streams/deploy/kafka/jars.lock", "streams/deploy/kafka/server.properties"} <= names


def test_an_installed_copy_finds_its_files(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = "import streams.jars as j; print(j.__file__, j.kafka_version(), len(j.locked_jars()) > 10)"
    # -I and a path of its own: the checkout is not there to help.
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {program}"]
    file, version, many = subprocess.run(
        command, cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.split()
    assert file.startswith(str(tmp_path))
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert many == "True"


def test_the_wheel_has_one_command_and_a_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    entries = configparser.ConfigParser()
    entries.read_file(io.StringIO(archive.read(f"{info}/entry_points.txt").decode()))
    assert {section: dict(entries[section]) for section in entries.sections()} == {
        "console_scripts": {"slatecast": "streams.cli.main:main"}
    }
    metadata = archive.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert f"{info}/licenses/LICENSE" in archive.namelist()


# --- what stands nowhere in the tree -----------------------------------------------------------------------------------

UNPICKLERS = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """Every syntax node, with where it stands."""
    return [
        (f"{path.relative_to(ROOT).as_posix()}:{getattr(node, 'lineno', 0)}", node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_bytes(), str(path)))
    ]


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call: where, the dotted name, the node."""
    for where, node in nodes():
        if isinstance(node, ast.Call):
            yield where, ast.unparse(node.func), node


def test_nothing_is_unpickled() -> None:
    imported = [
        (where, name)
        for where, node in nodes()
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        if name.split(".")[0] in UNPICKLERS
    ]
    assert imported == []
    found = [where for where, name, _ in calls() if name in ("torch.load", "torch.jit.load", "torch.export.load")]
    found += [
        where for where, _, call in calls() for key in call.keywords if key.arg == "allow_pickle" and is_true(key)
    ]
    assert found == []


def test_no_model_brings_code_of_its_own() -> None:
    loads = [(where, call) for where, name, call in calls() if name.endswith(".from_pretrained")]
    assert loads, "this test must look at something"
    for where, call in loads:
        said = {key.arg: ast.unparse(key.value) for key in call.keywords}
        assert said.get("trust_remote_code") == "False", where
        assert said.get("local_files_only") == "True", where


def is_true(keyword: ast.keyword) -> bool:
    return not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)


def test_nothing_rests_on_pythons_own_hash_which_differs_from_run_to_run() -> None:
    assert [where for where, name, _ in calls() if name == "hash"] == []


def test_nothing_is_evaluated() -> None:
    assert [where for where, name, _ in calls() if name in ("eval", "exec", "compile", "__import__", "os.system")] == []


def test_kafka_clients_that_carry_records_are_made_in_one_place() -> None:
    kinds = {"Producer", "Consumer", "SerializingProducer", "DeserializingConsumer", "AIOProducer", "AIOConsumer"}
    found = {where.split(":")[0] for where, name, _ in calls() if name.split(".")[-1] in kinds}
    assert found == set(), "use streams/clients.py"
    made = [call.args[0] for where, name, call in calls() if name == "_make" and where.startswith("streams/clients.py")]
    assert {ast.unparse(kind) for kind in made} == {"Producer", "Consumer", "AdminClient"}


def test_redis_clients_are_made_in_one_place() -> None:
    found = {where.split(":")[0] for where, name, _ in calls() if name in ("redis.Redis", "redis.Redis.from_url")}
    assert found == {"streams/clients.py", "streams/embedded.py"}  # which waits for a Valkey it has just started


def test_no_path_of_one_machine_is_in_the_tree() -> None:
    machine = re.compile(r"/(?:root|work|home/\w+)/")
    folders = [ROOT / name for name in (*PACKAGES, "tests", "deploy", "docs", ".ci")]
    files = [
        path
        for folder in folders
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts and path.suffix != ".gz"
    ]
    files += [path for path in ROOT.iterdir() if path.suffix in (".md", ".toml", ".lock") or path.name == "Makefile"]
    named = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in files
        if path.is_file() and path.name != Path(__file__).name
        for found in machine.finditer(path.read_text(errors="ignore"))
    ]
    assert named == []
