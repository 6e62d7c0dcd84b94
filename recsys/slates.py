"""The published answer: ordered items with score, source and reason; what caused it and what made it.

Travels on the topic `slates` (key = user) and stands in Redis; push services and subscribers read it.
"""

import hashlib

import msgspec

SLATE_SCHEMA = "slatecast.slate.v1"


class Cause(msgspec.Struct, frozen=True):
    """The event that made this list."""

    topic: str
    partition: int
    offset: int
    type: str
    ts_ms: int


class Versions(msgspec.Struct, frozen=True):
    """What made this list: release of the models, digest of the policy, counts of catalogue and signals changes."""

    release: str
    policy: str
    catalogue: int
    signals: int


class SlateItem(msgspec.Struct, frozen=True):
    """One place of a list. score: higher is better, comparable within the list only."""

    item: str
    title: str
    score: float
    source: str
    reason: str


class Slate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One list for one user. freshness_ms: from the event's arrival on Kafka to the making of the list."""

    id: str
    user: str
    items: tuple[SlateItem, ...]
    cause: Cause
    versions: Versions
    scorer: str
    made_ts_ms: int
    freshness_ms: int
    degraded_reason: str | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Slate)
encode_slate = _encoder.encode
decode_slate = _decoder.decode


def slate_id(user: str, cause: Cause) -> str:
    """A deterministic name: the same event makes the same slate, however often it is processed.

    >>> slate_id("u1", Cause("events", 0, 7, "click", 1)) == slate_id("u1", Cause("events", 0, 7, "click", 2))
    True
    """
    name = f"{cause.topic}\0{cause.partition}\0{cause.offset}\0{user}"
    return hashlib.blake2b(name.encode(), digest_size=12).hexdigest()
