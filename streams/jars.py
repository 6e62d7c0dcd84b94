"""Kafka's program files: locked by sha256 in deploy/kafka/jars.lock, fetched once, compared before every start.

The lock names exactly the jars of Apache Kafka's server, so nothing is resolved here: jgo only brings each coordinate
from Maven Central. Called by embedded.py, `slatecast kafka fetch` and the doctor.
"""

import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from recsys.errors import Unavailable, how_to_install

KAFKA = "org.apache.kafka:kafka_2.13"
REMEDY = how_to_install("demo")


def deploy_file(name: str) -> Path:
    """A file of deploy/, in a checkout or in an installed wheel."""
    inside = Path(__file__).parent / "deploy" / name
    return inside if inside.exists() else Path(__file__).parents[1] / "deploy" / name


class Jar(msgspec.Struct, frozen=True):
    """One line of deploy/kafka/jars.lock."""

    sha256: str
    group: str
    artifact: str
    version: str

    @property
    def file(self) -> str:
        """Its name in the jars folder."""
        return f"{self.artifact}-{self.version}.jar"


def locked_jars() -> list[Jar]:
    """The jars as committed."""
    lines = deploy_file("kafka/jars.lock").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    return [Jar(sha256, *coordinates.split(":")) for sha256, coordinates in rows]


def kafka_version() -> str:
    """The version of Apache Kafka that is locked."""
    return next(jar.version for jar in locked_jars() if f"{jar.group}:{jar.artifact}" == KAFKA)


def jars_folder(home: Path) -> Path:
    """Where the jars lie."""
    return home / "kafka" / f"jars-{kafka_version()}"


def verify_jars(home: Path) -> list[Jar]:
    """The locked jars that are missing or differ from their sha256. 44 MB, .1 s."""
    folder = jars_folder(home)
    return [jar for jar in locked_jars() if _sha256(folder / jar.file) != jar.sha256]


def fetch_kafka(home: Path, progress: Callable[[int, int, str], None] = lambda done, of, name: None) -> Path:
    """Fetch the jars that are not yet there, and check every one. Raises Unavailable naming what could not be had."""
    folder = jars_folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    missing = verify_jars(home)
    if missing:
        if importlib.util.find_spec("jgo") is None:
            raise Unavailable(f"jgo, which fetches Kafka's jars, is not installed; {REMEDY}")
        from jgo.maven import MavenContext

        # A cache of our own: jgo would hard-link out of the user's Maven cache.
        with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
            maven = MavenContext(repo_cache=Path(cache), timeout=60)
            for done, jar in enumerate(missing):
                progress(done, len(missing), jar.file)
                _fetch(maven, jar, Path(cache) / "checked.jar").replace(folder / jar.file)
        progress(len(missing), len(missing), "")
    return folder


def _fetch(maven: "object", jar: Jar, to: Path) -> Path:
    """A checked copy of the jar, never the file itself: it may be the user's own cache that jgo took it from."""
    try:
        found = maven.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()  # type: ignore[attr-defined]
    except Exception as error:  # jgo raises RuntimeError, OSError and requests' errors alike: all mean "not to be had"
        raise Unavailable(
            f"{jar.group}:{jar.artifact}:{jar.version} could not be had from Maven Central ({type(error).__name__}); "
            "with a network, try again; without one, copy the jars named in deploy/kafka/jars.lock into HOME/kafka/"
            f"jars-{kafka_version()}"
        ) from error
    shutil.copyfile(found, to)
    if _sha256(to) != jar.sha256:
        raise Unavailable(f"{jar.file} is not the jar locked in deploy/kafka/jars.lock: do not use this registry")
    return to


def _sha256(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""
