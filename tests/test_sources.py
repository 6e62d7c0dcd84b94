"""Where candidates come from: one battery for every source, then what each is for."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shop_helpers import (
    T,
    at_ms,
    bought,
    clicked,
    crowd,
    draw_item_models,
    live,
    look,
    names,
    plain,
    remember,
    searched,
    shown,
    stock,
    unit,
)

from recsys.candidates import (
    ABSENT,
    Browse,
    CoVisitation,
    Found,
    NewItems,
    SearchIntent,
    SearchWords,
    SimilarText,
    Source,
    default_sources,
    gather,
)
from recsys.catalogue import Catalogue, Item
from recsys.context import Context, see
from recsys.policy import Policy
from recsys.profiles import KEEP_PURCHASES

SOURCES = {source.name: source for source in default_sources(Policy())}
EVERY = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
RANKED = pytest.mark.parametrize("source", [s for name, s in SOURCES.items() if name != "browse"], ids=lambda s: s.name)
PERSONAL = pytest.mark.parametrize("name", ["buy_again", "co_visitation", "similar_text"])
LIMITS = (1, 2, 3, 7, 20, 59, 60, 500)


def a_moment(seed: int, count: int = 60) -> Context:
    """User u0 of a crowd, with a search, in a shop where many scores are exactly equal."""
    catalogue = stock(count, seed=seed)
    twins = np.eye(8, dtype=np.float32)[np.arange(count) % 8]  # exact cosines: 0 or 1, for every row alike
    if seed % 2:
        catalogue.vectors[:count] = twins
    shop, profiles = live(catalogue, crowd(seed, count), batch=50)
    shop = msgspec.structs.replace(shop, item_models=draw_item_models(catalogue, seed))
    return look(shop, profiles["u0"], catalogue.vectors[3], query="thing")


# --- the battery ------------------------------------------------------------------------------------------------------


@EVERY
@given(st.integers(0, 30))
@settings(deadline=None, max_examples=8)
def test_an_answer_is_distinct_rows_best_first_ties_by_row_with_scores_above_zero(source: Source, seed: int) -> None:
    context = a_moment(seed)
    for limit in LIMITS:
        found = source.find(context, limit)
        assert found.rows.dtype == np.int64
        assert found.scores.dtype == np.float64
        assert len(found.rows) == len(found.scores) <= limit
        assert len(found.rows) or source.name == "browse"  # which is silent where enough trends
        assert len(np.unique(found.rows)) == len(found.rows)
        assert ((found.rows >= 0) & (found.rows < len(context.shop.catalogue))).all()
        assert np.isfinite(found.scores).all()
        assert (found.scores > 0).all()
        order = np.lexsort((found.rows, -found.scores))
        assert order.tolist() == list(range(len(order)))


@pytest.mark.parametrize("name", sorted(SOURCES.keys() - {"trending", "browse"}))  # those have their own
@given(st.integers(0, 30))
@settings(deadline=None, max_examples=4)
def test_what_is_not_to_be_had_takes_no_place_of_what_is(name: str, seed: int) -> None:
    """A shop that keeps its sold-out items found its searches answered by nothing else."""
    source, context = SOURCES[name], a_moment(seed)
    everything = source.find(context, 500).rows
    context.shop.catalogue.available[everything[: len(everything) // 2]] = False
    found = source.find(context, 5).rows
    assert context.shop.catalogue.available[found].all()
    assert len(found) == min(5, (len(everything) + 1) // 2)


@RANKED
@given(st.integers(0, 30))
@settings(deadline=None, max_examples=8)
def test_a_short_answer_is_the_beginning_of_a_long_one(source: Source, seed: int) -> None:
    context = a_moment(seed)
    longest = source.find(context, 500).rows.tolist()
    assert [source.find(context, limit).rows.tolist() for limit in LIMITS] == [longest[:limit] for limit in LIMITS]


@given(st.integers(0, 30))
@settings(deadline=None, max_examples=8)
def test_what_models_say_of_unseen_items_holds_nothing_bought_lately_or_long_ago(seed: int) -> None:
    context, source = a_moment(seed), SOURCES["ease_unseen"]
    answer = source.find(context, 50)
    lately, long_ago = (context.shop.catalogue.items[row].item for row in answer.rows[:2])
    elsewhere = (bought("elsewhere", 1 + n / 100) for n in range(KEEP_PURCHASES))
    more = remember(bought(long_ago, 400), *elsewhere, bought(lately, 1))
    profile = msgspec.structs.replace(context.request.profile, purchases=more.purchases, owned=more.owned)
    request = msgspec.structs.replace(context.request, profile=profile)
    later = msgspec.structs.replace(see(request, context.shop), learned=context.learned)
    assert set(names(context.shop.catalogue, source.find(later, 50).rows)).isdisjoint({lately, long_ago})


@EVERY
def test_the_same_moment_gives_the_same_answer(source: Source) -> None:
    one, again = source.find(a_moment(1), 50), source.find(a_moment(1), 50)
    np.testing.assert_array_equal(one.rows, again.rows)
    np.testing.assert_array_equal(one.scores, again.scores)


@EVERY
def test_an_empty_catalogue_offers_nothing(source: Source) -> None:
    shop, _ = live(Catalogue(dim=8))
    context = look(shop, remember(bought("gone"), clicked("gone too"), shown(["gone"])), np.ones(8, np.float32))
    found = source.find(context, 10)
    assert (found.rows.tolist(), found.scores.tolist()) == ([], [])


@EVERY
def test_a_shop_without_vectors_prices_or_dates_is_no_error(source: Source) -> None:
    shop, profiles = live(plain(40), crowd(2), batch=50)
    found = source.find(look(shop, profiles["u0"], np.empty(0, np.float32)), 10)
    assert np.isfinite(found.scores).all()


@PERSONAL
def test_a_personal_source_is_silent_about_a_stranger(name: str) -> None:
    shop = a_moment(0).shop
    assert not len(SOURCES[name].find(look(shop), 10).rows)
    assert not len(SOURCES[name].find(look(shop, remember(bought("gone"), clicked("gone too"))), 10).rows)


@pytest.mark.parametrize(
    ("limit", "spoke"), [(10, {"trending", "new_items"}), (60, {"trending", "new_items", "browse"})]
)
def test_a_stranger_is_offered_what_trends_what_is_new_and_if_need_be_what_there_is(
    limit: int, spoke: set[str]
) -> None:
    found = gather(look(a_moment(0).shop), tuple(SOURCES.values()), limit)
    assert spoke == {name for name, ranks in zip(found.names, found.ranks, strict=True) if (ranks < ABSENT).any()}


def test_every_source_has_a_name_of_its_own() -> None:
    assert len(SOURCES) == len(default_sources(Policy())) == 13


# --- each of them -----------------------------------------------------------------------------------------------------


def test_buy_again_knows_what_is_bought_often_and_lately() -> None:
    shop, _ = live(plain(5))
    profile = remember(bought("i3", 70), bought("i3", 60), bought("i1", 1), bought("i2", 120), clicked("i4"))
    found = SOURCES["buy_again"].find(look(shop, profile), 10)
    assert names(shop.catalogue, found.rows) == ["i1", "i3", "i2"]
    assert found.scores == pytest.approx([0.5 ** (1 / 60), 0.5 ** (70 / 60) + 0.5, 0.25])


def test_co_visitation_follows_the_newest_item_most() -> None:
    baskets = [bought(item, 3, user) for user in ("a", "b") for item in ("i0", "i5")]
    baskets += [bought(item, 3, user) for user in ("c", "d") for item in ("i1", "i6")]
    shop, _ = live(plain(9), baskets)
    newest_first = remember(bought("i0", 2), bought("i1", 1))
    assert names(shop.catalogue, CoVisitation().find(look(shop, newest_first), 10).rows) == ["i6", "i5"]
    other_way = remember(bought("i0", 1), bought("i1", 2))
    assert names(shop.catalogue, CoVisitation().find(look(shop, other_way), 10).rows) == ["i5", "i6"]


def test_similar_text_is_near_the_recent_items_and_search_near_the_query() -> None:
    catalogue = plain(4, dim=2)
    catalogue.vectors[:4] = unit([(1, 0), (0, 1), (2, 1), (1, 2)])
    shop, _ = live(catalogue)
    similar = SimilarText().find(look(shop, remember(clicked("i0"))), 10)
    assert names(catalogue, similar.rows) == ["i0", "i2", "i3"]  # and not i1, which has nothing in common
    assert similar.scores == pytest.approx([1, 2 / 5**0.5, 1 / 5**0.5])
    asked = SearchIntent().find(look(shop, remember(searched("x")), catalogue.vectors[1]), 2)
    assert names(catalogue, asked.rows) == ["i1", "i3"]
    assert not len(SearchIntent().find(look(shop, remember(searched("x"))), 2).rows)


def test_a_search_finds_the_word_that_a_vector_smooths_over() -> None:
    catalogue = Catalogue(Item(item=f"i{n}", title=title) for n, title in enumerate(("Drill GSB 120", "Drill", "Saw")))
    shop, _ = live(catalogue)
    found = SearchWords().find(look(shop, remember(), query="gsb drill"), 10)
    assert names(catalogue, found.rows) == ["i0", "i1"]
    assert not len(SearchWords().find(look(shop, remember()), 10).rows)
    catalogue.upsert(Item(item="i2", title="Saw GSB 9"))
    assert names(catalogue, SearchWords().find(look(shop, remember(), query="GSB 9"), 10).rows) == ["i2", "i0"]


def test_another_index_stands_behind_the_same_door() -> None:
    class Reversed:
        def nearest(self, context: Context, vector: NDArray[np.float32], limit: int) -> Found:
            return Found(np.arange(limit, dtype=np.int64), np.linspace(1, 0.5, limit))

    context = a_moment(0)
    assert SimilarText(Reversed()).find(context, 3).rows.tolist() == [0, 1, 2]
    assert SearchIntent(Reversed()).find(context, 2).rows.tolist() == [0, 1]


def new_shop(*items: tuple[str, str, float | None]) -> Catalogue:
    """Items by name, category and days since they came."""
    return Catalogue(
        Item(item=item, title=item, category=category, first_ts_ms=None if days is None else at_ms(days))
        for item, category, days in items
    )


def test_new_items_come_newest_first_and_known_categories_before() -> None:
    catalogue = new_shop(
        ("mine", "home > mugs", 300), ("old", "home > mugs", 14), ("ageless", "home > mugs", None),
        ("a", "home > pans", 1), ("b", "home > mugs", 7), ("c", "home > pans", 5), ("d", "home > mugs", 13.5),
    )  # fmt: skip
    shop, _ = live(catalogue)
    found = NewItems(14).find(look(shop, remember(bought("mine", 20))), 10)
    assert names(catalogue, found.rows) == ["b", "a", "c", "d"]
    assert found.scores == pytest.approx([2 * 7 / 14, 13 / 14, 9 / 14, 2 * 0.5 / 14])
    assert names(catalogue, NewItems(14).find(look(shop), 10).rows) == ["a", "c", "b", "d"]


def test_items_without_a_category_do_not_know_each_other() -> None:
    shop, _ = live(catalogue := new_shop(("mine", "", 300), ("a", "home > mugs", 1), ("b", "", 2), ("c", "home", 3)))
    assert names(catalogue, NewItems(14).find(look(shop, remember(bought("mine"))), 10).rows) == ["a", "b", "c"]


def test_browsing_begins_with_the_users_categories_and_leaves_out_what_is_not_to_be_had() -> None:
    catalogue = new_shop(("a", "home > pans", 9), ("b", "", 9), ("c", "home > mugs", 9), ("d", "home > mugs", 9))
    shop, _ = live(catalogue)
    catalogue.remove("d")
    assert names(catalogue, Browse().find(look(shop, remember(clicked("c"))), 10).rows) == ["c", "a", "b"]
    assert names(catalogue, Browse().find(look(shop), 2).rows) == ["a", "b"]
    assert names(catalogue, Browse().find(look(shop, remember(clicked("b"))), 10).rows) == ["a", "b", "c"]


def test_an_item_that_comes_tomorrow_is_new() -> None:
    shop, _ = live(new_shop(("soon", "", -1)))
    assert NewItems(14).find(look(shop), 10).scores.tolist() == [1.0]
    assert not len(NewItems(0).find(look(shop), 10).rows)


# --- together ---------------------------------------------------------------------------------------------------------


class Says:
    """A source that always gives the same answer."""

    def __init__(self, name: str, rows: list[int]) -> None:
        self.name, self._found = name, Found(np.array(rows, np.int64), np.linspace(2, 1, len(rows)))

    def find(self, context: Context, limit: int) -> Found:
        return Found(self._found.rows[:limit], self._found.scores[:limit])


def test_answers_are_united_by_row_with_each_sources_rank_and_score() -> None:
    found = gather(a_moment(0), [Says("x", [7, 2, 5]), Says("none", []), Says("y", [2, 9])], 10)
    assert found.names == ("x", "none", "y")
    assert found.rows.tolist() == [2, 5, 7, 9]
    assert found.ranks.tolist() == [[1, 2, 0, ABSENT], [ABSENT] * 4, [0, ABSENT, ABSENT, 1]]
    assert found.scores.tolist() == [[1.5, 1, 2, 0], [0] * 4, [2, 0, 0, 1]]
    few = found.keep(np.array([True, False, False, True]))
    assert (few.rows.tolist(), few.ranks.tolist()) == ([2, 9], [[1, ABSENT], [ABSENT] * 2, [0, 1]])
    assert few.names == found.names


def test_no_source_offers_nothing() -> None:
    found = gather(a_moment(0), [], 10)
    assert (found.rows.tolist(), found.ranks.shape, found.scores.shape) == ([], (0, 0), (0, 0))


def test_recent_items_are_distinct_newest_first_of_purchases_and_touches() -> None:
    shop, _ = live(plain(50))
    profile = remember(*(bought(f"i{n}", n) for n in range(40)), clicked("i7", 0.5), clicked("gone"), bought("i7", 0.2))
    context = look(shop, profile)
    assert names(shop.catalogue, context.recent)[:4] == ["i0", "i7", "i1", "i2"]
    assert len(context.recent) == len(set(context.recent.tolist())) == 20
    assert context.emphasis == pytest.approx(0.5 ** (np.arange(20) / 10))
    assert names(shop.catalogue, context.basket) == ["i0", "i7"]  # within six hours of the newest


def test_a_moment_before_an_event_sees_it_as_just_happened() -> None:
    shop, _ = live(plain(3))
    context = look(shop, remember(bought("i1", -1), clicked("i2", 1)), now_s=T)
    assert context.bought.age_s.tolist() == [0.0]
    assert names(shop.catalogue, context.recent) == ["i1", "i2"]
