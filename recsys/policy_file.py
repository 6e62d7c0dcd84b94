"""A policy as text, TOML or JSON: read whole or refused, with every mistake named by its line and its key.

A file that has a table `policy` (the settings file) is read from there. No I/O: the command line, the settings and the
ranker bring the text. `recsys/policy.py` has the knobs and their limits.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import msgspec

from recsys.errors import Misuse
from recsys.knobs import allowed, rule_of
from recsys.policy import Policy

Path = tuple[str | int, ...]
_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")
_TABLES = re.compile(r"\s*\[\[\s*([\w.-]+)\s*\]\]")
_TABLE = re.compile(r"\s*\[\s*([\w.-]+)\s*\]\s*(#.*)?$")
_KEY = re.compile(r"""\s*["']?([\w-]+)["']?\s*=""")


class Mistake(msgspec.Struct, frozen=True):
    """One thing that is wrong. line: from 1, or 0 if no line can be named; where: the key, as `caps[0].most`."""

    line: int
    where: str
    what: str

    def __str__(self) -> str:
        """Without the file's name."""
        return f"line {self.line}: {self.said}" if self.line else self.said

    @property
    def said(self) -> str:
        """Without the line, too."""
        return f"{self.where}: {self.what}" if self.where else self.what


def read_policy(text: str) -> Policy:
    """The policy that a text says; what it leaves out is the default. Raises Misuse with all that is wrong.

    >>> read_policy("strength = 0.3") == read_policy('{"strength": 0.3}') == Policy(strength=0.3)
    True
    >>> read_policy("strenght = 0.3")
    Traceback (most recent call last):
    recsys.errors.Misuse: line 1: strenght: there is no such knob; the nearest is strength
    """
    table, mistakes = check_policy(text)
    if mistakes:
        raise Misuse("; ".join(map(str, mistakes)))
    return msgspec.convert(table, Policy)


def check_policy(text: str) -> tuple[dict[str, Any], list[Mistake]]:
    """The knobs that a text turns, as plain values, and every mistake in it, by line.

    >>> [str(mistake) for mistake in check_policy("voices = -1\\n[[caps]]\\nattribute = 'brand'\\nmots = 2")[1]]
    ['line 1: voices: Expected `int` >= 0', 'line 4: caps[0].mots: there is no such key; the nearest is most']
    """
    try:
        found = msgspec.json.decode(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        return {}, [Mistake(0, "", f"not JSON: {error}")]
    except ValueError as error:  # of the parser, or of a number with thousands of digits
        said = _AT_LINE.search(str(error))
        return {}, [Mistake(int(said[1]) if said else 0, "", f"not TOML: {_AT_LINE.sub('', str(error))}")]
    except RecursionError:
        return {}, [Mistake(0, "", "nested too deeply to be a policy")]
    inside: Path = ("policy",) if "policy" in found else ()
    table = found["policy"] if inside else found
    lines = _lines(text)
    wrong = (
        [] if inside == () else [((k,), "it stands outside [policy]") for k in found if k in Policy.__struct_fields__]
    )
    mistakes = []
    for path, what in [*wrong, *_check(table, Policy, inside)]:
        at = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), 0)
        where = _said(path[len(inside) :] if path[:1] == inside else path)
        mistakes.append(Mistake(at, _plain(where), _plain(what)))
    return (table if isinstance(table, dict) else {}), sorted(mistakes, key=lambda mistake: mistake.line)


def _check(table: Any, kind: type[msgspec.Struct], path: Path) -> Iterator[tuple[Path, str]]:
    """Every mistake in a table that should be of a kind: the decoder alone stops at the first."""
    if not isinstance(table, dict):
        yield path, "Expected a table of keys"
        return
    hints, good, clean = get_type_hints(kind, include_extras=True), {}, True
    for key, value in table.items():
        if key not in hints:
            near = difflib.get_close_matches(key, list(hints), n=1, cutoff=0.0)
            word = "knob" if kind is Policy else "key"
            yield (*path, key), f"there is no such {word}; the nearest is {near[0]}"
            continue
        found = list(_check_value(value, hints[key], (*path, key)))
        yield from found
        clean = clean and not found
        if not found:
            good[key] = value
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in table:
            yield path, f"it lacks {field.name}"
            clean = False
    if clean or kind is Policy:  # a rule that lacks something cannot be made, so nothing more is known of it
        try:
            msgspec.convert(good, kind)
        except msgspec.ValidationError as error:
            yield from ((path, what) for what in str(error).split("; "))


def _check_value(value: Any, hint: Any, path: Path) -> Iterator[tuple[Path, str]]:
    rule = rule_of(get_args(hint)[0])
    if rule is not None and isinstance(value, list):
        for at, one in enumerate(value):
            yield from _check(one, rule, (*path, at))
        return
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        what, _, inner = str(error).partition(" - at `$")
        if what.startswith("Invalid enum value"):
            what += f"; there are {allowed(hint)}"
        index = re.fullmatch(r"\[(\d+)\]`", inner)
        yield (*path, int(index[1])) if index else path, what
    else:
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            yield path, "Expected a finite number"


def _said(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _plain(text: str) -> str:
    """Strangers' keys in a line of a log: no line breaks, and an end."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:200])


def _lines(text: str) -> dict[Path, int]:
    """On which line of a TOML text each key and table stands. The parser does not tell; what is written unusually
    (dotted keys, inline tables) is found by the line of what it stands in.
    """
    found: dict[Path, int] = {}
    inside: Path = ()
    count: dict[Path, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if tables := _TABLES.match(line):
            name: Path = tuple(tables[1].split("."))
            inside = (*name, count.get(name, 0))
            count[name] = count.get(name, 0) + 1
        elif table := _TABLE.match(line):
            inside = tuple(table[1].split("."))
        elif key := _KEY.match(line):
            found.setdefault((*inside, key[1]), number)
            continue
        else:
            continue
        found.setdefault(inside, number)
        for end in range(1, len(inside)):
            found.setdefault(inside[:end], number)
    return found
