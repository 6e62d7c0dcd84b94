"""The stages together: lists for a batch, with or without a model, reasons, and what makes the next list differ."""

import itertools
from collections.abc import Sequence

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
    live,
    look,
    made,
    names,
    plain,
    remember,
    searched,
    shown,
    stock,
    unit,
)

from recsys.candidates import default_sources, gather
from recsys.catalogue import Catalogue, Item, item_ref
from recsys.context import Context, Request, Shop
from recsys.errors import Misuse
from recsys.events import Cart, Event, View
from recsys.explain import explain
from recsys.features import NAMES
from recsys.intent import follow_visit
from recsys.pipeline import Draft, recommend
from recsys.policy import Cap, Minimum, Pin, Policy, Sponsored
from recsys.profiles import EMPTY, Profile
from recsys.scoring import Ask, Scored
from recsys.signal_table import SignalTable
from recsys.signals import Signal
from recsys.slates import Cause, Slate, SlateItem, Versions, decode_slate, encode_slate, slate_id
from recsys.triggers import should_recommend

MINUTE = 1 / 1440  # of a day
RELEVANCE = Policy(diversity="none", exposure_penalty=0, voices=0, fatigue_shown=0)  # the score alone


def linear(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
    """Any deterministic scorer of rows: some weights."""
    features = np.concatenate([ask.features for ask in asks])
    weight = np.random.default_rng(0).normal(size=(len(NAMES), 2)).astype(np.float32)
    return Scored(np.stack([(features * weight[:, head]).sum(axis=1) for head in (0, 1)], axis=1), "linear")


def no_model(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
    return Scored(None, "rank_fusion", "no release")


def ask(
    profile: Profile = EMPTY, vector: NDArray[np.float32] | None = None, user: str = "u", query: str = ""
) -> Request:
    return Request(user, profile, T, query, vector)


def one(shop: Shop, request: Request, policy: Policy = RELEVANCE, score: object = no_model) -> Draft:
    return recommend([request], shop, default_sources(policy), score, policy)[0]  # type: ignore[arg-type]


def ids(draft: Draft) -> list[str]:
    return [item.item for item in draft.items]


@pytest.fixture(scope="module")
def busy() -> tuple[Shop, dict[str, Profile]]:
    catalogue = stock(60)
    return live(catalogue, crowd(1, 60, users=20), batch=50)


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


# --- a batch ----------------------------------------------------------------------------------------------------------


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


# --- the next list differs --------------------------------------------------------------------------------------------


def two_shelves() -> Shop:
    """i0 … i4 go together and read alike, so do i5 … i9; everybody wants i5 … i9."""
    catalogue = Catalogue(plain(10).items, dim=2)
    catalogue.vectors[:10] = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    signals = SignalTable(catalogue)
    for row in range(10):
        shelf = range(row // 5 * 5, row // 5 * 5 + 5)
        pairs = tuple((item_ref(f"i{n}"), 9.0 - n % 5) for n in shelf if n != row)
        signals.update(row, Signal(T, pairs, short=1.0 + row, buyers=5))
    return Shop(catalogue, signals)


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


def test_what_everybody_is_shown_gives_way() -> None:
    catalogue = plain(3)
    signals = SignalTable(catalogue)
    for row, exposure in enumerate((0.0, 30.0, 0.0)):
        signals.update(row, Signal(T, short=1.0, exposure=exposure))
    score = lambda asks, vectors: Scored(np.array([[1, 1], [1.1, 1], [0.9, 1]], np.float32), "given")  # noqa: E731
    shop = Shop(catalogue, signals)
    two = msgspec.structs.replace(RELEVANCE, slate_size=2)
    assert ids(one(shop, ask(), two, score)) == ["i1", "i0"]
    assert ids(one(shop, ask(), msgspec.structs.replace(two, exposure_penalty=1.0), score)) == ["i0", "i2"]


def test_what_others_were_shown_decides_who_is_on_a_list_and_not_the_order() -> None:
    catalogue = plain(3)
    signals = SignalTable(catalogue)
    for row, exposure in enumerate((0.0, 30.0, 0.0)):
        signals.update(row, Signal(T, short=1.0, exposure=exposure))
    score = lambda asks, vectors: Scored(np.array([[1, 1], [1.1, 1], [0.9, 1]], np.float32), "given")  # noqa: E731
    priced = msgspec.structs.replace(RELEVANCE, exposure_penalty=1.0)
    assert ids(one(Shop(catalogue, signals), ask(), priced, score)) == ["i1", "i0", "i2"]


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


# --- reasons ----------------------------------------------------------------------------------------------------------


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


# --- triggers, policies, slates ---------------------------------------------------------------------------------------


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
