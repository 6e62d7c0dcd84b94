"""A profile is a set: the order of arrival and repeats do not show, and it never outgrows its 10 KiB."""

import zlib
from itertools import permutations
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shop_helpers import DAY_S, KINDS, T, bought, clicked, identity, made, remember, searched, shown

from recsys.catalogue import item_ref
from recsys.errors import BadEvent
from recsys.events import TS_MAX_MS, TS_MIN_MS, Cart, Click, Event, Impression, Purchase, Search, View
from recsys.profiles import (
    CART,
    CLICK,
    EMPTY,
    ID_WIDTH,
    KEEP_IDS,
    KEEP_PURCHASES,
    KEEP_QUERIES,
    KEEP_SHOWN,
    KEEP_TOUCHES,
    PROFILE_MAX_BYTES,
    PURCHASE,
    QUERY_BYTES,
    VIEW,
    Profile,
    apply,
    decode_profile,
    encode_profile,
    newest_ts_s,
    owns,
    read_log,
)

VISIBLE = "a é 日 👩 %s{0} ﷺ ا"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100)


def events_at(times: st.SearchStrategy[int], items: int) -> st.SearchStrategy[Event]:
    """Some with an id, each with its own: of two events with one id the second is refused, so order would show."""
    common: dict[str, Any] = {"user": st.just("u"), "ts_ms": times}
    item = st.integers(0, items).map("i{}".format)
    return st.one_of(
        *(st.builds(kind, **common, item=item) for kind in KINDS),
        st.builds(Search, **common, query=TEXTS),
        st.builds(Impression, **common, items=st.lists(item, min_size=1, max_size=12).map(tuple)),
    ).flatmap(lambda event: st.sampled_from([event, named(event)]))


def named(event: Event, suffix: str = "") -> Event:
    """The event with an id of its own."""
    return msgspec.structs.replace(event, id=f"{zlib.crc32(repr(event).encode()):08x}{suffix}")


# Few times and items, so that many events meet in a second; or any, so that the logs overflow.
CROWDED = events_at(st.integers(0, 9).map(lambda n: T * 1000 + 400 * n), 3)
SPREAD = events_at(st.integers(TS_MIN_MS, TS_MAX_MS), 10**6)


def overflow(seed: int) -> list[Event]:
    """Three times what each log keeps, of every kind, four events a second."""
    rng = np.random.default_rng(seed)
    kinds = [*KINDS, Search, Impression]
    many: list[Event] = []
    for kind, count in zip(kinds, (60, 60, 60, 3 * KEEP_PURCHASES, 3 * KEEP_QUERIES, 20), strict=True):
        for n in range(count):
            ts_ms, item = (T + int(rng.integers(200))) * 1000, f"i{rng.integers(50)}"
            if kind is Search:
                many.append(Search(user="u", ts_ms=ts_ms, query=f"{item} {n}"))
            elif kind is Impression:
                many.append(Impression(user="u", ts_ms=ts_ms, items=tuple(f"i{i}" for i in rng.integers(50, size=10))))
            else:
                many.append(kind(user="u", ts_ms=ts_ms, item=item))  # type: ignore[call-arg]
    return many


@given(st.lists(CROWDED | SPREAD, max_size=30), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_any_order_and_any_repeats_of_the_same_events_give_the_same_bytes(events: list[Event], random: Any) -> None:
    again = events + random.choices(events, k=len(events)) if events else []
    random.shuffle(again)
    assert encode_profile(remember(*again)) == encode_profile(remember(*events))


@pytest.mark.parametrize("seed", range(3))
def test_order_and_repeats_do_not_show_where_the_logs_overflow(seed: int) -> None:
    events, rng = overflow(seed), np.random.default_rng(seed)
    expected = remember(*events)
    assert len(expected.purchases) == 10 * KEEP_PURCHASES
    assert len(expected.touches) == 11 * KEEP_TOUCHES
    assert len(expected.shown) == 10 * KEEP_SHOWN
    assert len(expected.ids) == ID_WIDTH * KEEP_IDS
    assert len(expected.queries) == KEEP_QUERIES
    for _ in range(3):
        again = [events[at] for at in rng.permutation(np.tile(np.arange(len(events)), 2))]
        assert encode_profile(remember(*again)) == encode_profile(expected)
    assert remember(*sorted(events, key=lambda event: -event.ts_ms)) == expected


def test_every_order_of_a_second_with_one_event_of_each_kind_is_the_same() -> None:
    second = [*(made(kind, "i1") for kind in KINDS), searched("mug"), shown(["i1", "i2"])]
    assert len({encode_profile(remember(*order)) for order in permutations(second)}) == 1


@given(st.lists(CROWDED | SPREAD, min_size=1, max_size=30), st.data())
@settings(deadline=None)
def test_a_duplicate_leaves_the_very_same_object(events: list[Event], data: st.DataObject) -> None:
    profile = remember(*events)
    again = data.draw(st.sampled_from(events))
    assert apply(profile, again, identity(again)) is profile


def test_a_duplicate_that_the_ring_has_forgotten_still_changes_nothing() -> None:
    events = overflow(0)
    profile = remember(*events)
    assert all(apply(profile, event, identity(event)) is profile for event in events)


def test_two_events_that_differ_only_in_their_id_are_two() -> None:
    one, two = made(Click, "i1", id="a"), made(Click, "i1", id="b")
    after = remember(one, two)
    assert after != remember(one)
    assert after.touches == remember(one).touches


@pytest.mark.parametrize(
    "other",
    [
        made(Click, "i2", id="a"),
        made(View, "i1", id="a"),
        made(Click, "i1", id="a", price=2.0),
        made(Click, "i1", id="a", session="s"),
        made(Click, "i1", days_ago=3, id="a"),
        made(Click, "i1", days_ago=-3, id="a"),
        Search(user="u", ts_ms=T * 1000 + 1, query="mug", id="a"),
    ],
)
def test_the_id_of_another_event_is_refused_whatever_differs_and_whatever_came_between(other: Event) -> None:
    between = [named(event) for event in overflow(0)[: KEEP_IDS - 1]]
    profile = remember(made(Click, "i1", id="a"), *between)
    with pytest.raises(BadEvent, match="id: 'a' is that of another event; give each event its own") as caught:
        apply(profile, other, identity(other))
    assert caught.value.reason_class == "duplicate_conflict"


def test_the_same_id_is_a_repeat_where_nothing_differs_and_free_for_another_user() -> None:
    one = made(Click, "i1", id="a")
    profile = remember(one, made(Click, "i2", id="b"))
    assert apply(profile, one, identity(one)) is profile
    other = made(Click, "i2", id="a", user="v")
    assert apply(EMPTY, other, identity(other)) != EMPTY


def test_events_without_an_id_cannot_conflict() -> None:
    # As the replay of history names them: by item and action, the time makes them distinct.
    one = apply(EMPTY, clicked("i1"), b"\0\0\0\0\0\1")
    two = apply(one, clicked("i1", days_ago=1), b"\0\0\0\0\0\1")
    assert len(two.ids) == 2 * ID_WIDTH
    assert apply(two, clicked("i1"), b"\0\0\0\0\0\1") is two


def test_an_id_is_found_among_records_that_only_look_like_it() -> None:
    # The name stands across the borders of another record too: bytes 2 to 8 of it instead of 4 to 10.
    early = made(Click, "i1", days_ago=1)
    decoy = (early.ts_ms // 1000).to_bytes(4)[2:] + b"wxyz"
    profile = apply(apply(EMPTY, early, b"wxyz__??"), clicked("i2"), decoy + b"!!")
    assert apply(profile, clicked("i2"), decoy + b"!!") is profile
    with pytest.raises(BadEvent, match="another event"):
        apply(profile, clicked("i2"), decoy + b"!?")
    only = apply(EMPTY, early, b"wxyz__??")
    assert len(apply(only, clicked("i2"), decoy + b"!!").ids) == 2 * ID_WIDTH


def test_an_id_that_the_ring_has_forgotten_is_free_again() -> None:
    many = [named(event) for event in overflow(1)]
    forgotten = made(Click, "i1", days_ago=30, id="old")
    profile = remember(forgotten, *many)
    other = made(Click, "i9", days_ago=-1, id="old")
    assert apply(profile, other, identity(other)) is not profile


def owned_of(profile: Profile, *items: str) -> list[bool]:
    found: list[bool] = owns(profile.owned, np.array([item_ref(item) for item in items], np.uint64)).tolist()
    return found


def test_an_event_older_than_all_that_is_kept_changes_nothing() -> None:
    profile = remember(*(clicked(f"i{n}", days_ago=n / 10) for n in range(KEEP_TOUCHES)))
    old = clicked("old", days_ago=400)
    assert apply(profile, old, identity(old)) is profile


def test_of_a_purchase_older_than_all_that_is_kept_the_item_is_remembered_once() -> None:
    profile = remember(*(bought(f"i{n}", days_ago=n / 10) for n in range(KEEP_PURCHASES)))
    assert not profile.owned
    old = bought("old", days_ago=400)
    after = apply(profile, old, identity(old))
    assert owned_of(after, "old", "other") == [True, False]
    assert msgspec.structs.replace(after, owned=b"") == profile
    assert apply(after, old, identity(old)) is after


def test_no_item_that_was_ever_bought_is_forgotten_and_few_others_seem_to_be() -> None:
    profile = remember(*(bought(f"i{n}", days_ago=n / 10) for n in range(KEEP_PURCHASES + 2000)))
    assert all(owned_of(profile, *(f"i{n}" for n in range(KEEP_PURCHASES, KEEP_PURCHASES + 2000))))
    others = owned_of(profile, *(f"other{n}" for n in range(20_000)))
    assert 0 < sum(others) / len(others) < 0.03


def test_a_profile_written_before_it_knew_more_than_its_purchases_is_still_read() -> None:
    old = msgspec.msgpack.encode((b"0123456789", b"", b"", b"", ((1, "mug"),)))
    assert decode_profile(old) == Profile(b"0123456789", queries=((1, "mug"),))


def test_a_late_event_that_still_belongs_is_kept_in_its_place() -> None:
    profile = remember(*(bought(f"i{n}", days_ago=n) for n in range(KEEP_PURCHASES)), bought("late", days_ago=1.5))
    log = read_log(profile.purchases)
    assert log.ts_s.tolist() == sorted(log.ts_s.tolist())
    assert log.refs[-3:].tolist() == [item_ref("late"), item_ref("i1"), item_ref("i0")]
    assert len(log.refs) == KEEP_PURCHASES
    assert item_ref(f"i{KEEP_PURCHASES - 1}") not in log.refs  # the oldest made room


def test_a_late_impression_does_not_push_out_what_was_shown_since() -> None:
    newest = shown([f"new{n}" for n in range(KEEP_SHOWN)])
    assert remember(newest, shown(["old"], days_ago=1)).shown == remember(newest).shown


@given(st.lists(CROWDED | SPREAD, max_size=40))
@settings(deadline=None)
def test_a_profile_is_read_back_from_its_bytes(events: list[Event]) -> None:
    profile = remember(*events)
    data = encode_profile(profile)
    assert decode_profile(data) == profile
    assert len(data) <= PROFILE_MAX_BYTES


@pytest.mark.parametrize("letter", ["x", "é", "日", "\U0001f600"])
def test_the_fullest_profile_fits(letter: str) -> None:
    times = [TS_MAX_MS - 1000 * n for n in range(3 * KEEP_PURCHASES)]
    full = remember(
        *(Purchase(user="u", item=f"{n}", ts_ms=ts_ms) for n, ts_ms in enumerate(times)),
        *(Cart(user="u", item=f"{n}", ts_ms=ts_ms) for n, ts_ms in enumerate(times)),
        *(Search(user="u", query=letter * 1000, ts_ms=ts_ms) for ts_ms in times[:50]),
        Impression(user="u", items=tuple(f"{n}" for n in range(200)), ts_ms=TS_MAX_MS),
    )
    assert PROFILE_MAX_BYTES * 0.97 < len(encode_profile(full)) <= PROFILE_MAX_BYTES
    assert all(QUERY_BYTES - 4 < len(text.encode()) <= QUERY_BYTES for _, text in full.queries)


def test_a_log_is_read_as_columns_oldest_first() -> None:
    profile = remember(clicked("a", 2), made(Cart, "b", 1), made(View, "c", 3), bought("d", 4), shown(["e"], 5))
    log = read_log(profile.touches, touch=True)
    assert log.ts_s.tolist() == [T - 3 * DAY_S, T - 2 * DAY_S, T - DAY_S]
    assert log.refs.tolist() == [item_ref(item) for item in "cab"]
    assert log.actions.tolist() == [VIEW, CLICK, CART]
    assert read_log(profile.purchases).actions.tolist() == [PURCHASE]
    assert read_log(profile.shown).refs.tolist() == [item_ref("e")]
    assert len(read_log(b"").ts_s) == len(read_log(b"", touch=True).refs) == 0


def test_queries_keep_the_newest_and_their_text() -> None:
    profile = remember(*(searched(f"query {n}", days_ago=n) for n in range(10)), searched("query 0"))
    assert profile.queries == tuple((T - n * DAY_S, f"query {n}") for n in reversed(range(KEEP_QUERIES)))


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("red\tmug\r\nblue", "red mug blue"),
        (" \x00red\x1b[2J \x7f mug\x9b", "red[2J mug"),
        ("\u202egum der\u202c", "gum der"),
        ("m\u200bu\u00adg\ufeff\u2066\u2060", "mug"),
        ("👩\u200d🚀", "👩🚀"),
        ("mug\U000e0041\U000e007f", "mug"),
        ("a\u2028b", "a b"),
        (VISIBLE, VISIBLE),
        (" red  mug ", " red  mug "),
        ("z" + "\u0301" * 1000, ("z" + "\u0301" * 39)),
        ("\u202e" * 500 + "mug", "mug"),
    ],
)
def test_a_query_is_kept_as_one_reads_it(typed: str, kept: str) -> None:
    assert [text for _, text in remember(searched(typed)).queries] == [kept]


@pytest.mark.parametrize("typed", ["\0", "\u202e\u200b", "\t\n", "  "])
def test_a_query_of_which_nothing_is_seen_is_no_query_but_an_event(typed: str) -> None:
    profile = remember(searched(typed))
    assert profile.queries == ()
    assert newest_ts_s(profile) == T


def test_the_newest_moment_is_that_of_any_event() -> None:
    assert newest_ts_s(EMPTY) == 0
    assert newest_ts_s(remember(bought("a", 2), searched("b", 1), clicked("c", 3))) == T - DAY_S


def test_an_empty_profile_is_a_few_bytes() -> None:
    assert decode_profile(encode_profile(EMPTY)) == EMPTY == Profile()
    assert len(encode_profile(EMPTY)) == 12
