"""Two public layouts, read as they are: what is kept of them, and what is left out with which words."""

import itertools
import json
from pathlib import Path

import pytest
from file_helpers import RETAIL, read

from models.files import read_rows
from models.presets import PRESETS, find_complete_journey
from recsys.errors import Misuse
from recsys.events import Purchase


def retail(tmp_path: Path, *lines: str) -> Path:
    (path := tmp_path / "Online Retail.csv").write_bytes("\r\n".join([RETAIL, *lines, ""]).encode("cp1252"))
    return path


def test_online_retail_keeps_sales_of_products_to_customers(tmp_path: Path) -> None:
    path = retail(
        tmp_path,
        '536365,85123a,"WHITE  HANGING ""HEART"", £2 ",6,12/1/2010 8:26,2.55,17850,United Kingdom',
        "536365,POST,POSTAGE,1,12/1/2010 8:26,18,17850,United Kingdom",
        "536365,71053,WHITE METAL LANTERN,6,12/1/2010 8:26,3.39,17850,United Kingdom",
        "536365,85123A,WHITE HANGING HEART,2,12/1/2010 8:26,2.95,17850,United Kingdom",
        "C536366,71053,WHITE METAL LANTERN,-6,12/1/2010 8:28,3.39,17850,United Kingdom",
        "536367,71053,WHITE METAL LANTERN,6,12/1/2010 8:34,3.39,,United Kingdom",
        "536368,71053,WHITE METAL LANTERN,-6,12/1/2010 8:34,3.39,13047,United Kingdom",
        "536369,71053,WHITE METAL LANTERN,6,12/1/2010 8:34,0,13047,United Kingdom",
        "536370,71053,WHITE METAL LANTERN,6,2010-12-01 08:45:00,3.39,12583.0,France",
        "536371,71053,WHITE METAL LANTERN,6,13/12/2010 8:45,3.39,12583.0,France",
        "536372,71053,WHITE METAL LANTERN,six,12/1/2010 8:45,3.39,12583.0,France",
    )
    rows = read(path, preset=PRESETS["online-retail"])
    by_line = {row.line: row for row in rows}
    assert len(rows) == len(by_line) == 11
    sale = by_line[2].event
    assert isinstance(sale, Purchase)
    assert (sale.user, sale.item, sale.session, sale.ts_ms) == ("17850", "85123A", "536365", 1291191960000)
    assert (sale.quantity, sale.price) == (8.0, 2.65)  # (6 · 2.55 + 2 · 2.95) / 8
    assert by_line[5].note == "merged into line 2"
    assert by_line[10].event is not None
    assert (by_line[10].event.user, by_line[10].event.ts_ms) == ("12583", 1291193100000)
    reasons = {line: str(row.error).split(":")[0] for line, row in by_line.items() if row.error}
    assert reasons == {
        3: "StockCode 'POST' is no product (postage, fee, correction)",
        6: "InvoiceNo 'C536366'",
        7: "CustomerID",
        8: "Quantity",
        9: "UnitPrice",
        11: "InvoiceDate '13/12/2010 8",
        12: "Quantity",
    }
    assert by_line[7].raw == b"536367,71053,WHITE METAL LANTERN,6,12/1/2010 8:34,3.39,,United Kingdom\r"
    items = [row.item for row in read(path, "items", PRESETS["online-retail"]) if row.item]
    assert [(item.item, item.title, item.first_ts_ms) for item in items] == [
        ("85123A", 'White hanging "heart", £2', 1291191960000),
        ("71053", "White metal lantern", 1291191960000),
    ]


def test_complete_journey_is_read_from_its_wheel() -> None:
    folder, preset = find_complete_journey(), PRESETS["complete-journey"]
    rows = list(itertools.islice(read_rows(folder / "transactions.parquet", "events", preset), 200))
    sale = rows[0].event
    assert isinstance(sale, Purchase)
    assert (sale.user, sale.item, sale.session) == ("900", "1095275", "31198570044")
    assert (sale.ts_ms, sale.price, sale.quantity) == (1483271606000, 0.5, 1.0)  # 2017-01-01 11:53:26
    [fuel] = [row for row in rows if row.line == 52]
    assert str(fuel.error) == "product 6534178 is of department FUEL"
    assert json.loads(fuel.raw)["sales_value"] == 20.06
    items = list(itertools.islice(read_rows(folder / "products.parquet", "items", preset), 5))
    first = items[0].item
    assert first is not None
    assert (first.title, first.category) == (
        "Ice - crushed/cubed, 22 lb, maker 2",
        "grocery > frzn ice > ice - crushed/cubed",
    )
    assert str(items[1].error) == "product 26081 is of department MISCELLANEOUS"
    assert items[2].item is not None
    assert items[2].item.title == "Bread:italian/french, maker 69, own brand"


def test_complete_journey_needs_both_files(tmp_path: Path) -> None:
    source = find_complete_journey() / "transactions.parquet"
    (tmp_path / "transactions.parquet").symlink_to(source)
    with pytest.raises(Misuse, match=r"need products.parquet beside them"):
        read_rows(tmp_path / "transactions.parquet", "events", PRESETS["complete-journey"])
