"""What can be recommended: items as the shop describes them, and as arrays the ranker computes with.

Rows are given in order of arrival and never move while a process lives, so neighbours, vectors and features can
refer to a row. A tombstone switches a row off. Profiles refer to items by a 48-bit hash (`item_ref`): 6 bytes
instead of a string of any length is what lets 600 purchases fit into a profile of 10 KiB.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from recsys.errors import BadEvent
from recsys.events import Amount, Id, TsMs, decode_with
from recsys.lexical import Lexicon

ITEM_SCHEMA = "slatecast.item.v1"
Short = Annotated[str, Meta(max_length=1000)]


class Item(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One product. `category` is a path, widest first, joined by ' > '."""

    item: Id
    title: Short
    category: Short = ""
    brand: Short = ""
    tags: Annotated[tuple[Short, ...], Meta(max_length=100)] = ()  # a tower reads the first few hundred words
    description: Annotated[str, Meta(max_length=20_000)] = ""
    price: Amount | None = None
    available: bool = True
    first_ts_ms: TsMs | None = None  # when it came into the shop; new items are found by it


_item_decoder = msgspec.json.Decoder(Item)


def decode_item(data: bytes) -> Item:
    """Bytes of a record of the items topic. Raises BadEvent.

    >>> decode_item(b'{"item":"i1","title":"Red mug","category":"kitchen > mugs"}').category
    'kitchen > mugs'
    """
    return decode_with(_item_decoder, data)


def encode_item(item: Item) -> bytes:
    """An item as the bytes on Kafka."""
    return msgspec.json.encode(item)


def item_ref(item: str) -> int:
    """The 48-bit name of an item inside profiles.

    At 1 million items two share a name with probability .18 %; `Catalogue.upsert` refuses the second.

    >>> item_ref("i1") == item_ref("i1") and item_ref("i1") < 2**48
    True
    """
    return int.from_bytes(item_key(item))


@functools.lru_cache(maxsize=131_072)  # the popular items of a shop; 10 MB, and .1 µs instead of .8
def item_key(item: str) -> bytes:
    """The same name as the six bytes that stand in a packed log."""
    return hashlib.blake2b(item.encode(), digest_size=6).digest()


def item_text(item: Item) -> str:
    """The text a tower reads, template v1: title, then category, brand, tags, description, where given.

    >>> item_text(Item(item="i1", title="Red mug", category="kitchen > mugs", brand="Ox"))
    'Red mug. kitchen, mugs. Ox'
    """
    parts = (
        item.title,
        ", ".join(item.category.split(" > ")),
        item.brand,
        ", ".join(item.tags),
        item.description,
    )
    return ". ".join(part for part in parts if part)


def text_hash(text: str) -> str:
    """The content hash under which a text's vector is cached."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Catalogue:
    """Items as rows. Arrays grow by doubling; only the first `len(catalogue)` rows count.

    category: (N, 3) int32, codes of the path's first three levels as prefixes, -1 where there is none
    brand: (N,) int32, -1 without one;  log_price: (N,) float32;  first_s: (N,) float64 seconds; both as the item's record
    says, else as its first events did (`learn`), else NaN;  available: (N,) bool;  refs: (N,) uint64, see `item_ref`
    vectors: (N, D) float32 unit text vectors, zero until the tower has seen the item;  words: of the titles
    """

    def __init__(self, items: Iterable[Item] = (), dim: int = 0) -> None:
        self.items: list[Item] = []
        self.row_of_ref: dict[int, int] = {}
        self.version = 0  # counts changes: part of what a slate says made it
        self.words = Lexicon()
        self.embedded: list[int] = []  # rows in the order in which their vectors were set
        self._codes: dict[str, int] = {}
        self._allocate(1024, dim)
        for item in items:
            self.upsert(item)

    def __len__(self) -> int:
        return len(self.items)

    def row(self, item: str) -> int:
        """The item's row, or -1."""
        return self.row_of_ref.get(item_ref(item), -1)

    def rows(self, refs: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Rows of many refs, -1 where the catalogue does not know one. O(n) dictionary look-ups."""
        get = self.row_of_ref.get
        return np.fromiter((get(ref, -1) for ref in refs.tolist()), np.int64, len(refs))

    def upsert(self, item: Item) -> int:
        """Add or replace an item; its row. Raises BadEvent if another item already has its 48-bit name.

        >>> c = Catalogue([Item(item="a", title="Mug"), Item(item="b", title="Pan")])
        >>> c.upsert(Item(item="a", title="Blue mug")), c.row("b"), len(c)
        (0, 1, 2)
        """
        ref = item_ref(item.item)
        row = self.row_of_ref.get(ref, -1)
        if row >= 0 and self.items[row].item != item.item:
            other = self.items[row].item
            raise BadEvent("schema", f"item {item.item!r} has the same 48-bit name as {other!r}; rename one of them")
        if row < 0:
            row = len(self.items)
            self.items.append(item)
            self.row_of_ref[ref] = row
            if row == len(self.available):
                self._allocate(2 * row, self.vectors.shape[1])
            self.refs[row] = ref
        elif item_text(self.items[row]) != item_text(item):
            self.set_vectors([row], np.zeros((1, self.vectors.shape[1]), np.float32))  # the old one is no longer true
        self.words.put(row, item.title)
        self.items[row] = item
        path = item.category.split(" > ") if item.category else []
        for level in range(3):
            known = len(path) > level
            self.category[row, level] = self._code("c" + " > ".join(path[: level + 1])) if known else -1
        self.brand[row] = self._code("b" + item.brand) if item.brand else -1
        self._settle(row)
        self.available[row] = item.available
        self.version += 1
        return row

    def learn(self, row: int, first_s: int, price: float | None) -> None:
        """What events say of an item, for as long as its record does not: when one first was on it (0: never), and its
        price then. So a shop that prices its events only has the features that training had.

        >>> c = Catalogue([Item(item="a", title="Mug", price=4.0)])
        >>> c.learn(0, 1_700_000_000, 9.0)
        >>> float(c.first_s[0]), float(np.exp(c.log_price[0]))
        (1700000000.0, 4.0)
        """
        self._met_s[row] = first_s or np.nan
        self._paid[row] = price or np.nan
        self._settle(row)

    def _settle(self, row: int) -> None:
        item = self.items[row]
        self.log_price[row] = np.log(item.price or self._paid[row])  # free of charge is no price to compare
        self.first_s[row] = item.first_ts_ms / 1000 if item.first_ts_ms else self._met_s[row]

    def code(self, kind: Literal["brand", "category"], name: str) -> int:
        """The code under which a brand or a category path stands in the arrays, or -2, which stands nowhere.

        >>> c = Catalogue([Item(item="a", title="Mug", category="kitchen > mugs")])
        >>> c.code("category", "kitchen > mugs") == c.category[0, 1], c.code("brand", "Ox")
        (np.True_, -2)
        """
        return self._codes.get(kind[0] + name, -2)

    def set_vectors(self, rows: Sequence[int], vectors: NDArray[np.float32]) -> None:
        """Give rows their text vectors, (n, D); `embedded` remembers which, for an index that follows."""
        self.vectors[rows] = vectors
        self.embedded.extend(rows)

    def remove(self, item: str) -> None:
        """A tombstone: the item may not be shown any more; its row stays."""
        row = self.row(item)
        if row >= 0:
            self.available[row] = False
            self.version += 1

    def _code(self, name: str) -> int:
        return self._codes.setdefault(name, len(self._codes))

    def _allocate(self, size: int, dim: int) -> None:
        """Arrays for `size` rows, keeping what there is."""
        old = self.__dict__

        def grown(name: str, shape: tuple[int, ...], dtype: type[Any], fill: float) -> NDArray[Any]:
            fresh: NDArray[Any] = np.full(shape, fill, dtype)
            if name in old:
                fresh[: len(old[name])] = old[name]
            return fresh

        self.category = grown("category", (size, 3), np.int32, -1)
        self.refs = grown("refs", (size,), np.uint64, 0)
        self.brand = grown("brand", (size,), np.int32, -1)
        self.log_price = grown("log_price", (size,), np.float32, np.nan)
        self.first_s = grown("first_s", (size,), np.float64, np.nan)
        self._met_s = grown("_met_s", (size,), np.float64, np.nan)
        self._paid = grown("_paid", (size,), np.float64, np.nan)
        self.available = grown("available", (size,), np.bool_, False)
        self.vectors = grown("vectors", (size, dim), np.float32, 0)
