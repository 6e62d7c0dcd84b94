"""`slatecast bench scorer` at a tiny size: the real engines on a small model, and that each of its checks can fail."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from models.export import default_weights
from models.sequence_export import PARITY
from recsys.errors import ModelRejected, Unavailable, how_to_install
from recsys.scoring import TRAIL, Ask
from streams.bench import scorer
from streams.bench.scorer import PEERS, compare, largest_difference, real_titles, running, start
from streams.bench.scorer_ours import COUNTS, draw, isolation_share
from streams.bench.scorer_work import CANDIDATES, HISTORY, Order, Took
from streams.cli.bench import show
from streams.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns of what its own parts are going to deprecate
TEXTS, PAIRS = CANDIDATES + HISTORY, 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer with MiniLM's tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    transformers.BertModel(transformers.BertConfig(vocab_size=30_522, **sizes)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(default_weights() / name, folder)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def found(weights: Path, home: Path) -> dict[str, Any]:
    """What the command says."""
    program = "import streams.cli.main as m; m.main()"
    small = ["--texts", str(TEXTS), "--pairs", str(PAIRS), "--rounds", "1", "--tower", str(weights)]
    command = [sys.executable, "-P", "-c", program, "bench", "scorer", "--home", str(home), "--json", *small]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_every_ratio_and_time_is_a_number_above_zero(found: dict[str, Any]) -> None:
    names = {"ratio_cross_encoder", "ratio_cross_encoder_nothing_cached", "tower_ms", "ratio_fastembed", "startup_s"}
    for name in {*names, *(name for name in found if name.startswith("ratio_"))}:
        assert math.isfinite(found[name]), name
        assert found[name] > 0, name
    assert 0 < found["rss_mib"] < 4096
    assert (found["candidates"], found["history"], found["texts"], found["pairs_timed"]) == (200, 20, TEXTS, PAIRS)
    assert found["versions"].keys() == {"onnx", "sentence_transformers", "fastembed"}


def test_the_graph_is_the_tower_and_candidates_are_kept_apart(found: dict[str, Any]) -> None:
    assert 0 <= found["parity_max"] <= PARITY == 1e-5
    assert found["isolation_equal_share"] == 1.0
    assert found["isolation_cases"] >= 100


def test_the_ratios_are_those_of_the_rows(found: dict[str, Any]) -> None:
    cpu_ms = {row["who"]: row["cpu_ms"] for row in found["requests"]}
    cross = min(ms for who, ms in cpu_ms.items() if who.startswith("cross-encoder"))
    assert found["ratio_cross_encoder"] == pytest.approx(cross / cpu_ms["slatecast, vectors cached"])
    assert found["ratio_cross_encoder_nothing_cached"] == pytest.approx(cross / cpu_ms["slatecast, no vectors"])
    assert found["ratio_cross_encoder"] > found["ratio_cross_encoder_nothing_cached"]
    rate = {row["who"]: row["texts_per_cpu_s"] for row in found["embedding"]}
    fast = max(rate for who, rate in rate.items() if who.startswith("fastembed"))
    assert found["ratio_fastembed"] == pytest.approx(rate["slatecast"] / fast)


def test_a_cross_encoder_reads_the_whole_history(found: dict[str, Any]) -> None:
    assert 200 < found["tokens_per_pair"] <= 256
    assert 0 < found["peers_differ_by"]["scores"] < 1e-4, "torch and graph: near, and not the same numbers"


def test_it_can_be_read_as_tables(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    show(found, False)
    said = capsys.readouterr().err
    assert all(row["who"] in said for row in [*found["requests"], *found["embedding"]])
    assert "isolation_equal_share" in said


def test_nothing_but_the_text_tower_stays(found: dict[str, Any], home: Path) -> None:
    assert [path.name for path in home.iterdir()] == ["towers"]
    assert len(list((home / "towers").iterdir())) == 1


# --- its checks can fail -----------------------------------------------------------------------------------------------


def test_a_peer_that_is_not_there_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(PEERS, "embedder_of_the_future", "embedder-of-the-future")
    monkeypatch.setattr(sys, "argv", ["slatecast", "bench", "scorer", "--home", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (1, "")
    (line,) = err.strip().splitlines()
    assert line.endswith(f"embedder-of-the-future: not installed, to compare with: {how_to_install('bench')}")
    assert not list(tmp_path.iterdir())


def test_a_score_that_moves_with_its_neighbours_is_seen() -> None:
    asks, vectors = draw((0, 7, TRAIL), 400, 8)

    def apart(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([ask.features[:, :2] for ask in asks])

    def by_the_largest(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = apart(asks, vectors)
        return logits / np.abs(logits).max() * np.abs(logits).max()  # the same but for its last bit

    def by_place(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = apart(asks, vectors)
        logits[100:] = np.nextafter(logits[100:], np.float32(np.inf))
        return logits

    assert isolation_share(apart, asks, vectors, 100) == 1.0
    assert isolation_share(by_the_largest, asks, vectors, 100) < 0.2
    assert 0 < isolation_share(by_place, asks, vectors, 100) < 1, "calls of few candidates are well"


def test_lists_that_meet_have_trails_of_every_length_and_distinct_candidates() -> None:
    asks, vectors = draw((0, 7, TRAIL), 400, 8)
    assert [len(ask.trail.rows) for ask in asks] == [0, 7, 50]
    assert all(len(set(ask.rows.tolist())) == CANDIDATES == max(COUNTS) for ask in asks)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("other", [[1.0, 2.1], [1.0, math.nan], [1.0]])
def test_peers_that_do_other_work_are_not_compared(other: list[float]) -> None:
    about = {"onnx": {"scores": [1.0, 2.0]}, "ours": {"vectors": [5.0]}, "other": {"scores": other}}
    with pytest.raises(ModelRejected, match="scores of other and onnx differ"):
        largest_difference(about, "scores")
    about["other"] = {"scores": [1.0, 2.0001]}
    assert largest_difference(about, "scores") == pytest.approx(1e-4)


def test_ratios_by_hand() -> None:
    took = dict.fromkeys(scorer.TASKS, Took(1.0, 1.0))
    took["ours", "cached"], took["ours", "uncached"] = Took(0.02, 0.01), Took(2.0, 1.0)
    took["onnx", "cross"], took["sentence_transformers", "cross"] = Took(5.0, 1.0), Took(4.0, 2.0)
    took["ours", "embed"] = Took(4.0, 2.0)
    took["fastembed", "embed_32"], took["fastembed", "embed_256"] = Took(9.0, 3.0), Took(6.0, 4.0)
    ratios = compare(took, texts=1000, pairs=50)  # a quarter of the 200
    assert ratios["ratio_cross_encoder"] == pytest.approx(4 * 1.0 / 0.01), "the faster peer, all of its pairs"
    assert ratios["ratio_cross_encoder_wall"] == pytest.approx(4 * 4.0 / 0.02)
    assert ratios["ratio_cross_encoder_nothing_cached"] == pytest.approx(4.0)
    assert (ratios["ratio_fastembed"], ratios["ratio_fastembed_wall"]) == (1.5, 1.5)
    assert ratios["tower_ms"] == 1000


def test_an_engine_that_ends_says_why() -> None:
    with pytest.raises(Unavailable, match="KeyError: 'nobody'"), running(Order(engine="nobody", folder="")):
        pass


def test_a_start_from_no_release_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"is no release: manifest\.json"):
        start(Order(engine="start", folder=str(tmp_path), release=str(tmp_path)))


def test_titles_are_distinct_and_enough() -> None:
    titles = real_titles(TEXTS)
    assert len(set(titles)) == len(titles) == TEXTS
    assert all(titles)


def test_an_engine_starts_light() -> None:
    code = "import sys, streams.bench.scorer_ours; sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)"
    heavy = "heavy = {'torch', 'transformers', 'scipy', 'onnxruntime', 'confluent_kafka', 'click'}; "
    done = subprocess.run(
        [sys.executable, "-P", "-c", heavy + code], capture_output=True, text=True, env={**os.environ}
    )
    assert (done.returncode, done.stderr) == (0, "")
