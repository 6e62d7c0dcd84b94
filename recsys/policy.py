"""The knobs of a slate: what an operator may turn without training anything.

Validated when decoded (unknown keys are refused); its digest stands in every slate, so that a list can always be
traced to the settings that made it.
"""

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=1000)]
Slot = Annotated[int, Meta(ge=0, le=99)]  # 0 is the first
Attribute = Literal["brand", "category_1", "category_2", "category_3", "price_band"]  # what a cap counts


class _Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where not all rules can hold, the one with the lowest priority gives way, and the slate says so."""

    priority: Annotated[int, Meta(ge=0, le=100)] = 1


class Cap(_Rule, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most `most` of one brand, category at a level, or price band in any `within` slots in a row (0: in the list)."""

    attribute: Attribute
    most: Annotated[int, Meta(ge=1, le=100)] = 1
    within: Annotated[int, Meta(ge=0, le=100)] = 0


class Minimum(_Rule, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At least `least` items of a brand, below a category path, with a tag, or new in the shop (value is not read)."""

    kind: Literal["brand", "category", "tag", "new"]
    value: str = ""
    least: Annotated[int, Meta(ge=1, le=100)] = 1


class Sponsored(_Rule, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Slots for items with a tag, which stand nowhere else."""

    slots: Annotated[tuple[Slot, ...], Meta(min_length=1, max_length=100)]
    tag: Annotated[str, Meta(min_length=1)] = "sponsored"
    priority: Annotated[int, Meta(ge=0, le=100)] = 2


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An item that stands in a slot whenever it is a candidate of the user's."""

    slot: Slot
    item: str


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How lists are made. The defaults are what the demo runs."""

    slate_size: Annotated[int, Meta(ge=1, le=100)] = 10
    repeats: Literal["all", "new"] = "all"  # may a list offer what the user already bought?
    per_source: Annotated[int, Meta(ge=1, le=500)] = 60  # candidates asked of each source
    candidates: Annotated[int, Meta(ge=1, le=2000)] = 200  # scored per slate
    shortlist: Annotated[int, Meta(ge=1, le=500)] = 60  # of them, those the diversifier sees
    voices: Count = 3  # best items of every source that reach the shortlist whatever their score
    diversity: Literal["none", "mmr", "max_sum", "dpp", "ssd"] = "dpp"  # recsys/diversify/options.py has the formulas
    strength: Share = 0.15  # 0 = relevance only
    window: Count = 0  # only the last so many items repel the next; 0 = all above it
    blend: Share = 0.9  # how much of the likeness counts (dpp, ssd); 1 = lists longer than the vectors' rank run out
    remember: Annotated[int, Meta(ge=0, le=100)] = 0  # of the items shown last, so many repel as if they stood above
    remember_h: Annotated[float, Meta(gt=0)] = 24.0  # … and an item's repulsion falls to a third after so long
    coverage: Literal["none", "root", "log", "xquad", "calibration"] = "none"  # of the user's own kinds of things
    coverage_of: Attribute = "category_2"
    coverage_weight: Annotated[float, Meta(ge=0, le=100)] = 0.5
    caps: tuple[Cap, ...] = ()
    minimums: tuple[Minimum, ...] = ()
    sponsored: tuple[Sponsored, ...] = ()
    pins: tuple[Pin, ...] = ()
    price_bands: tuple[Annotated[float, Meta(gt=0)], ...] = ()  # where one ends and the next begins, ascending
    variants: str = "product:"  # items with the same tag that begins so are one product, shown once; "" = no such tags
    show_gains: bool = False  # each item says what it added to the list, in four parts and in words
    # Times an item's share of all that is shown: what it loses of its probability to stay (recsys/exposure.py); 0 = nothing
    exposure_penalty: Annotated[float, Meta(ge=0, le=1000)] = 5.0
    intent: Annotated[float, Meta(ge=0, le=100)] = 2.0  # weight of the live visit's pull, in logits
    cooldown_h: Annotated[float, Meta(ge=0)] = 4.0  # a bought item is not offered again for so long
    fatigue_shown: Count = 3  # shown so often in a week without a touch: no longer a candidate
    new_days: Annotated[float, Meta(ge=0)] = 14.0  # an item is new for so long
    late_h: Annotated[float, Meta(ge=0)] = 24.0  # an event that arrives later changes the profile, but makes no slate

    def __post_init__(self) -> None:
        """What no single field shows: bands in order, a slot or an item pinned once, few enough rules."""
        if list(self.price_bands) != sorted(set(self.price_bands)):
            raise ValueError("price_bands must ascend")
        if len({pin.slot for pin in self.pins}) < len(self.pins) or len({pin.item for pin in self.pins}) < len(
            self.pins
        ):
            raise ValueError("pins must name each slot and each item once")
        if len(self.caps) + len(self.minimums) + len(self.sponsored) > 62:
            raise ValueError("at most 62 caps, minimums and sponsored rules")

    def digest(self) -> str:
        """Eight bytes of the settings, in hexadecimal.

        >>> Policy().digest() == Policy().digest() != Policy(strength=0.2).digest()
        True
        """
        return hashlib.blake2b(msgspec.json.encode(self), digest_size=8).hexdigest()
