"""Release folders: everything a ranker loads, under one name, checked file by file.

A release is written beside its place and renamed, the manifest last, so a half-written one is never seen. It is
opened only if every file has the sha256 the manifest says, none is missing, none is there unasked, and none is a link.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path

import msgspec

from recsys.errors import ModelRejected

MANIFEST = "manifest.json"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a release says of itself. Times in ms since 1970; metrics as measured when it was made."""

    format: int = 1
    created_ts_ms: int
    data: str  # what it learned from
    data_until_ts_ms: int
    features: tuple[str, ...]
    metrics: dict[str, float]
    files: dict[str, str]  # path inside the folder -> sha256


class Release(msgspec.Struct, frozen=True):
    """A verified release. id: digest of its manifest."""

    id: str
    folder: Path
    manifest: Manifest


def releases_folder(home: Path) -> Path:
    """Where releases lie."""
    return home / "releases"


def publish(home: Path, draft: Path, manifest: Manifest) -> Release:
    """Make a release of the files in `draft` (moved) and make it the champion, in one rename each."""
    files = {str(file.relative_to(draft)): _sha256(file) for file in sorted(draft.rglob("*")) if file.is_file()}
    manifest = msgspec.structs.replace(manifest, files=files)
    data = msgspec.json.format(msgspec.json.encode(manifest))
    (draft / MANIFEST).write_bytes(data)
    _sync(draft)
    name = _name(data)
    folder = releases_folder(home) / name
    if folder.exists():
        shutil.rmtree(draft)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft.replace(folder)
    pointer = releases_folder(home) / "champion.part"
    pointer.write_text(name)
    pointer.replace(releases_folder(home) / "champion")
    return open_release(folder)


def champion(home: Path) -> Path | None:
    """The folder of the release that serves, or None before the first."""
    try:
        name = (releases_folder(home) / "champion").read_text().strip()
    except FileNotFoundError:
        return None
    if not re.fullmatch(r"[0-9a-f]{16}", name):
        raise ModelRejected(f"{releases_folder(home) / 'champion'} names no release; `slatecast train` makes one")
    return releases_folder(home) / name


def open_release(folder: Path) -> Release:
    """A release whose files are what its manifest says. Raises ModelRejected naming the file that is not."""
    try:
        data = (folder / MANIFEST).read_bytes()
        manifest = msgspec.json.decode(data, type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise ModelRejected(f"{folder} is no release: {error}") from None
    if _name(data) != folder.name:
        raise ModelRejected(f"{folder / MANIFEST} was altered: its digest is not the folder's name")
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
    for name in sorted(there ^ {*manifest.files, MANIFEST}):
        raise ModelRejected(f"{folder / name} is {'not in the manifest' if name in there else 'missing'}")
    for name, digest in manifest.files.items():
        if (folder / name).is_symlink() or not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ModelRejected(f"{folder / name} leads out of the release")
        if _sha256(folder / name) != digest:
            raise ModelRejected(f"{folder / name} is not the file that was released (sha256 differs)")
    return Release(folder.name, folder, manifest)


def _name(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()[:16]


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
