"""The poison corpus: what strangers may send, and what becomes of it. `read_corpus` gives every kind with its verdict.

Small kinds are files beside their verdicts (corpus/verdicts.toml); those of megabytes, and those whose time is close to
now, are made here. `python tests/corpus_helpers.py FOLDER` writes all of them into a folder, for other tools.
"""

import sys
import time
import tomllib
from base64 import b64encode
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from recsys.events import decode_event, event_hash
from recsys.profiles import EMPTY, Profile, apply, encode_profile

FOLDER = Path(__file__).parent / "corpus"
T = 1_700_000_000_000  # of every event that says nothing else
REJECTED = ("decode", "schema", "range", "oversize", "duplicate_conflict")


class Kind(msgspec.Struct, frozen=True):
    """One record that may arrive, and the verdict on it. after: names of kinds that have to come before."""

    name: str
    verdict: str
    why: str
    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    after: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """bytes, json, schema, values, sequence, text, headers or items."""
        return self.name.partition("/")[0]

    @property
    def size(self) -> int:
        """Bytes in all."""
        pairs = ((name.encode(), value) for name, value in self.headers)
        return sum(len(part) for part in (self.key or b"", self.value or b"", *sum(pairs, ())))


def read_corpus(now_ms: int | None = None) -> list[Kind]:
    """Every kind, each after those that it needs. now_ms: when they are to arrive; now, if nothing is said."""
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    table = tomllib.loads((FOLDER / "verdicts.toml").read_text("utf-8"))
    return [
        kind
        for group, kinds in table.items()
        for name, row in kinds.items()
        for kind in _kinds(f"{group}/{name}", row, now_ms)
    ]


def _kinds(name: str, row: dict[str, Any], now_ms: int) -> list[Kind]:
    headers, null, made = row.get("headers", ()), row.get("null"), row.get("made")
    key = bytes.fromhex(row["key_hex"]) if "key_hex" in row else row.get("key", name).encode()
    make = partial(
        Kind,
        verdict=row["verdict"],
        why=row.get("why", ""),
        topic=row.get("topic", "events"),
        key=None if null == "key" else key,
        headers=MADE_HEADERS[headers]() if isinstance(headers, str) else tuple((n, _bytes(v)) for n, v in headers),
        after=tuple(row.get("after", ())),
    )
    if made == "truncated":
        whole = _click(name, b'"id":"e-1","session":"s"')
        places = [at for at in range(1, len(whole)) if not whole[at - 1 : at].isdigit()]
        return [make(name=f"{name}-{at}", value=whole[:at]) for at in places[:: len(places) // 20][:20]]
    if null == "value":
        return [make(name=name, value=None)]
    return [make(name=name, value=MADE[made](name, now_ms) if made else _file(name))]


def _file(name: str) -> bytes:
    text, binary = FOLDER / f"{name}.json", FOLDER / f"{name}.bin"
    return (text if text.exists() else binary).read_bytes()


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[4:]) if text.startswith("hex:") else text.encode()


def _click(user: str, more: bytes = b"", ts_ms: int = T) -> bytes:
    return b'{"type":"click","user":"%s","item":"i1","ts_ms":%d%s}' % (user.encode(), ts_ms, b"," * bool(more) + more)


def _ahead(hours: float, name: str, now_ms: int) -> bytes:
    return _click(name, ts_ms=now_ms + round(hours * 3_600_000))


def _fields(count: int, more: bytes = b"") -> bytes:
    return b",".join([b'"x%d":1' % n for n in range(count)]) + more


def _up_to(size: int, name: str) -> bytes:
    """An event of that many bytes."""
    return _click(name, b'"x":"' + b"x" * (size - len(_click(name, b'"x":""'))) + b'"')


Make = Callable[[str, int], bytes]
MADE: dict[str, Make] = {
    "ahead_10_min": partial(_ahead, 1 / 6),
    "ahead_14_h": partial(_ahead, 14),
    "ahead_25_h": partial(_ahead, 25),
    "depth": lambda name, now_ms: _click(name, b'"x":' + b"[" * 100_000 + b"]" * 100_000),
    "depth_open": lambda name, now_ms: b'{"x":' + b"[" * 200_000,
    "many_keys": lambda name, now_ms: _click(name, _fields(20_000)),
    "many_keys_twice": lambda name, now_ms: _click(name, _fields(20_000, b',"x19999":1')),
    "million_keys": lambda name, now_ms: _click(name, b",".join([b'"x":1'] * 1_000_000)),
    "string_200kb": lambda name, now_ms: _click(name, b'"x":"' + b"x" * 200_000 + b'"'),
    "string_900kb": lambda name, now_ms: _click(name, b'"x":"' + b64encode(Random(7).randbytes(690_000)) + b'"'),
    "string_30mb": lambda name, now_ms: _click(name, b'"x":"' + b"x" * 30_000_000 + b'"'),
    "colons_200kb": lambda name, now_ms: _click(name, b'"x":"' + b":" * 200_000 + b'"'),
    "escapes_200kb": lambda name, now_ms: _click(name, b'"x":"' + b'\\"' * 100_000 + b'"'),
    "list_100000": lambda name, now_ms: _click(name, b'"x":[' + b",".join([b"1"] * 100_000) + b"]"),
    "lists_60000": lambda name, now_ms: _click(name, b'"x":[' + b",".join([b"[]"] * 60_000) + b"]"),
    "name_64kb": lambda name, now_ms: _click(name, b'"' + b"x" * 65_536 + b'":1'),
    "name_64kb_twice": lambda name, now_ms: _click(name, b",".join([b'"' + b"x" * 65_536 + b'":1'] * 2)),
    "limit": lambda name, now_ms: _up_to(256 * 1024, name),
    "limit_plus_one": lambda name, now_ms: _up_to(256 * 1024 + 1, name),
    "oversize_item": lambda name, now_ms: b'{"item":"%s","title":"%s"}' % (name.encode(), b"x" * 300_000),
}
MADE_HEADERS: dict[str, Callable[[], tuple[tuple[str, bytes], ...]]] = {
    "many": lambda: tuple((f"h{n}", b"%d" % n) for n in range(1000)),
    "megabyte": lambda: (("h", Random(7).randbytes(900_000)),),
    "megabytes": lambda: (("h", bytes(30_000_000)),),
}


def main() -> None:
    """Write every kind into a folder: values only, a tombstone as no file."""
    folder = Path(sys.argv[1])
    for kind in read_corpus():
        if kind.value is not None:
            file = folder / f"{kind.name}.bin"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(kind.value)


def expected_profiles(kinds: Iterable[Kind]) -> dict[str, bytes]:
    """What is used, computed directly."""
    profiles: dict[str, Profile] = {}
    for kind in kinds:
        if kind.verdict == "used":
            event = decode_event(kind.value or b"")
            before = profiles.get(event.user, EMPTY)
            profiles[event.user] = apply(before, event, event_hash(event, kind.value or b""))
    return {user: encode_profile(profile) for user, profile in profiles.items()}


if __name__ == "__main__":
    main()
