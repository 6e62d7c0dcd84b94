"""Small versions of the faults that `make chaos` throws at real workers: each really happens, and costs nothing.

Kafka and Valkey of their own, since they are killed, stopped and throttled here.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chaos import order, pills, resources, view
from chaos.arena import Row

from streams.embedded import Embedded
from streams.jars import fetch_kafka

MODULES = (view, order, pills, resources)  # the small form of `poison` is tests/test_corpus_stream.py
Rows = Callable[[Embedded, Path, bool], list[Row]]


@pytest.fixture(scope="module")
def victims(home: Path) -> Iterator[Embedded]:
    fetch_kafka(home)
    with Embedded(home) as running:
        yield running


@pytest.mark.parametrize("rows", [m.rows for m in MODULES], ids=[m.__name__ for m in MODULES])
def test_a_fault_costs_nothing(rows: Rows, victims: Embedded, tmp_path: Path) -> None:
    found = rows(victims, tmp_path, True)
    assert found
    assert [row.shown() for row in found if not row.passed] == []
