"""Write a shop's file and read it again, in few words."""

import csv
from pathlib import Path
from typing import Any

from models.files import Row, read_rows
from recsys.events import Event

RETAIL = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
CLICK = '{"type":"click","user":"u1","item":"i1","ts_ms":1700000000000}'


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as out:
        table = csv.DictWriter(out, names, delimiter=delimiter)
        table.writeheader()
        for row in rows:
            table.writerow({key: "|".join(v) if isinstance(v, list) else v for key, v in row.items()})
    return path


def read(path: Path, *args: Any, **more: Any) -> list[Row]:
    return list(read_rows(path, *args, **more))


def loaded(path: Path, *args: Any, **more: Any) -> list[Event]:
    rows = read(path, *args, **more)
    assert [row.error for row in rows if row.error] == []
    return [row.event for row in rows if row.event]
