"""The published schemas are what the decoders accept, and what was readable stays readable."""

from pathlib import Path

import msgspec
import pytest

from recsys.catalogue import decode_item
from recsys.events import decode_event
from streams.embedded import deploy_file
from streams.schemas import schemas

# Records as version 1 wrote them. They are never edited: a decoder that refuses one has broken every shop's history.
GOLDEN_EVENTS = [
    b'{"type":"click","user":"u1","ts_ms":1700000000000,"item":"i1"}',
    b'{"type":"view","user":"u1","ts_ms":1700000000000,"id":"e2","session":"s1","item":"i1","slate":"l1","price":2.5}',
    b'{"type":"cart","user":"u1","ts_ms":1700000000000,"item":"i1","quantity":2}',
    b'{"type":"purchase","user":"u1","ts_ms":1700000000000,"item":"i1","price":2.5,"quantity":2.0}',
    '{"type":"search","user":"u1","ts_ms":1700000000000,"query":"tasse à café"}'.encode(),
    b'{"type":"impression","user":"u1","ts_ms":1700000000000,"items":["i1","i2"],"slate":"l1"}',
]
GOLDEN_ITEMS = [
    b'{"item":"i1","title":"Red mug"}',
    b'{"item":"i1","title":"Red mug","category":"kitchen > mugs","brand":"Ox","tags":["new"],"description":"Of clay.",'
    b'"price":4.5,"available":false,"first_ts_ms":1700000000000}',
]


@pytest.mark.parametrize("name", sorted(schemas()))
def test_a_schema_file_is_what_its_type_says(name: str) -> None:
    assert deploy_file(f"schemas/{name}").read_bytes() == schemas()[name], "run python -m streams.schemas"


def test_there_are_no_other_schema_files() -> None:
    assert sorted(path.name for path in Path(deploy_file("schemas")).iterdir()) == sorted(schemas())


@pytest.mark.parametrize("data", GOLDEN_EVENTS)
def test_events_of_version_1_are_read_for_ever(data: bytes) -> None:
    event = decode_event(data)
    assert type(event).__name__.lower() == msgspec.json.decode(data)["type"]


@pytest.mark.parametrize("data", GOLDEN_ITEMS)
def test_items_of_version_1_are_read_for_ever(data: bytes) -> None:
    assert decode_item(data).title == "Red mug"
