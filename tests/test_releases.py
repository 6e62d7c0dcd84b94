"""Releases as an operator handles them: listed, made champion again, removed when they are old."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from release_helpers import make_release, telling_tower

from models import registry
from models.registry import CHAMPION, MANIFEST, Release, champion, open_release, releases_folder, remember
from recsys.errors import Misuse, ModelRejected
from recsys.features import NAMES
from streams.cli.releases import releases

DAY_MS = 86_400_000
NOW_MS = 1_764_166_503_000  # 2025-11-26 14:15 UTC
Cli = Callable[..., Result]


def released(home: Path, day: int, *, serve: bool = True, features: tuple[str, ...] = NAMES) -> Release:
    made_ts_ms = NOW_MS + day * DAY_MS
    return make_release(home, 1, telling_tower(day), serve=serve, features=features, made_ts_ms=made_ts_ms)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    def run(*words: str) -> Result:
        return CliRunner().invoke(releases, [*words, "--home", str(tmp_path)], catch_exceptions=False)

    return run


def files_of(release: Release) -> list[Path]:
    return [path for path in release.folder.rglob("*") if path.is_file() and path.name != MANIFEST]


def left(home: Path) -> set[str]:
    return {folder.name for folder in releases_folder(home).iterdir() if folder.is_dir()}


def test_a_list_says_when_each_was_made_and_which_serves(tmp_path: Path, cli: Cli) -> None:
    assert "no releases yet; `slatecast train` makes one" in cli("list").stdout
    newer, older = released(tmp_path, 1), released(tmp_path, 0)
    (broken := releases_folder(tmp_path) / ("0" * 16)).mkdir()
    said = cli("list")
    rows = [line.split() for line in said.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == [older.id, newer.id]
    assert rows[0][1:] == ["2025-11-26", "14:15", "UTC", "1970-01-01", "00:00", "UTC", "0.2500", "0", "champion"]
    assert "champion" not in rows[1]
    assert broken.name in said.stderr
    of_programs = msgspec.json.decode(cli("list", "--json").stdout)
    assert [(one["release"], one["champion"]) for one in of_programs] == [(older.id, True), (newer.id, False)]
    assert of_programs[0]["bytes"] == sum(path.stat().st_size for path in files_of(older))


def test_an_older_release_is_made_champion_again(tmp_path: Path, cli: Cli) -> None:
    old, bad = released(tmp_path, 0), released(tmp_path, 1)
    assert champion(tmp_path) == bad.folder
    assert cli("promote", old.id[:6]).stderr == f"{old.id} is champion, {bad.id} was\n"
    assert champion(tmp_path) == old.folder


@pytest.mark.parametrize(("name", "said"), [("xyz", "there is no such release"), ("", "2 releases begin so")])
def test_a_champion_must_be_named_clearly(tmp_path: Path, cli: Cli, name: str, said: str) -> None:
    released(tmp_path, 0)
    newest = released(tmp_path, 1)
    with pytest.raises(Misuse, match=said):
        cli("promote", name)
    assert champion(tmp_path) == newest.folder


def test_a_damaged_release_does_not_become_champion(tmp_path: Path, cli: Cli) -> None:
    old, newest = released(tmp_path, 0), released(tmp_path, 1)
    (old.folder / "scorer.onnx").write_bytes(b"torn")
    with pytest.raises(ModelRejected, match=r"scorer\.onnx is not the file that was released"):
        cli("promote", old.id)
    assert champion(tmp_path) == newest.folder


def test_a_release_of_other_features_does_not_become_champion(tmp_path: Path, cli: Cli) -> None:
    older, newest = released(tmp_path, 0, features=("a",)), released(tmp_path, 1)
    with pytest.raises(ModelRejected, match="cannot serve"):
        cli("promote", older.id)
    assert champion(tmp_path) == newest.folder


def test_a_damaged_pointer_is_told_and_mended_by_a_promotion(tmp_path: Path, cli: Cli) -> None:
    only = released(tmp_path, 0)
    (releases_folder(tmp_path) / CHAMPION).write_bytes(b"not JSON")
    assert "names no release" in cli("list").stderr
    with pytest.raises(ModelRejected, match="names no release"):
        cli("prune", "--execute")  # who does not know what serves removes nothing
    assert f"{only.id} is champion, none was" in cli("promote", only.id).stderr
    assert champion(tmp_path) == only.folder


def test_old_releases_go_only_when_told_and_never_one_in_use(tmp_path: Path, cli: Cli) -> None:
    all_of_them = [released(tmp_path, day, serve=day == 1) for day in range(6)]
    remember(tmp_path, all_of_them[3].id)
    names = {release.id for release in all_of_them}
    freed = sum(path.stat().st_size for at in (0, 2, 4) for path in files_of(all_of_them[at]))
    said = cli("prune", "--keep", "1")
    assert left(tmp_path) == names
    assert said.stdout.split()[0] == all_of_them[0].id
    assert said.stderr == "3 releases of 0 MB would be removed; --execute does it\n"
    assert msgspec.json.decode(cli("prune", "--keep", "1", "--execute", "--json").stdout) == {
        "removed": [all_of_them[at].id for at in (0, 2, 4)],
        "bytes": freed,
    }
    assert left(tmp_path) == {all_of_them[at].id for at in (1, 3, 5)}  # the champion, the one served last, the newest
    assert all(open_release(all_of_them[at].folder) for at in (1, 3, 5))


def test_a_removal_that_was_cut_short_leaves_no_half_release(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = released(tmp_path, 0)
    released(tmp_path, 1)

    def killed(path: Path) -> None:
        (path / MANIFEST).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(registry.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.remove(tmp_path, [old])
    assert not old.folder.exists()
    cli("prune", "--execute")
    assert len(left(tmp_path)) == 1
