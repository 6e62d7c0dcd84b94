"""The past as columns: read in the order of time, cut at a moment, refused with one clear line."""

import gzip
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from models.history import JOURNEY, VISIT_GAP_S, History, only_items, read_history, sold_items
from recsys.errors import Misuse
from recsys.profiles import CART, CLICK, PURCHASE, VIEW

T = 1_300_000_000


def buy(user: str, item: str, ts: int, session: str | None = None, **rest: Any) -> dict[str, Any]:
    event = {"type": "purchase", "user": user, "item": item, "ts": T + ts, **rest}
    return event | ({"session": session} if session else {})


def item(name: str, **rest: Any) -> dict[str, Any]:
    return {"item": name, "title": f"Thing {name}", "category": "a > b", **rest}


def write(folder: Path, events: list[dict[str, Any]], items: list[dict[str, Any]]) -> Path:
    for name, rows in ("events", events), ("items", items):
        lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines))
    return folder


def names(history: History) -> list[tuple[str, str, int]]:
    return [
        (history.user_ids[user], history.items[row].item, ts_s - T)
        for user, row, ts_s in zip(history.user, history.item, history.ts_s.tolist(), strict=True)
    ]


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_the_order_of_time_whatever_its_own(tmp_path: Path) -> None:
    events = [buy("u2", "y", 50, "s2"), buy("u1", "x", 10, "s1"), buy("u1", "y", 10, "s1")]
    history = read_history(write(tmp_path, events, [item("x"), item("y")]))
    assert names(history) == [("u1", "x", 10), ("u1", "y", 10), ("u2", "y", 50)]
    assert history.session[0] == history.session[1] != history.session[2]
    assert [(c.dtype.name, len(c)) for c in (history.user, history.item, history.session)] == [("int32", 3)] * 3
    assert history.ts_s.dtype == np.int64
    assert history.action.tolist() == [PURCHASE] * 3


def test_times_may_be_seconds_or_milliseconds(tmp_path: Path) -> None:
    events = [buy("u", "x", 10, "s"), {"type": "purchase", "user": "u", "item": "x", "ts_ms": (T + 20) * 1000 + 999}]
    assert (read_history(write(tmp_path, events, [item("x")])).ts_s - T).tolist() == [10, 20]


def test_what_is_on_one_item_is_kept_with_its_action_and_the_rest_left_out(tmp_path: Path) -> None:
    kinds = ["view", "click", "cart", "purchase"]
    events: list[dict[str, Any]] = [{**buy("u", "x", at), "type": kind} for at, kind in enumerate(kinds)]
    events += [
        {"type": "search", "user": "u", "query": "mug", "ts": T},
        {"type": "impression", "user": "u", "items": ["x"], "slate": "s", "ts": T},
    ]
    history = read_history(write(tmp_path, events, [item("x")]))
    assert history.action.tolist() == [VIEW, CLICK, CART, PURCHASE]
    assert history.purchases().action.tolist() == [PURCHASE]


def test_without_a_session_half_an_hour_of_silence_begins_a_new_visit(tmp_path: Path) -> None:
    times = [0, VISIT_GAP_S, 2 * VISIT_GAP_S + 1]
    events = [buy("u1", "x", at) for at in times] + [buy("u2", "x", 5), buy("u2", "x", 7, "named")]
    history = read_history(write(tmp_path, events, [item("x")]))
    sessions = dict(zip(((user, ts) for user, _, ts in names(history)), history.session.tolist(), strict=True))
    assert sessions["u1", 0] == sessions["u1", VISIT_GAP_S] != sessions["u1", times[2]]
    assert len(set(sessions.values())) == 4  # two of u1's, one of u2's, and the named one


def test_a_price_stays_with_its_event_and_items_stay_as_their_file_says(tmp_path: Path) -> None:
    events = [
        buy("u", "x", 30, price=3.0),
        buy("u", "x", 20, price=2.0),
        buy("u", "x", 10),
        buy("u", "y", 5, price=9.0),
    ]
    history = read_history(write(tmp_path, events, [item("x"), item("y", price=7.5), item("z")]))
    np.testing.assert_array_equal(history.price, [9.0, np.nan, 2.0, 3.0])
    np.testing.assert_array_equal(history.before(T + 25).price, [9.0, np.nan, 2.0])
    assert [(i.item, i.price) for i in history.items] == [("x", None), ("y", 7.5), ("z", None)]


def test_two_users_sessions_of_one_name_are_two(tmp_path: Path) -> None:
    events = [buy("u1", "x", 0, "1"), buy("u2", "x", 0, "1"), buy("u1", "x", 5, "1")]
    history = read_history(write(tmp_path, events, [item("x")]))
    sessions = dict(zip(((user, ts) for user, _, ts in names(history)), history.session.tolist(), strict=True))
    assert sessions["u1", 0] == sessions["u1", 5] != sessions["u2", 0]


def test_an_empty_session_is_none_and_not_one_long_visit(tmp_path: Path) -> None:
    events = [{**buy("u1", "x", at), "session": ""} for at in (0, 5, VISIT_GAP_S + 6)]
    history = read_history(write(tmp_path, events, [item("x")]))
    assert history.session.tolist() == [0, 0, 1]


def test_the_past_of_a_moment_ends_before_it(tmp_path: Path) -> None:
    events = [buy(f"u{at}", "x", at) for at in range(0, 50, 10)]
    history = read_history(write(tmp_path, events, [item("x")]))
    assert (history.before(T + 20).ts_s - T).tolist() == [0, 10]
    assert (history.between(T + 20, T + 40).ts_s - T).tolist() == [20, 30]
    assert len(history.before(T)) == 0
    assert len(history.before(T + 1000)) == 5
    assert history.before(T + 20).user_ids == history.user_ids  # numbers keep their meaning


def test_items_with_few_buyers_can_be_left_out(tmp_path: Path) -> None:
    events = [buy("u1", "x", 1), buy("u2", "x", 2), buy("u1", "y", 3), buy("u1", "y", 4), buy("u1", "z", 5)]
    events += [{**buy("u2", "z", 6), "type": "click"}]  # looking is not buying
    history = read_history(write(tmp_path, events, [item("y"), item("x"), item("z")]))
    keep = sold_items(history, 2)
    assert keep.tolist() == [False, True, False]
    few = only_items(history, keep)
    assert [i.item for i in few.items] == ["x"]
    assert names(few) == [("u1", "x", 1), ("u2", "x", 2)]


# --- what is refused, in one line that names the file -----------------------------------------------------------------


@pytest.mark.parametrize("missing", ["events.jsonl.gz", "items.jsonl.gz"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path, [buy("u", "x", 1)], [item("x")])
    (tmp_path / missing).unlink()
    with pytest.raises(Misuse, match=missing.replace(".", r"\.")):
        read_history(tmp_path)


def test_a_folder_that_is_none_is_said_with_what_would_do(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", write(tmp_path, [buy("u", "x", 1)], [item("x")]) / "events.jsonl.gz"):
        with pytest.raises(Misuse, match=r"no folder.*items\.jsonl\.gz, or 'completejourney'"):
            read_history(path)


@pytest.mark.parametrize(
    "content", [b"", gzip.compress(b"", mtime=0), bytes(range(256)), gzip.compress(b"{}\n", mtime=0)[:-9]]
)
@pytest.mark.parametrize("name", ["events.jsonl.gz", "items.jsonl.gz"])
def test_empty_binary_and_cut_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path, [buy("u", "x", 1)], [item("x")])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Misuse, match=name.replace(".", r"\.")):
        read_history(tmp_path)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"type": "purchase", "customer": "u", "item": "x", "ts": T}, "user"),
        ({"type": "purchase", "user": "u", "item": "x"}, "ts"),
        ({"type": "purchase", "user": "u", "item": "x", "ts": 5}, "range|2000"),
        ({"type": "purchase", "user": "u", "item": "other", "ts": T}, "'other' is not in items"),
    ],
)
def test_a_wrong_event_is_named_by_its_line(tmp_path: Path, event: dict[str, Any], said: str) -> None:
    write(tmp_path, [buy("u", "x", 1), event], [item("x")])
    with pytest.raises(Misuse, match=rf"line 2: .*({said})"):
        read_history(tmp_path)


def test_an_event_of_a_day_that_has_not_come_is_refused_by_its_line(tmp_path: Path) -> None:
    now = time.time_ns() // 10**9 - T
    soon = buy("u", "x", now + 20 * 3600)  # a clock may be wrong by some hours
    assert len(read_history(write(tmp_path, [buy("u", "x", 1), soon], [item("x")]))) == 2
    with pytest.raises(Misuse, match=r"line 2: ts_ms: \d+ was 720\.0 h ahead when it arrived; correct it"):
        read_history(write(tmp_path, [buy("u", "x", 1), buy("u", "x", now + 30 * 86_400)], [item("x")]))


def test_where_nobody_bought_anything_no_fewer_buyers_are_proposed(tmp_path: Path) -> None:
    looks = [{**buy("u", "x", at), "type": "view"} for at in range(3)]
    history = read_history(write(tmp_path, looks, [item("x")]))
    with pytest.raises(Misuse, match=r"none of the 3 events is a purchase.*load them too"):
        sold_items(history, 5)


def test_an_item_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="twice"):
        read_history(write(tmp_path, [buy("u", "x", 1)], [item("x"), item("x")]))


def test_a_folder_without_events_on_items_is_refused(tmp_path: Path) -> None:
    search = {"type": "search", "user": "u", "query": "mug", "ts": T}
    with pytest.raises(Misuse, match="no events on items"):
        read_history(write(tmp_path, [search], [item("x")]))


# --- Complete Journey, from a small copy of its files -----------------------------------------------------------------


def test_complete_journey_is_cleaned_and_merged_by_column_as_the_loader_does_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    from models import history as module
    from models.files import read_rows
    from models.presets import PRESETS
    from recsys.events import Purchase

    products = {
        "product_id": [1, 2, 3, 4, 5],
        "manufacturer_id": [1590, 69, 2, 2, 7],
        "department": ["GROCERY", "PASTRY", "FUEL", "GROCERY", "DELI"],
        "brand": ["National", "Private", "National", "National", "National"],
        "product_category": ["COFFEE", "BREAD", "GAS", None, "MEAT"],
        "product_type": ["GROUND COFFEE", "BREAD:ITALIAN", "GAS", "LOST", "HAM"],
        "package_size": ["13 OZ", None, None, None, "1 LB"],
    }
    lines = [  # household, basket, product, quantity, sales_value, minute
        (900, 2, 1, 1, 4.0, 60),
        (900, 1, 1, 1, 5.0, 0),
        (900, 1, 3, 9, 30.0, 0),  # fuel
        (900, 1, 2, 0, 0.0, 0),  # nothing sold
        (900, 1, 1, 3, 11.0, 0),  # the rest of the coffee: (5 + 11) / 4 each
        (901, 3, 2, 2, 3.0, 90),
        (901, 3, 4, 1, 1.0, 90),  # no category
    ]
    columns = ["household_id", "basket_id", "product_id", "quantity", "sales_value"]
    sold = {name: [line[at] for line in lines] for at, name in enumerate(columns)}
    start = np.datetime64("2017-01-01T12:00:00", "ns")
    sold["transaction_timestamp"] = [start + np.timedelta64(line[5], "m") for line in lines]
    parquet.write_table(pa.table(products), tmp_path / "products.parquet")
    parquet.write_table(pa.table(sold), tmp_path / "transactions.parquet")
    monkeypatch.setattr(module, "find_complete_journey", lambda: tmp_path)

    history = read_history(JOURNEY)
    assert [(i.item, i.title, i.category, i.brand) for i in history.items] == [
        ("1", "Ground coffee, 13 oz, maker 1590", "grocery > coffee > ground coffee", "maker 1590"),
        ("2", "Bread:italian, maker 69, own brand", "pastry > bread > bread:italian", "maker 69"),
    ]
    rows = read_rows(tmp_path / "transactions.parquet", "events", PRESETS["complete-journey"])
    loaded = [e for row in rows if isinstance(e := row.event, Purchase)]
    assert sorted(names(history)) == sorted((e.user, e.item, e.ts_ms // 1000 - T) for e in loaded)
    prices = sorted(zip(history.item.tolist(), history.price.tolist(), strict=True))
    assert prices == sorted((("1", "2").index(e.item), e.price) for e in loaded if e.price)
    assert {(0, 4.0), (1, 1.5)} <= set(prices)
    assert len(set(history.session.tolist())) == 3
