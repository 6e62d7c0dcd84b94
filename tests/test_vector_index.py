"""The approximate index behind the door of the exact one."""

import numpy as np
import pytest

from models.vector_index import FOLLOW, Approximate
from recsys.candidates import BruteForce
from recsys.catalogue import Catalogue, Item
from recsys.context import Context, Request, Shop, see
from recsys.profiles import EMPTY
from recsys.signal_table import SignalTable


@pytest.fixture
def context() -> Context:
    rng = np.random.default_rng(0)
    catalogue = Catalogue([Item(item=f"i{n}", title=f"T{n}") for n in range(2000)], dim=32)
    vectors = rng.normal(size=(50, 32))[rng.integers(0, 50, 2000)] + 0.5 * rng.normal(size=(2000, 32))
    catalogue.set_vectors(range(2000), (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    return see(Request("u", EMPTY, 1_700_000_000.0), Shop(catalogue, SignalTable(catalogue)))


def test_a_small_catalogue_is_searched_exactly(context: Context) -> None:
    vector = context.shop.catalogue.vectors[7]
    ours, exact = Approximate(32).nearest(context, vector, 20), BruteForce().nearest(context, vector, 20)
    assert ours.rows.tolist() == exact.rows.tolist()


def test_a_large_catalogue_is_searched_nearly_as_well(context: Context) -> None:
    index, shared = Approximate(32, exact_until=100), 0
    for row in range(0, 2000, 100):
        vector = context.shop.catalogue.vectors[row]
        ours, exact = index.nearest(context, vector, 20), BruteForce().nearest(context, vector, 20)
        assert (np.diff(ours.scores) <= 0).all()
        assert ours.rows[0] == row
        shared += len(set(ours.rows.tolist()) & set(exact.rows.tolist()))
    assert shared >= 0.95 * 20 * 20


def test_a_catalogue_that_grows_large_while_serving_is_taken_in_little_by_little_and_searched_exactly_meanwhile(
    context: Context,
) -> None:
    index, catalogue = Approximate(32, exact_until=1999), context.shop.catalogue
    late = catalogue.items.pop()
    index.nearest(context, catalogue.vectors[7], 5)  # the first list of a start
    catalogue.items.append(late)
    for taken_in in (FOLLOW, 2 * FOLLOW):
        found = index.nearest(context, catalogue.vectors[7], 50)
        assert found.rows.tolist() == BruteForce().nearest(context, catalogue.vectors[7], 50).rows.tolist()
        assert len(index._index) == taken_in
    while len(index._index) < 2000:
        index.nearest(context, catalogue.vectors[7], 1)
    catalogue.set_vectors(range(2000), catalogue.vectors[:2000])  # all texts anew: the index answers, and follows
    assert index.nearest(context, catalogue.vectors[1999], 5).rows[0] == 1999


def test_what_is_sold_out_takes_no_place_in_a_large_catalogue_either(context: Context) -> None:
    index, catalogue = Approximate(32, exact_until=100), context.shop.catalogue
    vector = catalogue.vectors[7]
    nearest = BruteForce().nearest(context, vector, 40).rows
    catalogue.available[nearest[:30]] = False  # of the 40 that are looked at for 10
    found = index.nearest(context, vector, 10)
    assert found.rows.tolist() == nearest[30:].tolist()


def test_the_index_follows_new_changed_and_withdrawn_texts(context: Context) -> None:
    index, catalogue = Approximate(32, exact_until=100), context.shop.catalogue
    vector = catalogue.vectors[7].copy()
    assert index.nearest(context, vector, 5).rows[0] == 7
    catalogue.upsert(Item(item="i7", title="Another text"))
    assert 7 not in index.nearest(context, vector, 50).rows
    row = catalogue.upsert(Item(item="new", title="New"))
    catalogue.set_vectors([row], vector[None])
    assert index.nearest(context, vector, 5).rows[0] == row
