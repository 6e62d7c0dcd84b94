"""Features: finite whatever the profile, columns as named, the same alone and in company, and by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shop_helpers import (
    KINDS,
    T,
    at_ms,
    bought,
    clicked,
    crowd,
    live,
    look,
    made,
    plain,
    remember,
    searched,
    shown,
    stock,
)

from recsys.candidates import Candidates, default_sources, gather
from recsys.catalogue import Catalogue, Item
from recsys.context import Context, Shop
from recsys.events import TS_MAX_MS, TS_MIN_MS, Cart, Impression, Search
from recsys.features import NAMES, compute_features
from recsys.habits import NEVER_D
from recsys.policy import Policy
from recsys.profiles import KEEP_PURCHASES

SOURCES = default_sources(Policy())
HOUR = 1 / 24  # of a day


def all_items(context: Context) -> Candidates:
    """Every item of the catalogue, with what the sources say of it."""
    found = gather(context, SOURCES, 60)
    rows = np.arange(len(context.shop.catalogue))
    ranks, scores = np.full((len(SOURCES), len(rows)), 10_000), np.zeros((len(SOURCES), len(rows)))
    ranks[:, found.rows], scores[:, found.rows] = found.ranks, found.scores
    return Candidates(rows, ranks, scores, found.names)


def columns(context: Context) -> dict[str, NDArray[np.float32]]:
    """Features of every item by name."""
    return dict(zip(NAMES, compute_features(context, all_items(context)).T, strict=True))


@pytest.fixture(scope="module")
def busy() -> Shop:
    return live(stock(40), crowd(3), batch=50)[0]


# --- whatever comes ---------------------------------------------------------------------------------------------------


common: dict[str, Any] = {
    "user": st.just("u"),
    "ts_ms": st.sampled_from([TS_MIN_MS, TS_MAX_MS, T * 1000, T * 1000 - 1]),
}
common["ts_ms"] |= st.integers(TS_MIN_MS, TS_MAX_MS) | st.integers(at_ms(60), at_ms(0))
items = st.integers(0, 45).map("i{}".format)  # the last few are in no catalogue
EVENTS = st.one_of(
    *(st.builds(kind, **common, item=items) for kind in KINDS),
    st.builds(Search, **common, query=st.just("mug")),
    st.builds(Impression, **common, items=st.lists(items, min_size=1, max_size=20).map(tuple)),
)


@given(st.lists(EVENTS, max_size=60), st.booleans(), st.sampled_from([0.0, 946_684_800.0, float(T), 4_102_444_800.0]))
@settings(deadline=None)
def test_features_are_finite_for_every_odd_profile(busy: Shop, events: list[Any], asks: bool, now_s: float) -> None:
    vector = busy.catalogue.vectors[3] if asks else None
    context = look(busy, remember(*events), vector, now_s)
    with np.errstate(all="raise", under="ignore"):
        features = compute_features(context, all_items(context))
    assert features.shape == (40, len(NAMES))
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


@pytest.mark.parametrize("price", [5e-324, 0.0, 1e9])
@pytest.mark.parametrize("first_ts_ms", [TS_MIN_MS, TS_MAX_MS, None])
def test_features_are_finite_for_every_odd_item(price: float, first_ts_ms: int | None) -> None:
    catalogue = Catalogue(
        Item(item=f"i{n}", title="x", price=price, first_ts_ms=first_ts_ms, category="a > b > c > d" * n, brand="b" * n)
        for n in range(2)
    )
    shop, _ = live(catalogue, [bought("i0", 1, "v")])
    assert all(
        np.isfinite(column).all() for column in columns(look(shop, remember(bought("i0"), bought("i1")))).values()
    )


def test_no_candidates_have_no_features_but_their_columns() -> None:
    shop, _ = live(plain(0))
    context = look(shop, remember(bought("i0"), searched("x")))
    assert compute_features(context, all_items(context)).shape == (0, len(NAMES))


def test_names_are_columns_each_once() -> None:
    assert len(set(NAMES)) == len(NAMES) == len(columns(look(live(plain(3))[0])))


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=20)
def test_a_candidates_features_do_not_depend_on_the_other_candidates(busy: Shop, seed: int) -> None:
    rng = np.random.default_rng(seed)
    profile = remember(*(made(KINDS[rng.integers(4)], f"i{rng.integers(40)}", rng.uniform(0, 90)) for _ in range(30)))
    context = look(busy, profile, busy.catalogue.vectors[5])
    whole, some = all_items(context), rng.random(40) < 0.3
    alone = compute_features(context, whole.keep(some))
    # Products of a matrix with fewer rows may round otherwise in the last bit.
    np.testing.assert_allclose(alone, compute_features(context, whole)[some], rtol=1e-5, atol=1e-6)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_own_frequency_and_intervals() -> None:
    shop, _ = live(plain(4))
    profile = remember(bought("i0", 90), bought("i0", 60), bought("i0", 30), bought("i1", 400), bought("i2", HOUR))
    found = columns(look(shop, profile))
    assert found["own_count"] == pytest.approx(np.log1p([3, 1, 1, 0]))
    assert found["own_30d"] == pytest.approx(np.sqrt([1 / 8 + 1 / 4 + 1 / 2, 0.5 ** (400 / 30), 0.5 ** (HOUR / 30), 0]))
    assert found["own_120d"] == pytest.approx(
        np.sqrt([0.5**0.75 + 0.5**0.5 + 0.5**0.25, 0.5 ** (400 / 120), 0.5 ** (HOUR / 120), 0])
    )
    assert found["own_7d"] == pytest.approx(
        np.sqrt([0.5 ** (90 / 7) + 0.5 ** (60 / 7) + 0.5 ** (30 / 7), 0.5 ** (400 / 7), 0.5 ** (HOUR / 7), 0])
    )
    assert found["own_first_days"] == pytest.approx(np.log1p([90, NEVER_D, HOUR, NEVER_D]), rel=1e-5)
    assert found["own_per_basket"] == pytest.approx([3 / 5, 1 / 5, 1 / 5, 0])
    assert found["own_last_days"] == pytest.approx(np.log1p([30, 400, HOUR, NEVER_D]), rel=1e-5)
    assert found["own_seen"].tolist() == [1, 1, 1, 0]
    # i0: intervals (60 + 30) / 3 = 30 days, last 30 ago: just due. i1 and i2: one purchase, so 30 days is assumed.
    due = [0, np.log(401 / 31), np.log((HOUR + 1) / 31), 0]
    assert found["own_due"] == pytest.approx(due, abs=1e-6)
    assert found["own_due_distance"] == pytest.approx(np.abs(due), abs=1e-6)
    assert found["own_in_basket"].tolist() == [0, 0, 1, 0]
    assert found["buy_again_rank"] == pytest.approx(np.log1p([0, 2, 1, 200]))


def test_what_was_bought_before_the_purchases_that_are_kept_has_been_seen_and_no_more_is_known() -> None:
    shop, _ = live(plain(3))
    many = (bought("elsewhere", 1 + n / 100) for n in range(KEEP_PURCHASES))
    found = columns(look(shop, remember(bought("i0", 50), *many, bought("i1", 1))))
    assert found["own_seen"].tolist() == [1, 1, 0]
    assert found["own_count"] == pytest.approx(np.log1p([0, 1, 0]))


def test_touches_carts_and_showings_lately() -> None:
    shop, _ = live(plain(5))
    touches = (
        clicked("i0", 1),
        clicked("i0", 2),
        made(Cart, "i1", HOUR),
        made(Cart, "i1", 2 * HOUR),
        made(Cart, "i2", 3),
    )
    found = columns(look(shop, remember(*touches, shown(["i3", "i4"], 1), shown(["i3"], 2), shown(["i4"], 8))))
    cart = 0.6 * (0.5**HOUR + 0.5 ** (2 * HOUR))
    assert found["touched"] == pytest.approx(np.sqrt([0.3 * 0.5 + 0.3 * 0.25, cart, 0.6 / 8, 0, 0]))
    assert found["in_cart"].tolist() == [0, 1, 0, 0, 0]
    assert found["shown"] == pytest.approx(np.log1p([0, 0, 0, 2, 1]))


def test_prices_and_their_distance_to_what_the_user_pays() -> None:
    prices = (2.0, 8.0, None, 16.0)
    shop, _ = live(Catalogue(Item(item=f"i{n}", title="x", price=price) for n, price in enumerate(prices)))
    found = columns(look(shop, remember(bought("i0"), bought("i1"), bought("i2"))))
    assert found["price"] == pytest.approx([np.log(2), np.log(8), 0, np.log(16)])
    assert found["price_gap"] == pytest.approx([np.log(2), np.log(2), 0, np.log(4)])  # to 4, their geometric mean
    assert not columns(look(shop, remember(bought("i2"))))["price_gap"].any()


def test_shares_of_categories_and_brands() -> None:
    shelves = ("home > kitchen > mugs", "home > kitchen > pans", "home > garden", "")
    shop, _ = live(
        Catalogue(Item(item=f"i{n}", title="x", category=c, brand="Ox" * (n % 2)) for n, c in enumerate(shelves))
    )
    found = columns(look(shop, remember(bought("i0", 60), bought("i2", 120), bought("i3", 0), clicked("i1", 7))))
    total = 0.5 + 0.25 + 1 + 0.15
    assert found["category_share"] == pytest.approx(np.sqrt(np.array([0.65, 0.65, 0.25, 0]) / total))
    assert found["subcategory_share"] == pytest.approx(np.sqrt(np.array([0.5, 0.15, 0, 0]) / total))
    assert found["brand_share"] == pytest.approx(np.array([0, 1.15, 0, 1.15]) / total)


def test_habits_in_a_category_speak_of_its_items_that_the_user_never_bought() -> None:
    shelves = ("home > kitchen > mugs", "home > kitchen > pans", "home > garden", "")
    prices = (2.0, 8.0, 4.0, 4.0)
    shop, _ = live(
        Catalogue(
            Item(item=f"i{n}", title="x", category=c, price=p)
            for n, (c, p) in enumerate(zip(shelves, prices, strict=True))
        ),
        [bought("i0", 0, "a"), bought("i0", 0, "b"), bought("i0", 0, "c"), bought("i1", 0, "d"), bought("i2", 0, "d")],
    )
    found = columns(look(shop, remember(bought("i0", 90), bought("i0", 60), bought("i3", 5))))
    assert found["category_count"] == pytest.approx(np.log1p([2, 2, 0, 0]))
    assert found["subcategory_count"] == pytest.approx(np.log1p([2, 0, 0, 0]))
    assert found["category_last_days"] == pytest.approx(np.log1p([60, 60, NEVER_D, NEVER_D]))
    due = np.log(61 / ((90 - 60 + 30) / 2 + 1))
    assert found["category_due"] == pytest.approx([due, due, 0, 0])
    assert found["category_price_gap"] == pytest.approx([0, np.log(4), 1, 1], abs=1e-6)
    share = (0.5**1.5 + 0.5) / (0.5**1.5 + 0.5 + 0.5 ** (5 / 60))
    # Of the kitchen's interest three quarters is in i0; i2 is alone in the garden, where this user never bought.
    assert found["category_pull"] == pytest.approx(np.sqrt([share * 3 / 4, share / 4, 0, 0]))
    assert found["subcategory_pull"] == pytest.approx(np.sqrt([share, 0, 0, 0]))


def test_the_crowds_interval_says_when_a_single_purchase_is_due_again() -> None:
    crowd_of_seven = [bought("i0", days, f"u{n}") for n in range(5) for days in (17, 10)]
    shop, _ = live(plain(2), crowd_of_seven)
    found = columns(look(shop, remember(bought("i0", 20), bought("i1", 20))))
    typical = (5 * 7 + 150) / 10
    assert found["interval_days"] == pytest.approx(np.log([typical, 30]))
    assert found["own_due"] == pytest.approx([np.log(21 / (typical + 1)), np.log(21 / 31)])


def test_first_purchases_are_told_from_repeats() -> None:
    buys = [bought("i0", 14, "a"), bought("i0", 7, "a"), bought("i0", 7, "b"), bought("i1", 7, "b")]
    found = columns(look(live(plain(3), buys)[0]))
    long = np.array([0.5**0.25 + 0.5 ** (1 / 8), 0.5 ** (1 / 8), 0])
    assert found["fresh_long"] == pytest.approx(np.log1p(long))
    assert found["fresh_short"] == pytest.approx(np.log1p([1 / 4 + 1 / 2, 1 / 2, 0]))
    whole = long + [0.5 ** (1 / 8), 0, 0]
    assert found["fresh_share"] == pytest.approx((long + 1) / (whole + 3))


def test_how_often_and_how_lately_a_user_comes() -> None:
    found = columns(look(live(plain(2))[0], remember(bought("i0", 40), bought("i1", 40), bought("i0", 10))))
    assert found["user_baskets"] == pytest.approx(np.log1p([2, 2]))
    assert found["user_baskets_28d"] == pytest.approx(np.log1p([1, 1]))
    assert found["user_last_days"] == pytest.approx(np.log1p([10, 10]))
    assert found["user_distinct"] == pytest.approx(np.log1p([2, 2]))


def test_texts_compared_with_taste_nearest_and_query() -> None:
    catalogue = plain(4, dim=2)
    catalogue.vectors[:3] = np.eye(3, 2)
    catalogue.vectors[3] = (0.6, 0.8)
    shop, _ = live(catalogue)
    found = columns(look(shop, remember(clicked("i0"), clicked("i1", HOUR)), catalogue.vectors[3]))
    taste = np.array([1, 0.5**0.1]) / np.hypot(1, 0.5**0.1)
    assert found["text_taste"] == pytest.approx([*taste, 0, taste @ (0.6, 0.8)], rel=1e-5)
    assert found["text_nearest"] == pytest.approx([1, 1, 0, 0.8])
    assert found["text_query"] == pytest.approx([0.6, 0.8, 0, 1])


def test_words_compared_with_those_of_the_search() -> None:
    shop, _ = live(Catalogue(Item(item=f"i{n}", title=title) for n, title in enumerate(("red mug", "garden chair"))))
    assert not columns(look(shop))["words_query"].any()
    assert columns(look(shop, query="chair"))["words_query"] == pytest.approx([0, np.sqrt(1 / 2)])


def test_what_the_crowd_says_of_an_item() -> None:
    catalogue = Catalogue([Item(item="i0", title="x", first_ts_ms=at_ms(10)), Item(item="i1", title="x")])
    buys = [bought("i0", 14, f"u{n}") for n in range(7)] + [bought("i0", 7, "u0")]
    found = columns(look(live(catalogue, buys)[0]))
    short, long = 7 / 4 + 1 / 2, 7 * 0.5**0.25 + 0.5 ** (1 / 8)
    assert found["interest_short"] == pytest.approx(np.log1p([short, 0]))
    assert found["interest_long"] == pytest.approx(np.log1p([long, 0]))
    assert found["interest_trend"] == pytest.approx([np.log((short + 1) / (long / 8 + 1)), 0])
    assert found["buyers"] == pytest.approx(np.log1p([8, 0]))
    assert found["repeat_rate"] == pytest.approx([2 / 13, 1 / 5])
    assert found["age_days"] == pytest.approx(np.log1p([10, NEVER_D]))


def test_neighbours_of_all_recent_items_and_of_the_newest_basket() -> None:
    pairs = {"a": ("i0", "i1"), "b": ("i0", "i1"), "c": ("i2", "i3")}
    shop, _ = live(plain(5), [bought(item, 30, user) for user, basket in pairs.items() for item in basket])
    found = columns(look(shop, remember(bought("i0", 3), bought("i2"))))
    of_0, of_2 = 2 / 3, 1 / 2  # w_ij / √((1 + buyers_i)(1 + buyers_j))
    assert found["co_visitation"] == pytest.approx(np.sqrt([0, of_0 * 0.5**0.1, 0, of_2, 0]))
    assert found["co_visitation_basket"] == pytest.approx(np.sqrt([0, 0, 0, of_2, 0]))
    assert found["co_visitation_rank"] == pytest.approx(np.log1p([200, 0, 200, 1, 200]))
