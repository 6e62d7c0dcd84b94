"""Which events a policy makes a list for, what it refuses, and how policies and slates are named."""

import itertools

import msgspec
import pytest
from shop_helpers import T, bought, clicked, made, searched, shown

from recsys.events import Cart, Event, View
from recsys.policy import Cap, Minimum, Pin, Policy, Sponsored
from recsys.slates import Cause, Slate, SlateItem, Versions, decode_slate, encode_slate, slate_id
from recsys.triggers import should_recommend


@pytest.mark.parametrize("event", [clicked("i"), bought("i"), made(View, "i"), made(Cart, "i"), searched("mug")])
def test_whatever_a_user_does_is_worth_a_list(event: Event) -> None:
    assert should_recommend(event, Policy(), backfill=False, arrived_ms=event.ts_ms)
    assert not should_recommend(event, Policy(), backfill=True, arrived_ms=event.ts_ms)


def test_being_shown_a_list_is_no_reason_for_another() -> None:
    assert not should_recommend(shown(["i"]), Policy(), backfill=False, arrived_ms=T * 1000)


@pytest.mark.parametrize(("late_ms", "worth"), [(-60_000, True), (0, True), (3_600_000, True), (3_600_001, False)])
def test_an_event_that_comes_too_late_makes_no_list(late_ms: int, worth: bool) -> None:
    policy = Policy(late_h=1)
    assert should_recommend(clicked("i"), policy, backfill=False, arrived_ms=T * 1000 + late_ms) is worth


def test_a_policys_digest_names_every_knob() -> None:
    other: dict[str, object] = {
        "repeats": "new",
        "diversity": "mmr",
        "coverage": "xquad",
        "coverage_of": "brand",
        "caps": (Cap(attribute="brand"),),
        "minimums": (Minimum(kind="new"),),
        "sponsored": (Sponsored(slots=(1,)),),
        "pins": (Pin(0, "i"),),
        "explore_slots": (3,),
        "price_bands": (10.0,),
        "variants": "",
        "show_gains": True,
    }
    changed = [{name: other.get(name, value)} for name, value in msgspec.structs.asdict(Policy()).items()]
    changed = [
        change if name in other else {name: value + 1}  # type: ignore[operator]
        for change in changed
        for name, value in change.items()
    ]
    digests = {msgspec.structs.replace(Policy(), **change).digest() for change in changed}
    assert len(digests | {Policy().digest()}) == len(changed) + 1
    assert msgspec.json.decode(msgspec.json.encode(Policy()), type=Policy).digest() == Policy().digest()


@pytest.mark.parametrize(
    "data",
    [
        b'{"slate_sise":10}',
        b'{"strength":1.1}',
        b'{"diversity":"best"}',
        b'{"slate_size":0}',
        b'{"voices":-1}',
        b'{"caps":[{"attribute":"colour"}]}',
        b'{"caps":[{"attribute":"brand","most":0}]}',
        b'{"pins":[{"slot":0,"item":"a"},{"slot":0,"item":"b"}]}',
        b'{"price_bands":[20,10]}',
        b'{"sponsored":[{"slots":[]}]}',
        b'{"minimums":[{"kind":"category","value":"a > b > c > d"}]}',
    ],
)
def test_a_policy_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(data, type=Policy)


def test_a_slate_survives_its_bytes_and_its_name_is_its_cause() -> None:
    cause = Cause("events", 3, 17, "click", T * 1000)
    slate = Slate(
        id=slate_id("u", cause),
        user="u",
        items=(SlateItem("i1", "Tasse à café", 1.25, "trending", "many shoppers want it this week"),),
        cause=cause,
        versions=Versions("none", Policy().digest(), 5, 6),
        scorer="rank_fusion",
        made_ts_ms=T * 1000 + 5,
        freshness_ms=5,
        degraded_reason="no release",
    )
    assert decode_slate(encode_slate(slate)) == slate
    causes = itertools.product(("events", "a.events"), (0, 1), (1, 11), ("u", "u1"))
    assert len({slate_id(user, Cause(t, p, o, "click", T)) for t, p, o, user in causes}) == 16
