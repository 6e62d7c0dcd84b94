"""The published answer: ordered items with score, source and reason; what caused it and what made it.

Travels on the topic `slates` (key = user) and stands in Redis; push services and subscribers read it.
"""

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

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


class Gain(msgspec.Struct, frozen=True):
    """Why an item has its place: what it added to the list when it was chosen, in parts that sum to its gain.

    relevance ≥ 0 on the policy's scale; novelty: what being unlike the items above (and those shown lately) is worth,
    0 = nothing lost; coverage ≥ 0; penalty ≤ 0. `said`: the same in words.
    """

    relevance: float
    novelty: float
    coverage: float
    penalty: float
    said: str


class Relaxed(msgspec.Struct, frozen=True, omit_defaults=True):
    """A limit that could not be kept. slot: where, from 0, or -1 for the list as a whole; missing: of a minimum."""

    rule: str
    slot: int = -1
    missing: int = 0


class SlateItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One place of a list. score: higher is better, comparable within the list only; gain: if the policy shows it.

    propensity: only of an item that was drawn to learn of it (recsys/explore.py): its probability in this slot, given
    those drawn above it.
    """

    item: str
    title: str
    score: float
    source: str
    reason: str
    gain: Gain | None = None
    propensity: Annotated[float, Meta(gt=0, le=1)] | None = None


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
    relaxed: tuple[Relaxed, ...] = ()


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
