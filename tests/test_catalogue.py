"""Items as rows that never move: growth, changes, tombstones, and the 48-bit names that profiles keep."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.catalogue import (
    Catalogue,
    Item,
    decode_item,
    encode_item,
    item_key,
    item_ref,
    item_text,
    text_hash,
)
from recsys.errors import BadEvent

MUG = Item(
    item="m", title="Red mug", category="home > kitchen > mugs", brand="Ox", price=4.0, first_ts_ms=1_700_000_000_000
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@given(
    st.builds(
        Item,
        item=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=128),
        title=TEXTS,
        category=TEXTS,
        brand=TEXTS,
        tags=st.lists(TEXTS, max_size=3).map(tuple),
        description=TEXTS,
        price=st.none() | st.floats(0, 1e9),
        available=st.booleans(),
    )
)
def test_every_item_survives_its_bytes_and_has_a_row(item: Item) -> None:
    assert decode_item(encode_item(item)) == item
    catalogue = Catalogue([item])
    assert catalogue.row(item.item) == 0
    assert catalogue.available[0] == item.available
    assert np.isfinite(catalogue.log_price[0]) == bool(item.price)  # free of charge is not a price to compare


@pytest.mark.parametrize(
    ("fields", "reason_class"),
    [({"title": None}, "schema"), ({"price": -1}, "range"), ({"item": ""}, "range"), ({"title": "x" * 1001}, "range")],
)
def test_an_item_that_is_none_is_bad_and_says_why(fields: dict[str, object], reason_class: str) -> None:
    with pytest.raises(BadEvent) as caught:
        decode_item(msgspec.json.encode({"item": "m", "title": "Mug"} | fields))
    assert caught.value.reason_class == reason_class


def test_a_category_in_parts_is_told_how_a_path_is_written() -> None:
    with pytest.raises(BadEvent, match="at `category`; a path is one text, as in 'kitchen > mugs'$"):
        decode_item(b'{"item":"m","title":"Red mug","category":["kitchen","mugs"]}')


def test_a_text_is_title_then_whatever_else_is_given() -> None:
    full = msgspec.structs.replace(MUG, tags=("new", "gift"), description="Of clay.")
    assert item_text(full) == "Red mug. home, kitchen, mugs. Ox. new, gift. Of clay."
    assert item_text(Item(item="m", title="Red mug")) == "Red mug"
    assert text_hash("Red mug") != text_hash("red mug")


def test_the_short_name_of_an_item_is_the_same_in_every_process() -> None:
    # Stored in every profile: whoever changes the hash makes all of them strangers.
    assert item_ref("i1") == int.from_bytes(item_key("i1")) == 0xBBD538659824


def test_an_item_is_described_as_arrays() -> None:
    catalogue = Catalogue([MUG, Item(item="p", title="Pan", category="home > kitchen"), Item(item="x", title="X")])
    home, kitchen, mugs = catalogue.category[0].tolist()
    assert len({home, kitchen, mugs}) == 3
    assert catalogue.category[1].tolist() == [home, kitchen, -1]
    assert catalogue.category[2].tolist() == [-1, -1, -1]
    assert (catalogue.brand[0] >= 0, catalogue.brand[1]) == (True, -1)
    assert catalogue.log_price[0] == np.float32(np.log(4.0))
    assert np.isnan(catalogue.log_price[1])
    assert catalogue.first_s[0] == 1_700_000_000
    assert np.isnan(catalogue.first_s[1])


def test_shelves_of_the_same_name_in_different_rooms_are_different() -> None:
    catalogue = Catalogue(Item(item=c, title="x", category=c) for c in ("garden > chairs", "office > chairs"))
    assert catalogue.category[0, 1] != catalogue.category[1, 1]


def test_a_brand_and_a_category_of_the_same_name_are_different() -> None:
    catalogue = Catalogue([Item(item="a", title="x", category="Ox", brand="Ox")])
    assert catalogue.brand[0] != catalogue.category[0, 0]


def test_more_items_than_the_arrays_were_made_for_keep_their_rows_and_figures() -> None:
    catalogue = Catalogue(dim=3)
    for n in range(2500):
        item = Item(
            item=f"i{n}", title=f"T {n}", category=f"c{n}", brand=f"b{n}", price=n + 1.0, first_ts_ms=10**12 + n
        )
        assert catalogue.upsert(item) == n
        catalogue.vectors[n] = n
    assert len(catalogue) == 2500
    assert catalogue.rows(np.array([item_ref(f"i{n}") for n in range(2500)], np.uint64)).tolist() == list(range(2500))
    n = np.arange(2500)
    np.testing.assert_array_equal(catalogue.vectors[:2500], np.repeat(n, 3).reshape(-1, 3))
    np.testing.assert_allclose(catalogue.log_price[:2500], np.log(n + 1), rtol=1e-6)
    np.testing.assert_array_equal(catalogue.first_s[:2500], 1e9 + n / 1000)
    assert len(np.unique(catalogue.category[:2500, 0])) == len(np.unique(catalogue.brand[:2500])) == 2500
    assert catalogue.available[:2500].all()
    assert not catalogue.available[2500:].any()


def test_an_unknown_item_has_no_row() -> None:
    catalogue = Catalogue([MUG])
    assert catalogue.row("nobody") == -1
    assert catalogue.rows(np.array([item_ref("nobody"), item_ref("m")], np.uint64)).tolist() == [-1, 0]
    assert catalogue.rows(np.empty(0, np.uint64)).tolist() == []


def test_a_second_item_of_the_same_short_name_is_refused_and_the_first_stays() -> None:
    catalogue = Catalogue([MUG])
    catalogue.row_of_ref[item_ref("stranger")] = 0  # as if "stranger" and "m" had the same 48 bits
    with pytest.raises(BadEvent, match="'stranger' has the same 48-bit name as 'm'; rename one") as caught:
        catalogue.upsert(Item(item="stranger", title="Stranger"))
    assert caught.value.reason_class == "schema"
    assert (len(catalogue), catalogue.items[0], catalogue.version) == (1, MUG, 1)


def test_a_changed_text_clears_the_vector_and_another_change_keeps_it() -> None:
    catalogue = Catalogue([MUG], dim=2)
    catalogue.vectors[0] = (0.6, 0.8)
    catalogue.upsert(msgspec.structs.replace(MUG, price=9.0, available=False))
    assert catalogue.vectors[0].any()
    assert catalogue.log_price[0] == np.float32(np.log(9.0))
    catalogue.upsert(msgspec.structs.replace(MUG, title="Blue mug", category="", brand="", price=None))
    assert not catalogue.vectors[0].any()
    assert catalogue.category[0].tolist() == [-1, -1, -1]
    assert catalogue.brand[0] == -1
    assert np.isnan(catalogue.log_price[0])


def test_a_tombstone_switches_a_row_off_and_a_new_description_on_again() -> None:
    catalogue = Catalogue([MUG, Item(item="p", title="Pan")])
    catalogue.remove("m")
    assert catalogue.available[:2].tolist() == [False, True]
    assert (catalogue.row("m"), len(catalogue)) == (0, 2)
    assert catalogue.upsert(MUG) == 0
    assert catalogue.available[0]


def test_the_version_counts_changes_and_a_tombstone_of_nothing_is_none() -> None:
    catalogue = Catalogue([MUG])
    assert catalogue.version == 1
    catalogue.remove("nobody")
    assert catalogue.version == 1
    catalogue.remove("m")
    catalogue.upsert(MUG)
    assert catalogue.version == 3
