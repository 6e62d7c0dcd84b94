"""Why an item is on a list, in the words that its user reads."""

import msgspec
import numpy as np
import pytest
from pipeline_helpers import MINUTE, busy, two_shelves
from shop_helpers import at_ms, bought, clicked, live, look, names, plain, remember, unit

from recsys.candidates import default_sources, gather
from recsys.catalogue import Catalogue, Item
from recsys.context import Context, Shop
from recsys.events import Event
from recsys.explain import explain
from recsys.intent import follow_visit
from recsys.policy import Policy
from recsys.profiles import EMPTY, Profile

__all__ = ["busy"]  # the fixture


def reason(shop: Shop, profile: Profile, item: str, source: str, pull: float = 0.0, query: str = "") -> str:
    """Why an item is there, as far as one source says."""
    context: Context = look(shop, profile, shop.catalogue.vectors[0] if query else None, query=query)
    found = gather(context, [s for s in default_sources(Policy()) if s.name == source], 60)
    visit = follow_visit(context, found.rows)
    if visit is not None:
        visit = msgspec.structs.replace(visit, pull=np.full(len(found.rows), pull))
    named, why = explain(context, found, names(shop.catalogue, found.rows).index(item), visit)
    assert named == source
    return why


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([bought("i1", 0.2)], "you bought it once, last today"),
        ([bought("i1", 1.5)], "you bought it once, last yesterday"),
        ([bought("i1", 30), bought("i1", 12.5), bought("i1", 20)], "you bought it 3 times, last 12 days ago"),
    ],
)
def test_buying_again_says_how_often_and_when(events: list[Event], said: str) -> None:
    assert reason(live(plain(3))[0], remember(*events), "i1", "buy_again") == said


def test_company_names_the_item_it_keeps() -> None:
    profile = remember(bought("i5", 2), bought("i0", 1))
    assert reason(two_shelves(), profile, "i1", "co_visitation") == "often goes with Thing 0"
    assert reason(two_shelves(), profile, "i6", "co_visitation") == "often goes with Thing 5"


def test_likeness_names_the_nearest_item() -> None:
    catalogue = Catalogue(plain(4).items, dim=2)
    catalogue.vectors[:4] = unit([(1, 0), (0, 1), (3, 1), (1, 3)])
    shop, _ = live(catalogue)
    profile = remember(bought("i1", 2), bought("i0", 1))
    assert reason(shop, profile, "i2", "similar_text") == "similar to Thing 0"
    assert reason(shop, profile, "i3", "similar_text") == "similar to Thing 1"


def test_the_other_sources_say_what_they_are() -> None:
    shop, _ = live(
        Catalogue(
            [Item(item="a", title="A", category="home > mugs", first_ts_ms=at_ms(1)), Item(item="b", title="B")], 2
        ),
        [bought("b", 1, "other")],
    )
    shop.catalogue.upsert(Item(item="c", title="C", first_ts_ms=at_ms(1)))
    shop.catalogue.vectors[0] = (1, 0)
    assert reason(shop, EMPTY, "a", "new_items") == "new in mugs"
    assert reason(shop, EMPTY, "c", "new_items") == "new in the shop"
    assert reason(shop, EMPTY, "b", "trending") == "many shoppers want it this week"
    assert reason(shop, EMPTY, "a", "search_intent", query="red mug") == 'answers your search "red mug"'


def test_a_strong_pull_of_the_visit_is_the_reason_be_it_a_touch_or_a_search() -> None:
    profile = remember(clicked("i5", 2 * MINUTE), clicked("i0", MINUTE))
    assert reason(two_shelves(), profile, "i6", "trending", pull=0.9) == "you just looked at Thing 5"
    assert reason(two_shelves(), profile, "i6", "trending", pull=0.4) == "many shoppers want it this week"
    assert reason(two_shelves(), EMPTY, "i6", "trending", pull=0.9, query="mug") == 'answers your search "mug"'


def test_the_loudest_source_explains_ties_in_their_order_and_browsing_last(
    busy: tuple[Shop, dict[str, Profile]],
) -> None:
    shop, profiles = busy
    context = look(shop, profiles["u2"])
    found = gather(context, default_sources(Policy()), 60)
    for at in range(len(found.rows)):
        source, _ = explain(context, found, at, None)
        assert (
            source
            == found.names[
                min(
                    range(len(found.names)),
                    key=lambda s: (
                        found.names[s] == "browse" and found.ranks[:-1, at].min() < 5000,
                        found.ranks[s, at],
                        s,
                    ),
                )
            ]
        )  # noqa: B023
