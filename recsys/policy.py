"""The knobs of a slate: what an operator may turn without training anything.

Validated when decoded (unknown keys are refused); its digest stands in every slate, so that a list can always be
traced to the settings that made it. What a knob is for and in which unit stands at the knob: `recsys/knobs.py` reads it
for people, `recsys/policy_file.py` reads files and finds every mistake in one.
"""

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=1000)]
Slot = Annotated[int, Meta(ge=0, le=99)]  # 0 is the first
Attribute = Literal["brand", "category_1", "category_2", "category_3", "price_band"]  # what a cap counts


def knob(unit: str, reason: str, *, ge: float | None = None, le: float | None = None) -> Meta:
    """What a knob is counted in, what it is for, and its limits. The only place where that is said."""
    return Meta(description=reason, extra={"unit": unit}, ge=ge, le=le)


class _Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where not all rules can hold, the one with the lowest priority gives way, and the slate says so."""

    priority: Annotated[int, knob("rank", "where not all rules can hold, the lowest gives way", ge=0, le=100)] = 1


class Cap(_Rule, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most `most` of one brand, category at a level, or price band in any `within` slots in a row (0: in the list)."""

    attribute: Annotated[Attribute, knob("name", "of what it counts")]
    most: Annotated[int, knob("items", "so many of one of them", ge=1, le=100)] = 1
    within: Annotated[int, knob("slots", "in so many slots in a row; 0 = in the list", ge=0, le=100)] = 0


class Minimum(_Rule, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At least `least` items of a brand, below a category path, with a tag, or new in the shop (value is not read)."""

    kind: Annotated[Literal["brand", "category", "tag", "new"], knob("name", "by what an item belongs to it")]
    value: Annotated[str, knob("text", "which brand, category path or tag; not read for new")] = ""
    least: Annotated[int, knob("items", "so many in the list", ge=1, le=100)] = 1


class Sponsored(_Rule, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Slots for items with a tag, which stand nowhere else."""

    slots: Annotated[
        tuple[Slot, ...], Meta(min_length=1, max_length=100), knob("slots", "their places; 0 is the first")
    ]
    tag: Annotated[str, Meta(min_length=1), knob("text", "which items may stand there")] = "sponsored"
    priority: Annotated[int, knob("rank", "where not all rules can hold, the lowest gives way", ge=0, le=100)] = 2


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An item that stands in a slot whenever it is a candidate of the user's."""

    slot: Annotated[Slot, knob("slot", "where it stands; 0 is the first")]
    item: Annotated[str, knob("id", "which item")]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How lists are made. The defaults are what the demo runs."""

    slate_size: Annotated[int, knob("items", "how long a list is", ge=1, le=100)] = 10
    repeats: Annotated[
        Literal["all", "new"], knob("choice", "may a list offer what the user already bought? new = no")
    ] = "all"
    clicks: Annotated[
        float,
        knob(
            "weight",
            "of what the user will click beside what the user will buy; nothing where none was seen",
            ge=0,
            le=10,
        ),
    ] = 0.0
    per_source: Annotated[int, knob("items", "candidates asked of each source", ge=1, le=500)] = 60
    candidates: Annotated[int, knob("items", "candidates that are scored for a list", ge=1, le=2000)] = 200
    shortlist: Annotated[int, knob("items", "of them, those that the diversifier sees", ge=1, le=500)] = 60
    voices: Annotated[
        Count, knob("items", "best items of every source that reach the shortlist whatever their score")
    ] = 3
    diversity: Annotated[
        Literal["none", "mmr", "max_sum", "dpp", "ssd"], knob("choice", "how a list is made various; dpp avoids twins")
    ] = "dpp"  # recsys/diversify/options.py has the formulas
    strength: Annotated[Share, knob("share", "weight of variety within a list; 0 = relevance only")] = 0.05
    adapt: Annotated[
        Share, knob("share", "how far the strength follows the user's own breadth; 0 = all users get the same")
    ] = 0.0  # recsys/breadth.py
    window: Annotated[Count, knob("slots", "only the last so many items repel the next; 0 = all above it")] = 0
    blend: Annotated[
        Share, knob("share", "how much of the likeness counts (dpp, ssd); at 1 very long lists run out of variety")
    ] = 0.9
    remember: Annotated[
        int, knob("items", "of the items shown last (48 are kept), so many repel as if above", ge=0, le=100)
    ] = 0
    remember_h: Annotated[
        float, Meta(gt=0), knob("hours", "a shown item's repulsion falls to a third in this time")
    ] = 24.0
    coverage: Annotated[
        Literal["none", "root", "log", "xquad", "calibration"],
        knob("choice", "how a list is made to cover the user's own kinds of things"),
    ] = "none"
    coverage_of: Annotated[Attribute, knob("choice", "what a kind of things is, for the coverage")] = "category_2"
    coverage_weight: Annotated[float, knob("gain", "how much a kind more is worth beside relevance", ge=0, le=100)] = (
        0.5
    )
    facets: Annotated[
        float,
        knob("gain", "after a search, in place of coverage: another category or brand of its answers", ge=0, le=100),
    ] = 4.0  # recsys/facets.py
    caps: Annotated[tuple[Cap, ...], knob("rules", "at most so many of a brand, category or price band")] = ()
    minimums: Annotated[tuple[Minimum, ...], knob("rules", "at least so many of a brand, category, tag or new")] = ()
    sponsored: Annotated[
        tuple[Sponsored, ...], knob("rules", "slots for items with a tag, which stand only there")
    ] = ()
    pins: Annotated[tuple[Pin, ...], knob("rules", "an item that stands in a slot whenever it is a candidate")] = ()
    explore_slots: Annotated[
        tuple[Slot, ...],
        Meta(max_length=100),
        knob("slots", "places for cold items drawn by chance, with the propensity logged; 0 is the first"),
    ] = ()  # recsys/explore.py
    explore_below: Annotated[Count, knob("buyers", "an item with fewer, or a new one, is cold")] = 5
    price_bands: Annotated[
        tuple[Annotated[float, Meta(gt=0)], ...], knob("prices", "where one band ends and the next begins, ascending")
    ] = ()
    variants: Annotated[
        str, knob("text", "items with the same tag that begins so are one product, shown once; empty = none")
    ] = "product:"
    show_gains: Annotated[bool, knob("yes/no", "each item says what it added to the list, in parts and in words")] = (
        False
    )
    exposure_penalty: Annotated[
        float,
        knob(
            "percent",
            "off an item's chance to stay for each percent of all showings; 0 = all may be alike",
            ge=0,
            le=1000,
        ),
    ] = 5.0  # recsys/exposure.py
    intent: Annotated[float, knob("logits", "weight of the visit in progress: clicks and search", ge=0, le=100)] = 2.0
    cooldown_h: Annotated[float, knob("hours", "a bought item is not offered again for so long", ge=0)] = 4.0
    fatigue_shown: Annotated[
        Count, knob("times", "so often among 48 shown in a week, not touched nor ever bought: no candidate; 0: off")
    ] = 3
    new_days: Annotated[float, knob("days", "an item is new for so long", ge=0)] = 14.0
    late_h: Annotated[
        float, knob("hours", "an event that arrives later changes the profile, but makes no list", ge=0)
    ] = 24.0

    def __post_init__(self) -> None:
        """What no single knob shows."""
        if wrong := self.contradictions():
            raise ValueError("; ".join(wrong))

    def contradictions(self) -> list[str]:
        """Knobs that cannot stand beside each other: none, in a Policy that could be made."""
        slots, items = [pin.slot for pin in self.pins], [pin.item for pin in self.pins]
        kept = [*slots, *(slot for rule in self.sponsored for slot in rule.slots), *self.explore_slots]
        explored = set(self.explore_slots)
        sponsored = [slot for rule in self.sponsored for slot in set(rule.slots)]
        found = {
            "explore_slots must name each slot once, and none that is pinned or sponsored": len(explored)
            < len(self.explore_slots)
            or any(kept.count(slot) > 1 for slot in explored),
            "sponsored: a slot can be kept for one tag only": len(set(sponsored)) < len(sponsored),
            "price_bands must ascend": list(self.price_bands) != sorted(set(self.price_bands)),
            "pins must name each slot and each item once": len(set(slots)) < len(slots) or len(set(items)) < len(items),
            "minimums: categories are known by their first three levels": any(
                rule.kind == "category" and rule.value.count(" > ") > 2 for rule in self.minimums
            ),
            "at most 62 caps, minimums and sponsored rules": len(self.caps) + len(self.minimums) + len(self.sponsored)
            > 62,
        }
        return [what for what, wrong in found.items() if wrong]

    def digest(self) -> str:
        """Eight bytes of the settings, in hexadecimal.

        >>> Policy().digest() == Policy().digest() != Policy(strength=0.2).digest()
        True
        """
        return hashlib.blake2b(msgspec.json.encode(self), digest_size=8).hexdigest()
