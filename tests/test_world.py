"""The shop as of a past moment is what the live shop was: same profiles, same signals, same features; no future."""

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from past_helpers import DAY_S, T, draw_past, past
from shop_helpers import live, names, unit_rows

from models.examples import ask_of
from models.history import History
from models.world import World
from recsys.candidates import Candidates, default_sources, gather
from recsys.catalogue import Catalogue
from recsys.context import Request, Shop, see
from recsys.events import Cart, Click, Event, Purchase, View
from recsys.features import NAMES, compute_features
from recsys.policy import Policy
from recsys.profiles import CART, CLICK, EMPTY, PURCHASE, VIEW, Profile

SOURCES = default_sources(Policy())
KIND = {PURCHASE: Purchase, VIEW: View, CLICK: Click, CART: Cart}


def mixed_past(seed: int = 0) -> History:
    """Some of the purchases of a drawn past as views, clicks and carts."""
    history = draw_past(seed)
    action = np.random.default_rng(seed).choice([VIEW, CLICK, CART, PURCHASE], len(history), p=[0.1, 0.1, 0.1, 0.7])
    return msgspec.structs.replace(history, action=action.astype(np.uint8))


def lived(history: History, until_s: int, vectors: NDArray[np.float32]) -> tuple[Shop, dict[str, Profile]]:
    """The same past as events through the live path; items are described when they first occur."""
    before = history.before(until_s)
    first_s = {item: before.ts_s[np.argmax(before.item == item)] for item in np.unique(before.item)}
    catalogue = Catalogue(
        (
            msgspec.structs.replace(item, first_ts_ms=int(first_s[n]) * 1000) if n in first_s else item
            for n, item in enumerate(history.items)
        ),
        vectors.shape[1],
    )
    catalogue.vectors[: len(vectors)] = vectors
    columns = zip(before.user, before.item, before.ts_s, before.action, strict=True)
    events: list[Event] = [
        KIND[action](user=history.user_ids[user], item=history.items[item].item, ts_ms=int(ts_s) * 1000)
        for user, item, ts_s, action in columns
    ]
    return live(catalogue, events)


def features_of(shop: Shop, request: Request) -> tuple[Candidates, NDArray[np.float32]]:
    """What serving computes for a request, of every candidate there is."""
    context = see(request, shop)
    found = gather(context, SOURCES, 60)
    return found, compute_features(context, found)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_past_replayed_gives_the_features_of_the_live_path(seed: int) -> None:
    history = mixed_past(seed)
    vectors, until_s = unit_rows(len(history.items)), T - 20 * DAY_S
    world = World(history, vectors)
    world.advance(until_s)
    shop, profiles = lived(history, until_s, vectors)
    assert len(profiles) > 50
    for user, name in enumerate(history.user_ids):
        mine, theirs = world.request(user), Request(name, profiles.get(name, EMPTY), float(until_s))
        assert (mine.profile.purchases, mine.profile.touches) == (theirs.profile.purchases, theirs.profile.touches)
        (found, replayed), (served, features) = features_of(world.shop, mine), features_of(shop, theirs)
        np.testing.assert_array_equal(found.rows, served.rows)
        np.testing.assert_array_equal(found.ranks, served.ranks)
        np.testing.assert_array_equal(replayed, features)


def test_training_and_serving_call_the_same_functions() -> None:
    history = mixed_past(2)
    world = World(history, unit_rows(len(history.items)))
    world.advance(T)
    asked = ask_of(world, world.request(5), SOURCES, Policy())
    every, served = features_of(world.shop, world.request(5))
    at = np.searchsorted(every.rows, asked.rows)
    np.testing.assert_array_equal(every.rows[at], asked.rows)
    np.testing.assert_allclose(served[at], asked.features, rtol=1e-5, atol=1e-6)
    assert asked.features.shape == (len(asked.rows), len(NAMES))


def test_a_moment_knows_no_later_item_event_or_user() -> None:
    history = past([(0, 0, -3), (0, 1, -2), (1, 2, 0), (1, 0, 1)], items=4)
    world = World(history)
    world.advance(T)
    catalogue = world.shop.catalogue
    assert catalogue.available[:4].tolist() == [True, True, False, False]
    assert catalogue.first_s[:2].tolist() == [T - 3 * DAY_S, T - 2 * DAY_S]
    assert np.isnan(catalogue.first_s[2:4]).all()
    assert world.request(0).now_s == T
    assert world.request(1).profile is EMPTY
    assert world.shop.signals.buyers[:4].tolist() == [1, 1, 0, 0]
    world.advance(T + 1)  # what happens at a moment is known after it
    assert catalogue.available[:4].tolist() == [True, True, True, False]
    assert world.request(1).profile.purchases


def test_the_future_does_not_change_the_past() -> None:
    history = mixed_past(0)
    vectors, at_s = unit_rows(len(history.items)), T - 10 * DAY_S
    one, other = World(history, vectors), World(history.before(at_s), vectors)
    for world in (one, other):
        world.advance(at_s)
    for user in range(len(history.user_ids)):
        np.testing.assert_array_equal(
            features_of(one.shop, one.request(user))[1], features_of(other.shop, other.request(user))[1]
        )


def test_a_past_lived_in_steps_ends_in_the_same_profiles() -> None:
    history = mixed_past(1)
    at_once, in_steps = World(history), World(history)
    told: list[int] = []
    at_once.advance(T)
    for days in range(100, -1, -9):
        in_steps.advance(T - days * DAY_S, told.append)
    in_steps.advance(T)
    in_steps.advance(T)  # again is nothing
    assert in_steps.profiles == at_once.profiles
    assert told == sorted(told)
    assert told[-1] <= len(history.before(T))
    for name in ("buyers", "repeats"):
        np.testing.assert_array_equal(getattr(in_steps.shop.signals, name), getattr(at_once.shop.signals, name))


def test_a_shop_of_more_items_than_the_arrays_begin_with() -> None:
    history = past([(user, item, -item / 100) for item in range(3000) for user in (0, item % 7 + 1)], items=3000)
    world = World(history, np.eye(3000, 2, dtype=np.float32))
    world.advance(T)
    asked = ask_of(world, world.request(0), SOURCES, Policy())
    assert np.isfinite(asked.features).all()
    # The newest items come last in time: the source of new items offers the newest 60 of them all.
    assert {f"i{n}" for n in range(1, 60)} <= set(names(world.shop.catalogue, asked.rows))
    assert world.shop.signals.buyers[2999] == 2
