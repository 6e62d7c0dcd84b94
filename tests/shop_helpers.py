"""A small shop for the tests: items with vectors, one user's events, and the crowd's. All times count back from T."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from recsys.catalogue import Catalogue, Item, item_ref
from recsys.context import Context, Request, Shop, see
from recsys.events import Cart, Click, Event, Impression, OnItem, Purchase, Search, View, encode_event, event_hash
from recsys.item_models import ItemModel, ItemModels
from recsys.profiles import EMPTY, Profile, apply
from recsys.signal_table import SignalTable
from recsys.signals import Signal, Tally, absorb

T = 1_700_000_000  # seconds; now, for every test
DAY_S = 86_400
KINDS: tuple[type[Click | View | Cart | Purchase], ...] = (View, Click, Cart, Purchase)
OnOne = TypeVar("OnOne", bound=OnItem)


def made(kind: type[OnOne], item: str, days_ago: float = 0.0, user: str = "u", **fields: Any) -> OnOne:
    """An event on one item."""
    return kind(user=user, item=item, ts_ms=at_ms(days_ago), **fields)


def bought(item: str, days_ago: float = 0.0, user: str = "u") -> Purchase:
    return made(Purchase, item, days_ago, user)


def clicked(item: str, days_ago: float = 0.0, user: str = "u") -> Click:
    return made(Click, item, days_ago, user)


def searched(query: str, days_ago: float = 0.0, user: str = "u") -> Search:
    return Search(user=user, query=query, ts_ms=at_ms(days_ago))


def shown(items: Iterable[str], days_ago: float = 0.0, user: str = "u") -> Impression:
    return Impression(user=user, items=tuple(items), ts_ms=at_ms(days_ago))


def at_ms(days_ago: float) -> int:
    return round((T - days_ago * DAY_S) * 1000)


def stock(count: int = 40, dim: int = 8, seed: int = 0) -> Catalogue:
    """Items i0, i1, ... as they occur: some without a price, a category or a vector, some new, some not to be had."""
    rng = np.random.default_rng(seed)
    catalogue = Catalogue(
        (
            Item(
                item=f"i{n}",
                title=f"Thing {n}",
                category=("", "shop > kind 0", f"shop > kind {n % 4} > shelf {n % 8}")[min(n % 7, 2)],
                brand=f"brand {n % 5}" if n % 3 else "",
                price=float(rng.integers(1, 99)) if n % 4 else None,
                available=n % 11 != 10,
                first_ts_ms=at_ms(n) if n % 5 else None,
            )
            for n in range(count)
        ),
        dim,
    )
    catalogue.vectors[:count] = unit_rows(count, dim, seed) * (np.arange(count) % 9 != 8)[:, None]
    return catalogue


def plain(count: int, dim: int = 0) -> Catalogue:
    """Items i0, i1, ... that differ in nothing but their names."""
    return Catalogue((Item(item=f"i{n}", title=f"Thing {n}") for n in range(count)), dim)


def unit(vectors: Any) -> NDArray[np.float32]:
    rows = np.asarray(vectors, np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9), np.float32)


def unit_rows(count: int, dim: int = 6, seed: int = 1) -> NDArray[np.float32]:
    """Vectors of any direction."""
    return unit(np.random.default_rng(seed).normal(size=(count, dim)))


def remember(*events: Event) -> Profile:
    """One user's events as a profile."""
    profile = EMPTY
    for event in events:
        profile = apply(profile, event, identity(event))
    return profile


def identity(event: Event) -> bytes:
    return event_hash(event, encode_event(event))


def live(catalogue: Catalogue, events: Sequence[Event] = (), batch: int = 0) -> tuple[Shop, dict[str, Profile]]:
    """The events through profiles and signals as ranker and aggregator do it, in batches: of a size, or of a moment."""
    shop = Shop(catalogue, SignalTable(catalogue))
    states: dict[int, Signal] = {}
    profiles: dict[str, Profile] = {}
    for _, chunk in groupby(enumerate(events), lambda pair: pair[0] // batch if batch else pair[1].ts_ms):
        tally = Tally()
        for _, event in chunk:
            before = profiles.get(event.user, EMPTY)
            after = apply(before, event, identity(event))
            if after is not before:
                tally.add(event, before)
                profiles[event.user] = after
        for key, inc in tally.increments():
            row = catalogue.row(key) if isinstance(key, str) else catalogue.row_of_ref.get(key, -1)
            if row >= 0:
                states[row] = absorb(states.get(row, Signal()), inc)
                shop.signals.update(row, states[row])
    return shop, profiles


def crowd(seed: int, count: int = 40, users: int = 15, each: int = 12) -> list[Event]:
    """What users did within ten weeks, in the order of time: visits of a few items, some of them shown before."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    for user in range(users):
        for days_ago in rng.uniform(0, 70, each // 3):
            for minute in range(3):
                item, kind = f"i{rng.integers(count)}", KINDS[rng.choice(4, p=[0.2, 0.2, 0.1, 0.5])]
                events.append(made(kind, item, days_ago - minute / 1440, f"u{user}"))
            events.append(shown([f"i{n}" for n in rng.integers(count, size=5)], days_ago, f"u{user}"))
    return sorted(events, key=lambda event: event.ts_ms)


def look(
    shop: Shop, profile: Profile = EMPTY, vector: NDArray[np.float32] | None = None, now_s: float = T, query: str = ""
) -> Context:
    """A request of user u, seen through the shop."""
    return see(Request("u", profile, now_s, query, vector), shop)


def names(catalogue: Catalogue, rows: Iterable[int]) -> list[str]:
    """Rows as ids of items."""
    return [catalogue.items[row].item for row in rows]


def draw_item_models(catalogue: Catalogue, seed: int) -> ItemModels:
    """Models that speak for and against a few items, in weights many of which are equal."""
    rng, count = np.random.default_rng(seed), len(catalogue)
    refs = np.array([item_ref(item.item) for item in catalogue.items], np.uint64)

    def draw() -> ItemModel:
        columns = np.sort(np.argsort(rng.random((count, count)), axis=1)[:, : count // 3], axis=1)
        weights = rng.choice([-0.5, 0.5, 1.0], columns.shape).astype(np.float32)
        return ItemModel(np.arange(count + 1) * (count // 3), columns.ravel(), weights.ravel())

    return ItemModels(refs, {name: draw() for name in ("ease", "lately", "again", "fresh")})
