"""Where Kafka and Redis are, and under which names: from a file, the environment and options, in that order.

Nothing here opens a connection. Secrets belong into the environment (SLATECAST_REDIS, and SLATECAST_KAFKA_SASL_PASSWORD
for `sasl.password`, likewise any librdkafka key) and are never printed.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from recsys.errors import UNREADABLE, Misuse
from recsys.policy import Policy
from recsys.policy_file import check_policy

Value = str | int | float | bool


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every role is told. `kafka` passes any librdkafka key through (TLS, SASL); clients.py refuses a few."""

    bootstrap: str = ""  # host:port,… of a cluster; empty: the services of `slatecast up`, if they run
    redis: str = ""  # redis://… or rediss://…
    prefix: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9._-]*$", max_length=100)] = "slatecast."  # one per tenant
    partitions: Annotated[int, Meta(ge=1, le=10_000)] = 4  # fixed for the life of the topics: growth is a replay
    replication: Annotated[int, Meta(ge=1, le=10)] = 1  # 3 on a cluster
    home: str = "var"  # models, jars, copies of state, data of the embedded services
    state: Literal["memory", "disk"] = "memory"  # disk: for more profiles than memory holds; a tenth slower
    metrics_port: Annotated[int, Meta(ge=0, le=65_000)] = 0  # of the first role, the next has the next; 0: none
    metrics_host: str = ""  # the address of this machine that it listens on; empty: all of IPv4
    # auto: a GPU where there is one; require: no list without; fast: where there is one, half precision and CUDA graphs.
    gpu: Literal["auto", "require", "fast"] = "auto"
    # The deep stage (models/deep.py), off by default: a decoder's folder, or the name of one in a package.
    deep: str = ""
    deep_weight: Annotated[float, Meta(ge=0, le=10)] = 0.1  # in logits, for one deviation of its scores over a list
    # Seconds for the lists of one batch. Less than the watchdog's 5 less the second that each of three scorers may hang.
    deep_deadline_s: Annotated[float, Meta(gt=0, le=1.9)] = 1.5
    kafka: dict[str, Value] = {}
    policy: Policy = Policy()

    def __repr__(self) -> str:
        """For logs and tracebacks: which Kafka keys are set, not to what."""
        return (
            f"Settings(bootstrap={self.bootstrap!r}, redis={hide_secrets(self.redis)!r}, prefix={self.prefix!r}, "
            f"home={self.home!r}, kafka={sorted(self.kafka)})"
        )


ENVIRONMENT = {
    "bootstrap": "SLATECAST_BOOTSTRAP",
    "redis": "SLATECAST_REDIS",
    "prefix": "SLATECAST_PREFIX",
    "home": "SLATECAST_HOME",
}
KAFKA_ENVIRONMENT = "SLATECAST_KAFKA_"


def load_settings(file: Path | None, options: Mapping[str, str | None], environ: Mapping[str, str]) -> Settings:
    """Settings of a TOML file, overridden by the environment, overridden by options. Raises Misuse."""
    merged: dict[str, object] = {}
    text = ""
    if file is not None:
        try:
            text = file.read_text("utf-8-sig")  # as Windows' editors write it, too
            merged.update(tomllib.loads(text))
        except FileNotFoundError:
            raise Misuse(f"{file}: no such file; leave --config out to run on defaults") from None
        except OSError as error:
            raise Misuse(f"{file}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Misuse(f"{file}: not TOML: {error}") from None
    merged.update({key: environ[name] for key, name in ENVIRONMENT.items() if environ.get(name)})
    merged.update({key: value for key, value in options.items() if value is not None})
    secret = {
        name.removeprefix(KAFKA_ENVIRONMENT).lower().replace("_", "."): value
        for name, value in environ.items()
        if name.startswith(KAFKA_ENVIRONMENT)
    }
    written = merged.get("kafka", {})
    if secret and isinstance(written, dict):
        merged["kafka"] = {**written, **secret}
    if isinstance(merged.get("policy"), dict):
        wrong = check_policy(text)[1]
        if wrong:
            raise Misuse("; ".join(f"{file}: {mistake}" for mistake in wrong))
    try:
        settings = msgspec.convert(merged, Settings)
    except msgspec.ValidationError as error:
        known = ", ".join(Settings.__struct_fields__)
        raise Misuse(f"{file or 'settings'}: {error}. Known settings: {known}") from None
    return settings if settings.bootstrap else _embedded(settings)


class Running(msgspec.Struct, frozen=True):
    """What `slatecast up` leaves in its home, so that other commands find it."""

    pid: int
    bootstrap: str
    redis: str


def running_file(home: str) -> Path:
    """Where that is written."""
    return Path(home) / "up.json"


def _embedded(settings: Settings) -> Settings:
    """Settings pointing to the services of `slatecast up`, if its process lives."""
    try:
        running = msgspec.json.decode(running_file(settings.home).read_bytes(), type=Running)
        os.kill(running.pid, 0)
    except (OSError, *UNREADABLE):
        return settings
    return msgspec.structs.replace(settings, bootstrap=running.bootstrap, redis=settings.redis or running.redis)


def hide_secrets(url: str) -> str:
    """A URL fit for a terminal or a log: without user, password and query, be it no URL since a password has a / or [.

    >>> hide_secrets("rediss://shop:secret@cache:6379/0?password=x")
    'rediss://cache:6379/0'
    >>> hide_secrets("redis://:sec/[ret@cache:6379/0"), hide_secrets("redis://cache?password=sec@ret")
    ('redis://cache:6379/0', 'redis://…')
    """
    scheme, sign, rest = url.partition("://") if "://" in url else ("", "", url)
    account, _, place = rest.rpartition("@")
    if "?" in account:  # in a password, or the @ is in that of a query
        place = "…"
    return f"{scheme}{sign}{re.split('[?#]', place)[0]}"
