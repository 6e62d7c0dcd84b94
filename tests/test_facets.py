"""After a search the list covers what the search could mean: categories and brands of what answers it."""

from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from shop_helpers import T, look, remember, unit
from test_variety import BY_SCORE, first_best, shop_of

from recsys.candidates import default_sources
from recsys.catalogue import Item
from recsys.context import Request, Shop
from recsys.facets import search_facets
from recsys.pipeline import recommend

ROWS = np.arange(12)


def cups(dim: int = 0) -> Shop:
    """Eight cups for coffee, two for sport, of two brands; a pan and a chair that are no cups."""
    items = [
        Item(item=f"i{n}", title=f"Cup {n}", category="home > table > cups" if n < 8 else "sport > prizes", brand="Ox")
        for n in range(10)
    ]
    items[1] = msgspec.structs.replace(items[1], brand="Elk")
    return shop_of(
        [*items, Item(item="pan", title="Pan", category="home > pans"), Item(item="chair", title="Chair")], dim
    )


def listed(query: str, **knobs: Any) -> list[str]:
    policy = msgspec.structs.replace(BY_SCORE, slate_size=4, **knobs)
    request = Request("u", remember(), T, query)
    return [i.item for i in recommend([request], cups(), default_sources(policy), first_best, policy)[0].items]


def test_a_list_that_answers_a_search_covers_its_facets() -> None:
    assert listed("cup", facets=0.0) == ["i0", "i1", "i2", "i3"]
    found = listed("cup", facets=10.0)
    assert {"i1", "i8"} <= set(found), "the other brand and the other kind"
    assert not {"pan", "chair"} & set(found), "what does not answer has no facet"


def test_without_a_search_or_an_answer_nothing_changes() -> None:
    assert listed("", facets=10.0) == listed("")
    assert listed("unicorn", facets=10.0) == listed("unicorn")
    assert search_facets(look(cups()), ROWS) is None
    assert search_facets(look(cups(), query="cup"), ROWS[:0]) is None
    assert listed("cup", facets=0.0) == listed("cup", facets=0.0, coverage="none")


def test_facets_are_the_finest_category_and_the_brand_of_what_answers() -> None:
    shop = cups()
    topics = search_facets(look(shop, query="cup"), ROWS)
    assert topics is not None
    assert len(set(topics.codes[:10, 0].tolist())) == 2
    assert len(set(topics.codes[:10, 1].tolist())) == 2
    assert (topics.codes[10:] == -1).all()
    assert topics.want.sum() == pytest.approx(1)
    coffee = topics.want[topics.codes[0, 0]]
    assert coffee / topics.want[topics.codes[8, 0]] == pytest.approx(2, rel=0.1)  # eight answers against two
    assert (topics.shares >= 0).all()
    assert (topics.shares <= 0.5).all()


def test_a_vector_answers_where_words_do_not() -> None:
    shop = cups(2)
    shop.catalogue.vectors[:12] = unit([[1, 0]] * 10 + [[0.9, 0.1], [0, 1]])
    vector: NDArray[np.float32] = unit([1, 0])
    topics = search_facets(look(shop, query="tasse", vector=vector), ROWS)
    assert topics is not None
    assert (topics.codes[10, 0] >= 0, topics.codes[11].tolist()) == (True, [-1, -1])
