"""The JSON Schemas of what travels on the topics a shop and its subscribers touch: events, items, slates.

Generated from the types that decode, so they cannot say something else. `python -m streams.schemas` writes them again
into deploy/schemas/; a test compares.
"""

from pathlib import Path
from typing import Any

import msgspec

from recsys.catalogue import ITEM_SCHEMA, Item
from recsys.events import EVENT_SCHEMA, Event
from recsys.slates import SLATE_SCHEMA, Slate

DRAFT = "https://json-schema.org/draft/2020-12/schema"  # what msgspec writes


def schemas() -> dict[str, bytes]:
    """File name -> the schema as indented JSON."""
    types: dict[str, Any] = {EVENT_SCHEMA: Event, ITEM_SCHEMA: Item, SLATE_SCHEMA: Slate}
    return {f"{name}.json": _write(name, type_) for name, type_ in types.items()}


def _write(name: str, type_: Any) -> bytes:
    schema = {"$schema": DRAFT, "$id": name, **msgspec.json.schema(type_)}
    return msgspec.json.format(msgspec.json.encode(schema), indent=2) + b"\n"


def main() -> None:
    """Write them into this checkout."""
    folder = Path(__file__).parents[1] / "deploy" / "schemas"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in schemas().items():
        (folder / name).write_bytes(text)


if __name__ == "__main__":
    main()
