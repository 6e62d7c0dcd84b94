"""What a policy and a request make of re-ranking: caps, minimums, pins, variants, what was shown, the user's own kinds."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from shop_helpers import T, at_ms, bought, plain, remember, shown

from recsys.candidates import default_sources
from recsys.catalogue import Catalogue, Item
from recsys.context import Request, Shop
from recsys.events import Event
from recsys.pipeline import Draft, recommend
from recsys.policy import Cap, Minimum, Pin, Policy, Sponsored
from recsys.scoring import Ask, Scored
from recsys.signal_table import SignalTable
from recsys.slates import Gain, Relaxed

BY_SCORE = Policy(diversity="none", exposure_penalty=0, voices=0, fatigue_shown=0, slate_size=6)


def shop_of(items: Sequence[Item], dim: int = 0) -> Shop:
    catalogue = Catalogue(items, dim)
    return Shop(catalogue, SignalTable(catalogue))


def first_best(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
    """The lower the row, the better."""
    rows = np.concatenate([ask.rows for ask in asks]).astype(np.float32)
    return Scored(np.stack([-rows, -rows], axis=1), "given")


def made(shop: Shop, *events: Event, **knobs: Any) -> Draft:
    policy = msgspec.structs.replace(BY_SCORE, **knobs)
    request = Request("u", remember(*events), T)
    return recommend([request], shop, default_sources(policy), first_best, policy)[0]


def ids(draft: Draft) -> str:
    return " ".join(item.item for item in draft.items)


def shelf(brands: str, **more: Any) -> Shop:
    """Items i0, i1, … of the brands named by letters; '.' has none."""
    return shop_of([Item(item=f"i{n}", title="x", brand=letter.strip("."), **more) for n, letter in enumerate(brands)])


def test_a_cap_on_brands_holds_in_the_list() -> None:
    shop = shelf("aaabbc..")
    assert ids(made(shop)) == "i0 i1 i2 i3 i4 i5"
    assert ids(made(shop, caps=(Cap(attribute="brand"),))) == "i0 i3 i5 i6 i7 i1"
    draft = made(shop, caps=(Cap(attribute="brand"),), slate_size=5)
    assert (ids(draft), draft.relaxed) == ("i0 i3 i5 i6 i7", ())
    assert made(shop, caps=(Cap(attribute="brand"),)).relaxed == (Relaxed("at most 1 of a brand", 5),)


def test_caps_know_categories_by_level_and_price_bands() -> None:
    shop = shop_of(
        [
            Item(item="a", title="x", category="home > mugs", price=5),
            Item(item="b", title="x", category="home > mugs", price=50),
            Item(item="c", title="x", category="home > pans", price=5),
            Item(item="d", title="x", category="garden > pots", price=50),
            Item(item="e", title="x"),
        ]
    )

    def capped(attribute: str, size: int) -> str:
        return ids(made(shop, caps=(Cap(attribute=attribute),), price_bands=(10.0,), slate_size=size))  # type: ignore[arg-type]

    assert capped("category_1", 3) == "a d e"
    assert capped("category_2", 4) == "a c d e"
    assert capped("price_band", 3) == "a b e"


def test_minimums_bring_in_what_the_shortlist_left_out() -> None:
    items = [Item(item=f"i{n}", title="x", tags=("green",) if n == 30 else ()) for n in range(40)]
    items[35] = Item(item="i35", title="x", brand="Ox", category="home > mugs > tall")
    items[36] = Item(item="i36", title="x", first_ts_ms=at_ms(2))
    shop = shop_of(items)
    few: dict[str, Any] = {"shortlist": 10, "slate_size": 3}
    assert ids(made(shop, **few)) == "i0 i1 i2"
    for rule, item in (
        (Minimum(kind="tag", value="green"), "i30"),
        (Minimum(kind="brand", value="Ox"), "i35"),
        (Minimum(kind="category", value="home > mugs"), "i35"),
        (Minimum(kind="new"), "i36"),
    ):
        draft = made(shop, minimums=(rule,), **few)
        assert (ids(draft), draft.relaxed) == (f"i0 i1 {item}", ())
    draft = made(shop, minimums=(Minimum(kind="brand", value="Nobody", least=2),), **few)
    assert draft.relaxed == (Relaxed("at least 2 of brand Nobody", missing=2),)


def test_a_minimum_brings_in_as_many_products_as_it_needs_not_variants_of_one() -> None:
    tags = {30: ("green", "product:shirt"), 31: ("green", "product:shirt"), 32: ("green",)}
    shop = shop_of([Item(item=f"i{n}", title="x", tags=tags.get(n, ())) for n in range(40)])
    draft = made(shop, minimums=(Minimum(kind="tag", value="green", least=2),), shortlist=10, slate_size=3)
    assert (ids(draft), draft.relaxed) == ("i0 i30 i32", ())


def test_pins_stand_where_the_operator_put_them_and_say_so_if_they_cannot() -> None:
    shop = shelf("." * 30)
    draft = made(shop, pins=(Pin(1, "i25"), Pin(0, "i3")), shortlist=5, slate_size=4)
    assert (ids(draft), draft.relaxed) == ("i3 i25 i0 i1", ())
    shop.catalogue.remove("i25")
    assert made(shop, pins=(Pin(1, "i25"), Pin(2, "nothing"))).relaxed == (
        Relaxed("pin i25", 1),
        Relaxed("pin nothing", 2),
    )


def test_sponsored_items_stand_in_their_slots_and_nowhere_else() -> None:
    shop = shop_of([Item(item=f"i{n}", title="x", tags=("sponsored",) if n in (0, 1, 9) else ()) for n in range(20)])
    slots = (Sponsored(slots=(2, 4)),)
    assert ids(made(shop, sponsored=slots)) == "i2 i3 i0 i4 i1 i5"
    assert ids(made(shop, sponsored=slots, shortlist=6)) == "i2 i3 i0 i4 i1 i5"


def test_variants_of_a_product_are_shown_once() -> None:
    shop = shop_of(
        [Item(item=f"i{n}", title="x", tags=("red", f"product:{'shirt' if n < 3 else n}")) for n in range(6)]
    )
    assert ids(made(shop)) == "i0 i3 i4 i5"
    assert ids(made(shop, variants="")) == "i0 i1 i2 i3 i4 i5"


def two_kinds() -> Shop:
    """i0 … i3 alike, i4 … i7 alike, of categories 'home > a' and 'home > b'."""
    shop = shop_of([Item(item=f"i{n}", title="x", category=f"home > {'ab'[n // 4]}") for n in range(8)], dim=2)
    shop.catalogue.vectors[:8] = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0)
    return shop


def test_what_was_shown_lately_repels_as_if_it_stood_in_the_list() -> None:
    knobs: dict[str, Any] = {"diversity": "dpp", "strength": 0.4, "slate_size": 1, "remember_h": 1.0}
    seen = shown(["i0", "i1"], days_ago=1 / 1440)
    assert ids(made(two_kinds(), seen, **knobs)) == "i0"
    assert ids(made(two_kinds(), seen, remember=20, **knobs)) == "i4"
    assert ids(made(two_kinds(), shown(["i0", "i1"], days_ago=5), remember=20, **knobs)) == "i0"


@pytest.mark.parametrize("coverage", ["root", "log", "xquad", "calibration"])
def test_lists_cover_the_kinds_a_user_likes(coverage: str) -> None:
    """Who bought b gets b among the a that score better; more of it than who is not known."""
    knobs: dict[str, Any] = {"coverage": coverage, "coverage_weight": 30.0, "slate_size": 4, "cooldown_h": 0.0}
    fan = made(two_kinds(), *[bought("i7", days) for days in range(2, 22)], **knobs)
    stranger = made(two_kinds(), **knobs)
    of_b = [sum(item.item >= "i4" for item in draft.items) for draft in (fan, stranger)]
    assert of_b[0] >= 3 >= 2 >= of_b[1] >= 1


def test_without_a_kind_there_is_nothing_to_cover() -> None:
    assert ids(made(shelf("........"), coverage="root")) == "i0 i1 i2 i3 i4 i5"
    assert made(shop_of([]), coverage="root").items == ()


def test_each_item_says_what_it_added_if_the_policy_asks() -> None:
    shop = two_kinds()
    assert {item.gain for item in made(shop).items} == {None}
    draft = made(shop, show_gains=True, diversity="dpp", strength=0.5, coverage="root", slate_size=3)
    first, second, _ = (item.gain for item in draft.items)
    assert isinstance(first, Gain)
    assert isinstance(second, Gain)
    assert (first.relevance, first.novelty, first.penalty) == (0.5, 0, 0)
    assert first.said == "the most relevant here; adds a kind you like that the list lacked"
    assert draft.items[1].item == "i4"
    assert "unlike all above it" in second.said
    assert first.coverage > 0


def test_the_default_lists_are_those_of_the_log_determinant() -> None:
    """The policy of before, worked out by hand of its formula: argmax (1-s)/s·r + log residual."""
    rng = np.random.default_rng(0)
    shop = shop_of(plain(40).items, dim=6)
    vectors = rng.normal(size=(40, 6))
    shop.catalogue.vectors[:40] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    draft = made(shop, diversity="dpp", slate_size=10)
    relevance = 1 - np.arange(40) / 39
    kernel = 0.9 * (shop.catalogue.vectors[:40] @ shop.catalogue.vectors[:40].T).astype(np.float64) + 0.1 * np.eye(40)
    chosen: list[int] = []
    for _ in range(10):
        gains = {
            at: 0.95 / 0.05 * relevance[at] + np.linalg.slogdet(kernel[np.ix_([*chosen, at], [*chosen, at])])[1]
            - (np.linalg.slogdet(kernel[np.ix_(chosen, chosen)])[1] if chosen else 0)
            for at in set(range(40)) - set(chosen)
        }  # fmt: skip
        chosen.append(max(gains, key=gains.__getitem__))
    assert [shop.catalogue.row(item.item) for item in draft.items] == chosen
