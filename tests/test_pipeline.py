"""The stages together: lists for a batch of users, with a model or without one."""

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline_helpers import MINUTE, RELEVANCE, ask, busy, ids, no_model, one, two_shelves
from shop_helpers import at_ms, bought, clicked, crowd, live, look, plain, remember, stock

from recsys.candidates import default_sources, gather
from recsys.catalogue import Catalogue, Item
from recsys.context import Request, Shop
from recsys.errors import Misuse
from recsys.features import NAMES
from recsys.pipeline import Draft, recommend
from recsys.policy import Policy
from recsys.profiles import Profile
from recsys.scoring import Ask, Scored

__all__ = ["busy"]  # the fixture

# --- a batch ----------------------------------------------------------------------------------------------------------


def linear(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
    """Any deterministic scorer of rows: some weights."""
    features = np.concatenate([ask.features for ask in asks])
    weight = np.random.default_rng(0).normal(size=(len(NAMES), 2)).astype(np.float32)
    return Scored(np.stack([(features * weight[:, head]).sum(axis=1) for head in (0, 1)], axis=1), "linear")


@pytest.mark.parametrize("score", [linear, no_model])
@pytest.mark.parametrize("policy", [Policy(), RELEVANCE, Policy(repeats="new", diversity="mmr", candidates=30)])
def test_a_batch_of_users_gets_the_lists_that_each_gets_alone(
    busy: tuple[Shop, dict[str, Profile]], score: object, policy: Policy
) -> None:
    shop, profiles = busy
    requests = [ask(profile, user=user) for user, profile in sorted(profiles.items())]
    requests += [ask(user="stranger"), ask(profiles["u1"], shop.catalogue.vectors[4], "u1", "mug")]
    together = recommend(requests, shop, default_sources(policy), score, policy)  # type: ignore[arg-type]
    assert together == [one(shop, request, policy, score) for request in requests]
    assert all(draft.items for draft in together)
    assert len({tuple(ids(draft)) for draft in together}) > 10


@given(st.integers(0, 20))
@settings(deadline=None, max_examples=8)
def test_lists_hold_distinct_items_that_may_be_shown_and_say_why(seed: int) -> None:
    shop, profiles = live(stock(50, seed=seed), crowd(seed, 50), batch=50)
    policy = Policy()
    for draft in recommend([ask(p) for p in profiles.values()], shop, default_sources(policy), linear, policy):
        rows = [shop.catalogue.row(item) for item in ids(draft)]
        assert len(set(rows)) == len(rows) == policy.slate_size
        assert shop.catalogue.available[rows].all()
        assert all(item.reason and item.source and np.isfinite(item.score) for item in draft.items)
        assert all(item.title == shop.catalogue.items[row].title for item, row in zip(draft.items, rows, strict=True))


def test_the_same_requests_give_the_same_lists(busy: tuple[Shop, dict[str, Profile]]) -> None:
    again, profiles = live(stock(60), crowd(1, 60, users=20), batch=50)
    for user in ("u0", "u7"):
        assert one(busy[0], ask(busy[1][user]), Policy(), linear) == one(again, ask(profiles[user]), Policy(), linear)


@pytest.mark.parametrize("size", [1, 3, 10, 40, 100])
def test_a_slate_is_as_long_as_asked_or_as_there_is_to_show(busy: tuple[Shop, dict[str, Profile]], size: int) -> None:
    shop, profiles = busy
    found = len(gather(look(shop, profiles["u3"]), default_sources(Policy()), 60).rows)
    draft = one(shop, ask(profiles["u3"]), Policy(slate_size=size))
    assert len(draft.items) == min(size, found - sum(draft.dropped.values()))


def test_a_slate_may_be_longer_than_the_shortlist_of_a_usual_one() -> None:
    shop, _ = live(plain(100), [bought(f"i{n}", 1, f"u{n}") for n in range(100)])
    policy = Policy(slate_size=80, per_source=100)
    assert len(one(shop, ask(), policy).items) == 80


def test_a_young_shop_shows_what_it_has() -> None:
    draft = one(live(plain(3))[0], ask())
    assert [(item.item, item.reason) for item in draft.items] == [(f"i{n}", "found in the shop") for n in range(3)]


def test_a_shop_with_nothing_to_show_gives_an_empty_list() -> None:
    closed = two_shelves()
    for n in range(10):
        closed.catalogue.remove(f"i{n}")
    for shop in (live(Catalogue())[0], closed):
        for score in (no_model, linear):
            assert one(shop, ask(remember(clicked("i1", MINUTE), clicked("gone"))), Policy(), score).items == ()


def test_what_was_dropped_is_counted(busy: tuple[Shop, dict[str, Profile]]) -> None:
    draft = one(busy[0], ask(remember(bought("i1"), bought("i2"))), Policy())
    assert draft.dropped.keys() == {"unavailable", "bought", "fatigued"}
    assert draft.dropped["bought"] == 2


def test_the_stages_tell_when_they_are_done(busy: tuple[Shop, dict[str, Profile]]) -> None:
    told: list[str] = []
    recommend([ask()], busy[0], default_sources(Policy()), no_model, Policy(), told.append)
    assert told == ["context", "gather", "filter", "features", "score", "diversify"]


# --- the scorer -------------------------------------------------------------------------------------------------------


def by_row(shop: Shop, request: Request, worth: Sequence[float], new: Sequence[float] = ()) -> Draft:
    """A list by given logits, in the order of the candidates' rows."""
    logits = np.array([worth, new or [-w for w in worth]], np.float32).T
    return one(shop, request, RELEVANCE, lambda asks, vectors: Scored(logits, "given"))


def test_the_score_decides_and_ties_go_by_row() -> None:
    shop, _ = live(plain(4), [bought(f"i{n}", 1, "other") for n in range(4)])
    draft = by_row(shop, ask(), [1, 3, 3, 2])
    assert ids(draft) == ["i1", "i2", "i3", "i0"]
    assert [item.score for item in draft.items] == [3, 3, 2, 1]
    assert (draft.scorer, draft.degraded_reason) == ("given", None)


def test_lists_of_new_items_are_ranked_by_the_head_for_new_items() -> None:
    shop, _ = live(plain(3), [bought(f"i{n}", 1, "other") for n in range(3)])
    score = lambda asks, vectors: Scored(np.array([[1, 5], [2, 4], [3, 6]], np.float32), "given")  # noqa: E731
    assert ids(one(shop, ask(), RELEVANCE, score)) == ["i2", "i1", "i0"]
    assert ids(one(shop, ask(), msgspec.structs.replace(RELEVANCE, repeats="new"), score)) == ["i2", "i0", "i1"]


def test_what_will_be_clicked_counts_as_much_as_the_policy_says(busy: tuple[Shop, dict[str, Profile]]) -> None:
    def clicks(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        rows = np.concatenate([ask.rows for ask in asks]).astype(np.float32)
        return Scored(np.column_stack([rows, rows, -3 * rows]), "network")

    shop, profiles = busy
    request = ask(next(iter(profiles.values())))
    bought, clicked, neither = (
        ids(one(shop, request, msgspec.structs.replace(RELEVANCE, voices=0, clicks=weight), clicks))
        for weight in (0.0, 1.0, 1 / 3)
    )
    assert [shop.catalogue.row(item) for item in bought] == sorted(map(shop.catalogue.row, bought), reverse=True)
    assert [shop.catalogue.row(item) for item in clicked] == sorted(map(shop.catalogue.row, clicked))
    assert len({*bought, *clicked, *neither}) > 10


def test_without_logits_lists_are_made_by_rank_fusion_and_say_so() -> None:
    long_known = Catalogue(Item(item=f"i{n}", title="x", first_ts_ms=at_ms(99)) for n in range(4))
    shop, _ = live(long_known, [bought(f"i{n}", 1, f"u{n}{m}") for n in range(4) for m in range(n + 1)])
    profile = remember(bought("i1", 9), bought("i1", 8), bought("i0", 9))
    draft = one(shop, ask(profile), msgspec.structs.replace(RELEVANCE, per_source=4))
    # i3 and i2 trend most; i1 and i0 trend less, and are bought again.
    assert ids(draft) == ["i1", "i0", "i3", "i2"]
    silent = (len(default_sources(Policy())) - 2) / 10_061
    assert draft.items[0].score == pytest.approx(100 * (1 / 61 + 1 / 63 + silent), abs=1e-4)
    assert (draft.scorer, draft.degraded_reason) == ("rank_fusion", "no release")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_no_number_never_ranks(bad: float) -> None:
    shop, _ = live(plain(4), [bought(f"i{n}", 1, "other") for n in range(4)])
    with pytest.raises(Misuse, match="finite"):
        by_row(shop, ask(), [1, bad, 3, 2])
