"""What makes the next list differ: the visit, a search, what was shown, each source's voice, diversity."""

import msgspec
import numpy as np
import pytest
from pipeline_helpers import MINUTE, RELEVANCE, ask, ids, one, two_shelves
from shop_helpers import T, at_ms, bought, clicked, live, plain, remember, searched

from recsys.catalogue import Catalogue, Item
from recsys.context import Shop
from recsys.policy import Policy
from recsys.scoring import Score, Scored
from recsys.signal_table import SignalTable
from recsys.signals import Signal


def test_a_click_in_the_visit_changes_the_list_and_the_reason_says_so() -> None:
    shop = two_shelves()
    before = one(shop, ask(remember(bought("i7", 30))), Policy(slate_size=5))
    after = one(shop, ask(remember(bought("i7", 30), clicked("i0", MINUTE))), Policy(slate_size=5))
    assert set(ids(after)[:3]) <= {"i1", "i2", "i3", "i4"}
    assert ids(before) != ids(after)
    assert {item.reason for item in after.items[:3]} == {"you just looked at Thing 0"}
    assert not any("just looked" in item.reason for item in before.items)


def test_a_click_of_another_visit_pulls_nothing() -> None:
    draft = one(two_shelves(), ask(remember(clicked("i0", 40 * MINUTE))))
    assert not any("just looked" in item.reason for item in draft.items)


def test_the_weight_of_the_visit_is_the_operators() -> None:
    request = ask(remember(clicked("i0", MINUTE)))
    worth = [0.0] * 5 + [1.5] * 5

    def first(intent: float) -> str:
        policy = msgspec.structs.replace(RELEVANCE, intent=intent)
        return ids(
            one(
                two_shelves(),
                request,
                policy,
                lambda asks, vectors: Scored(np.array([worth, worth], np.float32).T, "x"),
            )
        )[0]

    assert (first(0), first(1), first(2)) == ("i5", "i5", "i1")


def test_a_search_changes_the_list_and_the_reason_says_so() -> None:
    shop = two_shelves()
    draft = one(shop, ask(remember(searched("mug")), shop.catalogue.vectors[0], query="mug"), Policy(slate_size=5))
    assert set(ids(draft)[:3]) <= {"i0", "i1", "i2", "i3", "i4"}
    assert draft.items[0].reason == 'answers your search "mug"'
    assert draft.items[0].source == "search_intent"


def shown_often() -> tuple[Shop, Score]:
    """Three items, of which the second was shown to everybody, and a scorer that likes it best."""
    catalogue = plain(3)
    signals = SignalTable(catalogue)
    for row, exposure in enumerate((0.0, 30.0, 0.0)):
        signals.update(row, Signal(T, short=1.0, exposure=exposure))
    logits = np.array([[1, 1], [1.1, 1], [0.9, 1]], np.float32)
    return Shop(catalogue, signals), lambda asks, vectors: Scored(logits, "given")


def test_what_everybody_is_shown_gives_way() -> None:
    shop, score = shown_often()
    two = msgspec.structs.replace(RELEVANCE, slate_size=2)
    assert ids(one(shop, ask(), two, score)) == ["i1", "i0"]
    assert ids(one(shop, ask(), msgspec.structs.replace(two, exposure_penalty=1.0), score)) == ["i0", "i2"]


def test_what_others_were_shown_decides_who_is_on_a_list_and_not_the_order() -> None:
    shop, score = shown_often()
    priced = msgspec.structs.replace(RELEVANCE, exposure_penalty=1.0)
    assert ids(one(shop, ask(), priced, score)) == ["i1", "i0", "i2"]


def test_every_source_keeps_its_voice_whatever_the_score() -> None:
    shop, _ = live(
        Catalogue(Item(item=f"i{n}", title="x", first_ts_ms=at_ms(1 if n == 29 else 99)) for n in range(30)),
        [bought(f"i{n}", 1, "other") for n in range(29)],
    )
    worst_last = lambda asks, vectors: Scored(-np.arange(60, dtype=np.float32).reshape(30, 2), "given")  # noqa: E731
    policy = msgspec.structs.replace(RELEVANCE, shortlist=10)
    assert "i29" not in ids(one(shop, ask(), policy, worst_last))
    draft = one(shop, ask(), msgspec.structs.replace(policy, voices=1), worst_last)
    assert draft.items[-1].item == "i29"
    assert draft.items[-1].source == "new_items"


@pytest.mark.parametrize("method", ["mmr", "dpp"])
def test_a_diverse_list_holds_fewer_of_a_kind(method: str) -> None:
    worth = np.repeat([[0.0], [1.0]], 5, axis=0) @ np.ones((1, 2))
    shop = two_shelves()
    policy = Policy(slate_size=4, diversity=method, strength=0.6, exposure_penalty=0, fatigue_shown=0)  # type: ignore[arg-type]
    draft = one(shop, ask(), policy, lambda asks, vectors: Scored(worth.astype(np.float32), "given"))
    plainly = one(shop, ask(), RELEVANCE, lambda asks, vectors: Scored(worth.astype(np.float32), "given"))
    assert set(ids(plainly)[:4]) <= {f"i{n}" for n in range(5, 10)}
    assert any(item in ids(draft) for item in ("i0", "i1", "i2", "i3", "i4"))
