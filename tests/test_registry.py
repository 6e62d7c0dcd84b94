"""Release folders: whole or refused, by name of the file; one champion, changed in one rename."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from models import registry
from models.registry import (
    CHAMPION,
    MANIFEST,
    SERVED,
    Manifest,
    champion,
    last_served,
    open_release,
    promote,
    publish,
    releases_folder,
    remember,
)
from recsys.errors import ModelRejected

NOW_MS = 1_700_000_000_000


def manifest(**changes: object) -> Manifest:
    plain = Manifest(
        created_ts_ms=NOW_MS, data="a test", data_until_ts_ms=NOW_MS, features=("a",), metrics={"ndcg_at_10": 0.25}
    )
    return msgspec.structs.replace(plain, **changes)


def draft(home: Path, scorer: bytes = b"a graph") -> Path:
    folder = home / "draft"
    (folder / "text").mkdir(parents=True)
    (folder / "scorer.onnx").write_bytes(scorer)
    (folder / "text" / "tower.json").write_bytes(b"{}")
    return folder


def test_what_was_published_is_opened(tmp_path: Path) -> None:
    published = publish(tmp_path, draft(tmp_path), manifest(parent="0" * 16, data_from_ts_ms=NOW_MS - 1))
    folder = champion(tmp_path)
    assert folder is not None
    opened = open_release(folder)
    assert opened == published
    assert sorted(opened.manifest.files) == ["scorer.onnx", "text/tower.json"]
    assert opened.manifest.files["scorer.onnx"].size == len(b"a graph")
    assert (opened.manifest.opset, opened.manifest.parent, opened.manifest.metrics) == (
        18,
        "0" * 16,
        {"ndcg_at_10": 0.25},
    )
    assert not (tmp_path / "draft").exists()


def test_the_same_files_and_manifest_are_the_same_release(tmp_path: Path) -> None:
    first, again = (publish(tmp_path, draft(tmp_path), manifest()) for _ in range(2))
    other = publish(tmp_path, draft(tmp_path, b"another graph"), manifest())
    assert first.id == again.id != other.id


def test_before_the_first_release_there_is_no_champion(tmp_path: Path) -> None:
    assert champion(tmp_path) is None


def test_the_champion_changes_only_when_told(tmp_path: Path) -> None:
    first = publish(tmp_path, draft(tmp_path), manifest())
    second = publish(tmp_path, draft(tmp_path, b"better"), manifest(parent=first.id), serve=False)
    assert champion(tmp_path) == first.folder
    promote(tmp_path, second.id)
    assert champion(tmp_path) == second.folder
    promote(tmp_path, first.id)
    assert champion(tmp_path) == first.folder
    assert {path.name for path in releases_folder(tmp_path).iterdir()} == {first.id, second.id, CHAMPION}


def test_a_damaged_release_is_not_promoted(tmp_path: Path) -> None:
    first = publish(tmp_path, draft(tmp_path), manifest())
    second = publish(tmp_path, draft(tmp_path, b"better"), manifest(), serve=False)
    (second.folder / "scorer.onnx").write_bytes(b"BETTER")
    with pytest.raises(ModelRejected, match=r"scorer\.onnx"):
        promote(tmp_path, second.id)
    assert champion(tmp_path) == first.folder


def test_a_pointer_that_names_no_release_is_refused(tmp_path: Path) -> None:
    publish(tmp_path, draft(tmp_path), manifest())
    for content in (b"", b"\xff", b"{}", b'{"release":"../../etc"}', b'{"release":7}', b"[]"):
        (releases_folder(tmp_path) / CHAMPION).write_bytes(content)
        with pytest.raises(ModelRejected, match="names no release"):
            champion(tmp_path)


@pytest.mark.parametrize("file", [CHAMPION, SERVED])
def test_a_pointer_with_a_flipped_bit_names_no_release_or_another_one(tmp_path: Path, file: str) -> None:
    release = publish(tmp_path, draft(tmp_path), manifest())
    remember(tmp_path, release.id)
    pointer, named = releases_folder(tmp_path) / file, champion if file == CHAMPION else last_served
    whole = pointer.read_bytes()
    for bit in range(8 * len(whole)):
        pointer.write_bytes((int.from_bytes(whole) ^ 1 << bit).to_bytes(len(whole)))
        with contextlib.suppress(ModelRejected):  # which a ranker knows to go on from
            assert named(tmp_path) != release.folder


def alter(folder: Path) -> None:
    (folder / "scorer.onnx").write_bytes(b"A graph")


def cut(folder: Path) -> None:
    (folder / "scorer.onnx").write_bytes(b"a gra")


def remove(folder: Path) -> None:
    (folder / "text" / "tower.json").unlink()


def add(folder: Path) -> None:
    (folder / "text" / "more.json").write_bytes(b"{}")


def add_hidden(folder: Path) -> None:
    (folder / ".more.json").write_bytes(b"{}")


def add_pickle(folder: Path) -> None:
    (folder / "model.pkl").write_bytes(b"\x80\x04.")


def link_file(folder: Path) -> None:
    (folder / "scorer.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "scorer.onnx").symlink_to(folder.parent / "elsewhere.onnx")


def link_folder(folder: Path) -> None:
    (folder / "text").rename(folder.parent / "elsewhere")
    (folder / "text").symlink_to(folder.parent / "elsewhere")


def link_nowhere(folder: Path) -> None:
    (folder / "text" / "dangling.json").symlink_to("nowhere")


def pipe(folder: Path) -> None:
    (folder / "scorer.onnx").unlink()
    os.mkfifo(folder / "scorer.onnx")


def alter_manifest(folder: Path) -> None:
    data = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(data.replace(b"0.25", b"0.99"))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (alter, "scorer.onnx"),
        (cut, "scorer.onnx"),
        (remove, "text/tower.json"),
        (add, "text/more.json"),
        (add_hidden, ".more.json"),
        (add_pickle, "model.pkl"),
        (link_file, "scorer.onnx"),
        (link_folder, "text"),
        (link_nowhere, "dangling.json"),
        (pipe, "scorer.onnx"),
        (alter_manifest, MANIFEST),
        (lambda folder: (folder / MANIFEST).unlink(), MANIFEST),
        (lambda folder: (folder / MANIFEST).write_bytes(b""), MANIFEST),
    ],
)
def test_a_damaged_release_is_refused_and_the_file_named(
    tmp_path: Path, damage: Callable[[Path], None], named: str
) -> None:
    folder = publish(tmp_path, draft(tmp_path), manifest()).folder
    damage(folder)
    with pytest.raises(ModelRejected) as caught:
        open_release(folder)
    assert named in str(caught.value)


def test_a_release_under_another_name_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path, draft(tmp_path), manifest()).folder
    with pytest.raises(ModelRejected, match="moved"):
        open_release(folder.rename(folder.with_name("0" * 16)))


def written_by_hand(home: Path, content: object) -> Path:
    data = msgspec.json.encode(content)
    folder = releases_folder(home) / registry._id(data)
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes(data)
    return folder


def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    for path in ("../evil.onnx", "/etc/passwd", "text/../../evil.onnx"):
        entry = registry.Entry(registry.file_sha256(Path("/etc/passwd")), Path("/etc/passwd").stat().st_size)
        folder = written_by_hand(tmp_path, manifest(files={path: entry}))
        with pytest.raises(ModelRejected, match="missing"):
            open_release(folder)


def test_a_later_format_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="format 2, this version reads 1"):
        open_release(written_by_hand(tmp_path, {"format": 2, "everything": "else"}))


def test_a_field_that_a_later_version_adds_does_not_matter(tmp_path: Path) -> None:
    content = msgspec.to_builtins(manifest()) | {"signature": "abc"}
    assert open_release(written_by_hand(tmp_path, content)).manifest == manifest()


@pytest.mark.parametrize("name", ["model.pkl", "pytorch_model.bin", "modeling.py"])
def test_what_could_run_code_when_loaded_is_not_published(tmp_path: Path, name: str) -> None:
    folder = draft(tmp_path)
    (folder / name).write_bytes(b"")
    with pytest.raises(ModelRejected, match=name):
        publish(tmp_path, folder, manifest())
    assert champion(tmp_path) is None


def test_a_metric_that_is_no_number_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="metric ndcg is nan"):
        publish(tmp_path, draft(tmp_path), manifest(metrics={"ndcg": float("nan")}))
