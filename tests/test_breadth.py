"""Strength per user: broad tastes get the policy's, narrow ones less, and of little history nothing follows."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from shop_helpers import bought, clicked, look, remember, searched

from recsys.breadth import adapted_strength, entropy, factor, kinds
from recsys.catalogue import Catalogue, Item
from recsys.context import Shop
from recsys.events import Event
from recsys.policy import Policy
from recsys.signal_table import SignalTable

ADAPTING = Policy(strength=0.4, adapt=1.0)
counts = st.lists(st.integers(0, 600), max_size=30).map(lambda values: np.array(values, np.float64))


def shop() -> Shop:
    """Thirty kinds of three things each, and one thing without a kind."""
    kinds_of = [Item(item=f"i{n}", title=f"word{n // 3} thing", category=f"all > kind {n // 3}") for n in range(90)]
    catalogue = Catalogue([*kinds_of, Item(item="odd", title="odd one")])
    return Shop(catalogue, SignalTable(catalogue))


def strength(*events: Event, policy: Policy = ADAPTING) -> float:
    return adapted_strength(look(shop(), remember(*events)), policy)


def everything(step: int) -> list[Event]:
    return [bought(f"i{n % 90}", days_ago=number + 1) for number, n in enumerate(range(0, step * 60, step))]


def test_who_wants_many_kinds_gets_more_variety_than_who_wants_one() -> None:
    broad, narrow = strength(*everything(3)), strength(*[bought(f"i{n % 3}", n + 1) for n in range(60)])
    assert 0.3 < broad <= 0.4
    assert narrow < broad / 2


def test_of_little_history_nothing_follows() -> None:
    assert strength() == 0.4
    assert strength(bought("i1")) > 0.38
    falling = [strength(*[bought("i1", n + 1) for n in range(many)]) for many in (0, 1, 5, 20, 100)]
    assert falling == sorted(falling, reverse=True)


def test_looking_and_searching_count_as_well_as_buying() -> None:
    one_kind: list[Event] = [bought("i0", n + 1) for n in range(20)]
    looked = [clicked(f"i{n * 3}", n / 100) for n in range(1, 20)]
    asked = [searched(f"word{n}", n / 100) for n in range(1, 6)]
    assert strength(*one_kind) < strength(*one_kind, *asked) < strength(*one_kind, *looked)
    assert strength(*one_kind, searched("nobody has this")) == strength(*one_kind)
    spread = kinds(look(shop(), remember(searched("word3"), searched("thing"))))
    assert spread.sum() == pytest.approx(2)
    assert spread.max() > 1  # three things of one kind answer the first


def test_what_has_no_kind_counts_as_nothing() -> None:
    assert strength(*[bought("odd", n + 1) for n in range(50)]) == 0.4


def test_adapt_says_how_far_and_by_default_all_users_get_the_same() -> None:
    events = everything(1)
    off, half, full = (strength(*events, policy=msgspec.structs.replace(ADAPTING, adapt=a)) for a in (0.0, 0.5, 1.0))
    assert off == 0.4
    assert half == pytest.approx((off + full) / 2)
    assert Policy().adapt == 0
    assert strength(*events, policy=Policy(strength=0.0, adapt=1.0)) == 0


@given(counts)
def test_the_factor_is_a_share_and_knows_no_order(values: NDArray[np.float64]) -> None:
    assert 0 < factor(values) <= 1
    assert factor(values) == pytest.approx(factor(np.append(values[::-1], 0.0)))
    assert 0 <= entropy(values) <= np.log(max(1, np.count_nonzero(values))) + 1e-9
