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


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How lists are made. The defaults are what the demo runs."""

    slate_size: Annotated[int, Meta(ge=1, le=100)] = 10
    repeats: Literal["all", "new"] = "all"  # may a list offer what the user already bought?
    per_source: Annotated[int, Meta(ge=1, le=500)] = 60  # candidates asked of each source
    candidates: Annotated[int, Meta(ge=1, le=2000)] = 200  # scored per slate
    shortlist: Annotated[int, Meta(ge=1, le=500)] = 60  # of them, those the diversifier sees
    voices: Count = 3  # best items of every source that reach the shortlist whatever their score
    diversity: Literal["none", "mmr", "dpp"] = "dpp"
    strength: Share = 0.15  # 0 = relevance only
    # What an item that all lists show would lose of its probability to stay (recsys/exposure.py). 0 = all may be alike.
    exposure_penalty: Annotated[float, Meta(ge=0, le=1000)] = 1.0
    intent: Annotated[float, Meta(ge=0, le=100)] = 2.0  # weight of the live visit's pull, in logits
    cooldown_h: Annotated[float, Meta(ge=0)] = 4.0  # a bought item is not offered again for so long
    fatigue_shown: Count = 3  # shown so often in a week without a touch: no longer a candidate
    new_days: Annotated[float, Meta(ge=0)] = 14.0  # an item is new for so long
    late_h: Annotated[float, Meta(ge=0)] = 24.0  # an event that arrives later changes the profile, but makes no slate

    def digest(self) -> str:
        """Eight bytes of the settings, in hexadecimal.

        >>> Policy().digest() == Policy().digest() != Policy(strength=0.2).digest()
        True
        """
        return hashlib.blake2b(msgspec.json.encode(self), digest_size=8).hexdigest()
