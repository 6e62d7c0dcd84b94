"""Release folders: everything a ranker loads, under one name, checked file by file.

    releases/champion.json           which one serves
    releases/served.json             which one a ranker opened last, for when the champion cannot be opened
    releases/<id>/manifest.json      what it is; the id is a digest of it
                  text/ vectors.safetensors whitening.safetensors scorer.onnx, and what a later release adds

A release is written beside its place and renamed, the manifest last, so a half-written one is never seen. It is
opened only if every file has the size and sha256 that the manifest says, none is missing, none is there unasked, and
none is a link. Nothing in it is code or pickle. Called by training, the roles and the doctor.
"""

import hashlib
import logging
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from recsys.errors import UNREADABLE, ModelRejected

OPSET = 18  # of ONNX, in every graph we write: what torch's exporter makes without converting
FORMAT = 1  # of the manifest; fields are only added within a format
MANIFEST, CHAMPION, SERVED = "manifest.json", "champion.json", "served.json"
_NAME = re.compile(r"[0-9a-f]{16}")
# For the log, after why one is refused.
WAY_BACK = "`slatecast releases list` has the others, `slatecast releases promote` makes one champion"
SUFFIXES = {".onnx", ".safetensors", ".json"}  # what a release may hold: nothing that runs when it is loaded

log = logging.getLogger(__name__)


class Entry(msgspec.Struct, frozen=True):
    """One file of a release. size: bytes."""

    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a release says of itself. Times in ms since 1970; metrics as measured when it was made."""

    format: int = FORMAT
    created_ts_ms: int
    parent: str | None = None  # the release that it was tuned from
    data: str  # what it learned from
    data_from_ts_ms: int | None = None
    data_until_ts_ms: int
    opset: int = OPSET
    features: tuple[str, ...]
    metrics: Mapping[str, float]
    files: Mapping[str, Entry] = {}  # path inside the folder -> what must lie there; written by `publish`


class Release(msgspec.Struct, frozen=True):
    """A verified release. id: digest of its manifest."""

    id: str
    folder: Path
    manifest: Manifest


def releases_folder(home: Path) -> Path:
    """Where releases lie."""
    return home / "releases"


def publish(home: Path, draft: Path, manifest: Manifest, *, serve: bool = True) -> Release:
    """Make a release of the files in `draft`, which is moved, and the champion of it unless serve=False.

    The draft lies on the file system of `home`. Publishing the same files and manifest again is the same release.
    Raises ModelRejected if the draft holds what no release may, or a metric is not finite. A second for 100 MB.
    """
    wrong = [name for name, value in manifest.metrics.items() if not math.isfinite(value)]
    if wrong:
        raise ModelRejected(f"metric {wrong[0]} is {manifest.metrics[wrong[0]]}: not a model to publish")
    (draft / MANIFEST).unlink(missing_ok=True)
    files = {name: Entry(file_sha256(draft / name), (draft / name).stat().st_size) for name in _regular_files(draft)}
    data = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, files=files)))
    sync_folder(draft)
    _write(draft / MANIFEST, data)
    draft.chmod(0o755)  # mkdtemp's folders are closed to the account that serves
    folder = releases_folder(home) / _id(data)
    if folder.exists():
        shutil.rmtree(draft)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft.replace(folder)
        _sync(folder.parent)
    release = open_release(folder)
    if serve:
        promote(home, release.id)
    return release


def promote(home: Path, release: str) -> None:
    """Make a release the one that serves, in one rename. Raises ModelRejected if it is not whole."""
    open_release(releases_folder(home) / release)
    part = releases_folder(home) / f"{CHAMPION}.{os.getpid()}.part"
    _write(part, msgspec.json.encode({"release": release}))
    part.replace(releases_folder(home) / CHAMPION)
    _sync(releases_folder(home))


def champion(home: Path) -> Path | None:
    """The folder of the release that serves, or None before the first. `open_release` says whether it is whole."""
    pointer = releases_folder(home) / CHAMPION
    try:
        name = msgspec.json.decode(pointer.read_bytes(), type=dict[str, str]).get("release", "")
    except FileNotFoundError:
        return None
    except UNREADABLE:
        name = ""
    if not _NAME.fullmatch(name):
        raise ModelRejected(f"{pointer} names no release; `slatecast releases promote` names one")
    return releases_folder(home) / name


def last_served(home: Path) -> Path | None:
    """The folder of the release that a ranker opened last, or None where that is not known."""
    try:
        name = msgspec.json.decode((releases_folder(home) / SERVED).read_bytes(), type=str)
    except (OSError, *UNREADABLE):
        return None
    return releases_folder(home) / name if _NAME.fullmatch(name) else None


def remember(home: Path, release: str) -> None:
    """For a ranker's next start. Not worth a failure: without it, that start has no more than the champion."""
    part = releases_folder(home) / f"{SERVED}.{os.getpid()}.part"
    try:
        part.write_bytes(msgspec.json.encode(release))
        part.replace(releases_folder(home) / SERVED)
    except OSError as error:
        log.warning("%s cannot be written: %s", releases_folder(home) / SERVED, error.strerror)


def list_releases(home: Path) -> tuple[list[Release], list[str]]:
    """Releases by what their manifests say, oldest first, and the names of those that say nothing readable.

    Their other files are not looked at: `open_release` does that.
    """
    found, unreadable = [], []
    for folder in releases_folder(home).glob("[0-9a-f]" * 16):
        try:
            found.append(Release(folder.name, folder, _read_manifest(folder)))
        except ModelRejected:
            unreadable.append(folder.name)
    return sorted(found, key=lambda release: (release.manifest.created_ts_ms, release.id)), sorted(unreadable)


def outdated(home: Path, keep: int) -> list[Release]:
    """All but the newest `keep`, the champion, and what was served last. What cannot be read is nobody's to judge."""
    in_use = {champion(home), last_served(home)}
    releases = list_releases(home)[0]
    return [release for release in releases[: max(len(releases) - keep, 0)] if release.folder not in in_use]


def remove(home: Path, releases: Sequence[Release]) -> None:
    """Delete releases: each out of the way in one rename, then file by file, so that no half of one is ever opened."""
    for release in releases:
        release.folder.replace(release.folder.with_name(f"removed-{release.id}"))
    for aside in releases_folder(home).glob("removed-*"):  # those of a removal that was cut short, too
        shutil.rmtree(aside)


def open_release(folder: Path) -> Release:
    """A release whose files are what its manifest says. Raises ModelRejected naming the file that is not.

    A tenth of a second for 100 MB: each byte is read once.
    """
    manifest = _read_manifest(folder)
    there = set(_regular_files(folder)) - {MANIFEST}
    for name in sorted(there ^ set(manifest.files)):
        raise ModelRejected(f"{folder / name} is {'not in the manifest' if name in there else 'missing'}")
    for name, entry in manifest.files.items():
        if (size := (folder / name).stat().st_size) != entry.size:
            raise ModelRejected(f"{folder / name} is not the file that was released ({size} bytes, not {entry.size})")
        if file_sha256(folder / name) != entry.sha256:
            raise ModelRejected(f"{folder / name} is not the file that was released (sha256 differs)")
    return Release(folder.name, folder, manifest)


def _read_manifest(folder: Path) -> Manifest:
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise ModelRejected(
            f"{folder} is no release: {MANIFEST}: {error.strerror}; `slatecast train` makes one"
        ) from None
    if _id(data) != folder.name or folder.is_symlink():
        raise ModelRejected(f"{folder / MANIFEST} was altered or moved: its digest is not the folder's name")
    try:
        if (found := msgspec.json.decode(data, type=_Format).format) != FORMAT:
            raise ModelRejected(
                f"{folder} has format {found}, this version reads {FORMAT}: install the version it is of"
            )
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise ModelRejected(f"{folder / MANIFEST} is no manifest: {error}") from None


class _Format(msgspec.Struct):
    """The one field that a manifest of any format has."""

    format: int


def _regular_files(folder: Path) -> list[str]:
    """Paths inside a folder, sorted. Raises ModelRejected at anything that is neither a folder nor a plain file."""
    names = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ModelRejected(f"{path} is a link or no plain file: a release holds neither")
        if path.is_file():
            if path.suffix not in SUFFIXES:
                raise ModelRejected(f"{path} is of a kind that a release may not hold; it holds {sorted(SUFFIXES)}")
            names.append(path.relative_to(folder).as_posix())
    return names


def _id(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()[:16]


def file_sha256(file: Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write and wait until it is on the disk."""
    with path.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    _sync(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until all that is in a folder is on the disk, so that a rename after it is not there before it."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
