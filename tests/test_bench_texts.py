"""`slatecast bench texts` on a small shop whose users like a colour, with the default tower."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from models.export import default_weights, export_tower
from recsys.catalogue import Item, encode_item
from recsys.events import Purchase, encode_event
from streams.cli.bench_texts import texts

DAY_MS = 86_400_000
T_MS = 1_300_060_800_000  # midnight UTC
COLOURS = ("red", "blue", "green", "yellow")
THINGS = [f"{thing} {size}" for thing in ("mug", "lamp", "chair", "bowl", "towel") for size in ("small", "large")]
# One name, many colours: whatever is said of the thing, the colour is what its buyers have in common.
TITLES = [f"{colour} {thing}" for thing in THINGS for colour in COLOURS]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 items; 60 users, each buying eight items of a colour over eight weeks and new ones of it afterwards."""
    folder, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    events = []
    for user in range(60):
        mine = rng.permutation(np.arange(user % 4, len(TITLES), 4))
        for place, item in enumerate(mine.tolist()):
            ts_ms = T_MS + (DAY_MS if place >= 8 else (place - 56) * DAY_MS)
            events.append(Purchase(user=f"u{user}", item=f"i{item}", ts_ms=ts_ms))
    events.sort(key=lambda event: event.ts_ms)
    items = [Item(item=f"i{at}", title=title) for at, title in enumerate(TITLES)]
    for name, lines in (("events", map(encode_event, events)), ("items", map(encode_item, items))):
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    return folder


@pytest.fixture(scope="module")
def command(shop: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    own, tower = tmp_path_factory.mktemp("home"), export_tower(default_weights(), home / "towers")
    shutil.copytree(tower, own / "towers" / tower.name)
    return [str(shop), "--home", str(own), "--origin", "2011-03-14", "--dim", "16"]


@pytest.fixture(scope="module")
def found(command: list[str]) -> dict[str, Any]:
    done = CliRunner().invoke(texts, [*command, "--json"], catch_exceptions=False)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_who_likes_a_colour_is_offered_new_things_of_that_colour(found: dict[str, Any]) -> None:
    cold = {line["side"]: line["cold"]["ndcg"] for line in found["table"]}
    assert list(cold) == [
        "random",
        "words",
        "all-MiniLM-L6-v2",
        "all-MiniLM-L6-v2, whitened",
        "all-MiniLM-L6-v2, with words",
    ]
    assert min(cold[side] for side in cold if side != "random") > 1.2 * cold["random"]
    assert found["users"] == {"new": 60, "all": 60, "cold": 60, "cold_new": 60}
    assert found["towers"]["all-MiniLM-L6-v2"]["pooling"] == "mean"


def test_each_figure_lies_in_its_interval_and_the_ratios_are_those_of_the_figures(found: dict[str, Any]) -> None:
    chance, words = (next(line for line in found["table"] if line["side"] == side) for side in ("random", "words"))
    for line in found["table"]:
        for name in ("new", "all", "cold", "cold_new"):
            figure = line[name]
            low, high = figure["ndcg_95"]
            assert low - 1e-9 <= figure["ndcg"] <= high + 1e-9
            assert 0 < figure["ndcg"] < 1 + 1e-9
            assert figure["times_random"] == pytest.approx(figure["ndcg"] / chance[name]["ndcg"])
            assert figure["over_words"] == pytest.approx(figure["ndcg"] - words[name]["ndcg"])
        assert line["cold"]["ndcg"] == line["cold_new"]["ndcg"], "nobody here buys a thing twice"


def test_a_second_time_says_the_same_and_a_person_can_read_it(command: list[str], found: dict[str, Any]) -> None:
    again = CliRunner().invoke(texts, command, catch_exceptions=False).stdout
    assert again.startswith("2011-03-14: 40 items")
    for line in found["table"]:
        (row,) = (row for row in again.splitlines() if row.startswith(f"{line['side']}  "))
        assert f"{line['cold']['ndcg']:.4f} " in row


def test_a_tower_says_what_is_read_of_an_item(command: list[str], found: dict[str, Any]) -> None:
    done = CliRunner().invoke(texts, [*command, "--text", "title", "--json"], catch_exceptions=False)
    assert msgspec.json.decode(done.stdout)["table"] == found["table"], "a title is all that these items have"
