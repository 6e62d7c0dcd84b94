"""Hard limits inside re-ranking: they hold where they can, the end included, and where not the report says so."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_diversify_contract import SEEDS, draw, extras, how

from recsys.diversify import METHODS, AtLeast, AtMost, Diversity, Limits, Reserved, diversify
from recsys.errors import Misuse
from recsys.slates import Relaxed

RELEVANCE = Diversity(method="none")


def by_relevance(worth: list[float], k: int, limits: Limits) -> tuple[list[int], tuple[Relaxed, ...]]:
    """Positions and report, by relevance alone."""
    choice = diversify(np.array(worth), np.zeros((len(worth), 1), np.float32), k, RELEVANCE, limits=limits)
    return choice.positions.tolist(), choice.relaxed


def codes(letters: str) -> NDArray[np.int64]:
    """'aab.' → [0, 0, 1, -1]."""
    return np.array([-1 if letter == "." else ord(letter) - ord("a") for letter in letters])


def falling(n: int) -> list[float]:
    return [float(n - at) for at in range(n)]


def too_many(values: NDArray[np.int64], most: int, within: int) -> list[int]:
    """Slots at which a code stands more than `most` times in the `within` slots that end there."""
    found = []
    for slot, code in enumerate(values.tolist()):
        window = values[max(0, slot - (within or len(values)) + 1) : slot + 1]
        if code >= 0 and (window == code).sum() > most:
            found.append(slot)
    return found


def test_at_most_one_of_a_brand_in_any_three() -> None:
    cap = AtMost(name="brand", codes=codes("aaabbc"), within=3)
    assert by_relevance(falling(6), 6, Limits(at_most=(cap,)))[0][:4] == [0, 3, 5, 1]
    assert by_relevance(falling(6), 3, Limits(at_most=(cap,))) == ([0, 3, 5], ())


def test_a_cap_of_the_whole_list() -> None:
    cap = AtMost(name="brand", codes=codes("aaaabb.."), most=2)
    assert by_relevance(falling(8), 6, Limits(at_most=(cap,))) == ([0, 1, 4, 5, 6, 7], ())


def test_the_end_does_not_get_what_the_beginning_put_off() -> None:
    """Five of one brand, the least relevant, must not stand side by side: they have to begin at once."""
    cap = AtMost(name="brand", codes=codes("bcdefaaaaa"), within=2)
    positions, relaxed = by_relevance(falling(10), 10, Limits(at_most=(cap,)))
    assert relaxed == ()
    assert positions == [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]


def test_looking_ahead_interferes_no_earlier_than_it_must() -> None:
    cap = AtMost(name="brand", codes=codes("bcdefgaaa"), within=2)
    positions, relaxed = by_relevance(falling(9), 9, Limits(at_most=(cap,)))
    assert relaxed == ()
    assert positions[:4] == [0, 1, 2, 3]


@given(seed=SEEDS, method=st.sampled_from(METHODS), within=st.integers(0, 5), most=st.integers(1, 3))
def test_what_is_reported_is_what_is_broken_and_nothing_else(seed: int, method: str, within: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 30))
    values = rng.integers(-1, int(rng.integers(1, 9)), n)
    cap = AtMost(name="cap", codes=values, most=most, within=within)
    choice = diversify(*draw(seed, n), 12, how(method, 0.4), limits=Limits(at_most=(cap,)), **extras(seed, n))
    assert len(choice.positions) == min(12, n)
    assert [relaxed.slot for relaxed in choice.relaxed] == too_many(values[choice.positions], most, within)


@given(seed=SEEDS, within=st.integers(1, 4))
def test_a_cap_that_can_be_kept_is_kept(seed: int, within: int) -> None:
    """As many codes as a window has slots, none of more than its share of the list: an arrangement exists."""
    rng = np.random.default_rng(seed)
    values = np.repeat(np.arange(within), 12 // within)
    relevance = rng.normal(size=len(values))
    cap = AtMost(name="cap", codes=values, within=within)
    choice = diversify(relevance, np.zeros((len(values), 1), np.float32), 12, RELEVANCE, limits=Limits(at_most=(cap,)))
    assert choice.relaxed == ()


def random_limits(rng: np.random.Generator, n: int) -> Limits:
    members = rng.random((2, n)) < 0.3
    return Limits(
        at_most=tuple(
            AtMost(
                name=f"cap {c}", codes=rng.integers(-1, 5, n), most=c + 1, within=int(rng.integers(0, 5)), priority=c
            )
            for c in range(int(rng.integers(0, 3)))
        ),
        at_least=(AtLeast(name="least", members=members[0], least=3, priority=int(rng.integers(0, 4))),),
        reserved=(Reserved(name="ads", slots=(1, 4), members=members[1], only=bool(rng.integers(2))),),
        pinned={int(rng.integers(0, 8)): int(rng.integers(0, n))} if rng.random() < 0.5 else {},
        product=rng.integers(-1, n // 2, n) if rng.random() < 0.5 else None,
    )


@given(seed=SEEDS, method=st.sampled_from(METHODS), strength=st.sampled_from([0.0, 0.3, 1.0]))
def test_limits_of_every_kind_at_once_give_a_list_lazily_as_in_full(seed: int, method: str, strength: float) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(6, 40))
    limits, more = random_limits(rng, n), extras(seed, n)
    lazy, eager = (
        diversify(*draw(seed, n), 10, how(method, strength, seed), limits=limits, **more, lazy=lazy)
        for lazy in (True, False)
    )
    assert lazy.positions.tolist() == eager.positions.tolist()
    assert lazy.relaxed == eager.relaxed
    positions = lazy.positions.tolist()
    assert len(set(positions)) == len(positions)
    for slot, position in limits.pinned.items():
        if slot < len(positions):
            assert positions[slot] == position
    missing = 3 - int(limits.at_least[0].members[positions].sum())
    assert [relaxed.missing for relaxed in lazy.relaxed if relaxed.rule == "least"] == (
        [missing] if missing > 0 else []
    )
    ads = limits.reserved[0]
    outside = [slot for slot in (1, 4) if slot < len(positions) and not ads.members[positions[slot]]]
    assert [relaxed.slot for relaxed in lazy.relaxed if relaxed.rule == "ads"] == outside
    if limits.product is not None:
        of = limits.product[positions]
        assert len(set(of[of >= 0].tolist())) == (of >= 0).sum()


def test_a_minimum_is_met_as_late_as_may_be() -> None:
    new = AtLeast(name="new", members=np.arange(8) >= 6, least=2)
    assert by_relevance(falling(8), 5, Limits(at_least=(new,))) == ([0, 1, 2, 6, 7], ())


def test_minimums_of_two_kinds_share_the_slots() -> None:
    new = AtLeast(name="new", members=np.arange(8) >= 6, least=1)
    cheap = AtLeast(name="cheap", members=np.arange(8) == 5, least=1)
    assert by_relevance(falling(8), 4, Limits(at_least=(new, cheap))) == ([0, 1, 5, 6], ())


def test_a_minimum_that_cannot_be_met_says_how_many_are_missing() -> None:
    new = AtLeast(name="new", members=np.arange(5) == 4, least=3)
    assert by_relevance(falling(5), 3, Limits(at_least=(new,))) == ([0, 1, 4], (Relaxed("new", missing=2),))


def test_a_pinned_item_stands_where_it_is_pinned_and_counts_before_it_is_reached() -> None:
    """The slots beside it keep their distance from it."""
    cap = AtMost(name="brand", codes=codes("aabbc"), within=2)
    assert by_relevance(falling(5), 4, Limits(pinned={2: 4})) == ([0, 1, 4, 2], ())
    assert by_relevance(falling(5), 3, Limits(at_most=(cap,), pinned={1: 1})) == ([2, 1, 3], ())


def test_an_id_that_is_there_twice_is_not_pinned_twice() -> None:
    with pytest.raises(Misuse, match="pinned to two slots"):
        diversify(np.ones(3), np.zeros((3, 1), np.float32), 2, ids=["a", "a", "b"], limits=Limits(pinned={0: 0, 1: 1}))


def test_a_pin_that_breaks_a_cap_stays_and_is_reported() -> None:
    cap = AtMost(name="brand", codes=codes("aab"), within=0)
    limits = Limits(at_most=(cap,), pinned={0: 0, 1: 1})
    assert by_relevance(falling(3), 3, limits) == ([0, 1, 2], (Relaxed("brand", 0), Relaxed("brand", 1)))


def test_reserved_slots_hold_members_and_members_stand_nowhere_else() -> None:
    ads = Reserved(name="sponsored", slots=(1, 3), members=codes("a..a.a") >= 0)
    assert by_relevance(falling(6), 5, Limits(reserved=(ads,))) == ([1, 0, 2, 3, 4], ())
    free = Reserved(name="sponsored", slots=(3,), members=codes("a..a.a") >= 0, only=False)
    assert by_relevance(falling(6), 4, Limits(reserved=(free,))) == ([0, 1, 2, 3], ())


def test_a_member_is_kept_for_its_reserved_slot() -> None:
    only = Reserved(name="sponsored", slots=(2,), members=np.arange(4) == 0, only=False)
    assert by_relevance(falling(4), 3, Limits(reserved=(only,))) == ([1, 2, 0], ())


def test_a_reserved_slot_without_members_is_filled_and_reported() -> None:
    ads = Reserved(name="sponsored", slots=(0,), members=np.zeros(3, np.bool_))
    assert by_relevance(falling(3), 2, Limits(reserved=(ads,))) == ([0, 1], (Relaxed("sponsored", 0),))


@pytest.mark.parametrize(("brand", "category", "given_up"), [(1, 2, "brand"), (2, 1, "category")])
def test_the_less_important_of_two_caps_gives_way(brand: int, category: int, given_up: str) -> None:
    """After the first, whoever is of another brand is of the same category."""
    caps = (
        AtMost(name="brand", codes=codes("aabb"), within=2, priority=brand),
        AtMost(name="category", codes=codes("abaa"), within=2, priority=category),
    )
    positions, relaxed = by_relevance(falling(4), 2, Limits(at_most=caps))
    assert relaxed == (Relaxed(given_up, 1),)
    assert positions == ([0, 1] if given_up == "brand" else [0, 2])


def test_a_rule_that_nobody_can_keep_takes_no_lesser_rule_with_it() -> None:
    """Nobody is sponsored: the brand's cap still holds in the sponsored slot."""
    cap = AtMost(name="brand", codes=codes("aabcd"))
    ads = Reserved(name="sponsored", slots=(1,), members=np.zeros(5, np.bool_))
    limits = Limits(at_most=(cap,), reserved=(ads,))
    assert by_relevance(falling(5), 3, limits) == ([0, 2, 3], (Relaxed("sponsored", 1),))


def test_a_member_is_kept_for_a_slot_that_matters_more_than_what_would_take_it() -> None:
    """Only the sponsored item is of another brand than the first; the cap gives way, not the slot."""
    ads = Reserved(name="sponsored", slots=(2,), members=codes(".a..") == 0, only=False)
    cap = AtMost(name="brand", codes=codes("abaa"))
    limits = Limits(at_most=(cap,), reserved=(ads,))
    assert by_relevance(falling(4), 3, limits) == ([0, 2, 1], (Relaxed("brand", 1),))


def test_variants_of_a_product_are_collapsed_to_the_best() -> None:
    assert by_relevance(falling(5), 5, Limits(product=np.array([7, 7, -1, 7, -1]))) == ([0, 2, 4], ())


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"pinned": {0: 3}}, "candidate 3 of 3 cannot be pinned to slot 0"),
        ({"pinned": {-1: 0}}, "pinned to slot -1"),
        ({"pinned": {0: 1, 1: 1}}, "two slots"),
        ({"product": np.zeros(2, np.int64)}, "products of 2 candidates"),
        ({"at_most": (AtMost(name="x", codes=np.zeros(3, np.int64), most=0),)}, "`most` ≥ 1"),
        ({"at_least": tuple(AtLeast(name="x", members=np.ones(3, np.bool_)) for _ in range(63))}, "at most 62 limits"),
    ],
)
def test_limits_that_mean_nothing_are_refused(limits: dict[str, Any], said: str) -> None:
    with pytest.raises(Misuse, match=said):
        by_relevance(falling(3), 2, Limits(**limits))
