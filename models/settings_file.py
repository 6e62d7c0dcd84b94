"""Settings of training as a TOML file: read whole, or written with every key's type, unit and reason.

A file is checked whole: an unknown key, a wrong type or a value out of range is refused with the nearest that is known.
What may be turned: train_settings.py, text_settings.py. How a shop is set up is another file (streams/settings.py).
Called by the command line.
"""

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from recsys.errors import Misuse

T = TypeVar("T", bound=msgspec.Struct)


def setting(unit: str, reason: str, **limits: Any) -> Meta:
    """What a key says of itself. limits: as of msgspec.Meta."""
    return Meta(description=reason, extra={"unit": unit}, **limits)


def read_settings(kind: type[T], command: str, file: Path | None, changes: Sequence[str] = ()) -> T:
    """Settings of a command's file, some changed by NAME=VALUE; without a file the defaults.

    Raises Misuse that says what to write instead.
    """
    help_ = f"`slatecast {command} --print-settings`"
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise Misuse(f"{file}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Misuse(f"{file}: not TOML: {error}") from None
    known = kind.__struct_fields__
    for name, value in (change.partition("=")[::2] for change in changes):
        lists = isinstance(getattr(kind(), name, None), tuple)
        written = f"0{value}" if value.startswith(".") else value  # .95, as people write it
        values[name] = [part for part in value.split(",") if part] if lists else written
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0)[0]
            raise Misuse(f"no setting is called {name!r}; did you mean {near!r}? {help_} lists them all")
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Misuse(f"{file or 'settings'}: {error}; {help_} says what may be there") from None


def describe(settings: msgspec.Struct, command: str) -> str:
    """The settings as a TOML file, each with its type, its unit and its reason."""
    lines = [f"# slatecast {command} --settings FILE"]
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        kind, (meta,) = hint.__origin__, hint.__metadata__
        of = " | ".join(kind.__args__) if get_origin(kind) is Literal else getattr(kind, "__name__", str(kind))
        unit = f", {meta.extra['unit']}" if meta.extra["unit"] else ""
        value = msgspec.json.encode(getattr(settings, name)).decode()
        lines += ["", f"# {of}{unit}: {meta.description}", f"{name} = {value}"]
    return "\n".join(lines)
