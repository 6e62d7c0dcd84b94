"""`slatecast bench train` and `bench tune-text` on tiny bases: every engine runs, and the figures are those of a run."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tune_helpers import coloured_past, make_base

from models.text_export import load, pooled
from recsys.catalogue import encode_item
from recsys.events import Purchase, encode_event
from streams.bench import tuned_texts
from streams.bench.tuning_speed import Work, draw_texts, time_engine
from streams.cli.bench_texts import tune_text

DAY_MS, T_MS = 86_400_000, 1_300_060_800_000  # midnight UTC
pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter, and of the peer's older loop


@pytest.mark.parametrize("engine", ["ours", "ours, one call", "sentence-transformers"])
def test_each_engine_is_timed_on_the_same_texts(tmp_path: Path, engine: str) -> None:
    base = make_base(tmp_path / "base", "bert")
    if engine.startswith("sentence"):
        pytest.importorskip("sentence_transformers", reason="the extra bench is not installed")
        config = json.loads((base / "tokenizer_config.json").read_text())
        (base / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "[MASK]"}))
    speed = time_engine(Work(str(base), engine, steps=5, batch=4, max_tokens=64))
    assert speed.steps_per_s > 0
    assert speed.tokens_per_s > 8 * speed.steps_per_s
    assert speed.rss_mib > 100
    assert ("sentence" in engine) == ("sentence-transformers" in speed.peer)


def test_texts_to_time_are_of_mixed_lengths_and_differ() -> None:
    texts = draw_texts(200)
    lengths = sorted(len(text.split()) for text in texts)
    assert len(set(texts)) == 200
    assert lengths[0] < 6
    assert lengths[-1] > 90
    assert lengths[100] < 30, "most are titles"


def test_what_tuning_brings_is_said_for_items_it_has_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch instead of the graphs, whose exports are tested elsewhere. Users stay with a colour."""
    shop, rng, events = tmp_path / "shop", np.random.default_rng(0), []
    shop.mkdir()
    for user in range(60):
        for place, item in enumerate(rng.permutation(np.arange(user % 4, 36, 4)).tolist()):
            ts_ms = T_MS + DAY_MS if place >= 6 else T_MS - (6 - place) * DAY_MS
            events.append(Purchase(user=f"u{user}", item=f"i{item}", ts_ms=ts_ms))
    events.sort(key=lambda event: event.ts_ms)
    for name, lines in (("events", map(encode_event, events)), ("items", map(encode_item, coloured_past().items[:36]))):
        (shop / f"{name}.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))

    def embed(folder: Path, texts: list[str], hashes: object) -> Any:
        model, tokenizer = load(folder)
        rows = [tokenizer(text, return_tensors="pt") for text in texts]
        with torch.no_grad():
            return torch.cat([pooled(model, "mean")(one["input_ids"], one["attention_mask"]) for one in rows]).numpy()

    monkeypatch.setattr(tuned_texts, "export_tower", lambda folder, cache: folder)
    monkeypatch.setattr(tuned_texts, "embed", embed)
    base = make_base(tmp_path / "base", "bert")
    options = [str(shop), "--model", str(base), "--origin", "2011-03-14", "--home", str(tmp_path / "home"), "--json"]
    options += ["--set", "steps=4", "--set", "batch=8", "--set", "window_days=9", "--set", "learning_rate=0.01"]
    said = json.loads(CliRunner().invoke(tune_text, options, catch_exceptions=False).stdout)
    assert (said["items"], said["hidden"], said["tuning"]["steps"]) == (36, 4, 4)
    for measure in ("new", "all", "cold", "cold_new"):
        figures = said[measure]
        assert figures["users"] > 10
        assert figures["gain"] == pytest.approx(figures["tuned"] - figures["base"])
        assert figures["gain_95"][0] <= figures["gain"] <= figures["gain_95"][1]
    assert not list((tmp_path / "home").iterdir()), "nothing is left behind"
