"""MiniLM as a tower, and the text side of a release made with it."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from release_helpers import write_scorers

from models.devices import CPU, CUDA
from models.export import default_weights, export_tower
from models.item_files import save_item_models
from models.item_vectors import build_text
from models.registry import Manifest, publish
from models.serving import open_models
from models.text_tower import TextTower
from recsys.catalogue import text_hash
from recsys.errors import ModelRejected
from recsys.features import NAMES
from recsys.item_models import ItemModels

TITLES = [
    f"{colour} {thing}" for colour in ("Red", "Blue") for thing in ("mug", "pan", "garden chair, folding", "lamp")
]


@pytest.fixture(scope="module")
def folder(home: Path) -> Path:
    """The default tower: exported once a home, as for the demo."""
    return export_tower(default_weights(), home / "towers")


@pytest.fixture(scope="module")
def tower(folder: Path) -> TextTower:
    return TextTower(folder)


def test_vectors_have_unit_length_and_know_what_words_mean(tower: TextTower) -> None:
    mug, cup, mower = vectors = tower.encode(["red mug", "crimson coffee cup", "petrol lawn mower"])
    assert vectors.shape == (3, tower.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert mug @ cup > mug @ mower + 0.2


def test_a_tower_whose_gpu_fails_goes_on_on_cpu(
    folder: Path, tower: TextTower, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class OutOfMemory:
        def run(self, *_asked: object) -> None:
            raise Fail("CUDA failure 2: out of memory")

    failing = TextTower(folder)
    monkeypatch.setattr(failing, "_session", OutOfMemory())
    failing.provider = CPU
    with pytest.raises(Fail):  # there is nothing to go on with
        failing.encode(TITLES)
    failing.provider = CUDA
    np.testing.assert_allclose(failing.encode(TITLES), tower.encode(TITLES), atol=1e-5)  # no bits: that may be on a GPU
    assert (failing.provider, len(caplog.records)) == (CPU, 1)


def test_a_text_in_a_batch_has_the_vector_that_it_has_alone(tower: TextTower) -> None:
    rng = np.random.default_rng(0)
    words = ["red", "blue", "mug", "pan", "folding", "garden", "chair", "330", "ml", "crème", "brûlée", "日本", "x"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 60))) for _ in range(30)]
    alone = np.concatenate([tower.encode([text]) for text in texts])
    np.testing.assert_allclose(tower.encode(texts), alone, atol=1e-6)  # seen: 1e-7


def test_the_order_of_the_texts_is_kept_and_progress_told(tower: TextTower) -> None:
    texts = ["a far longer text than the others " * 5, "mug", "", "garden chair", "mug"] * 40
    told: list[tuple[int, int]] = []
    vectors = tower.encode(texts, lambda done, of: told.append((done, of)))
    np.testing.assert_allclose(vectors[0::5], np.tile(vectors[0], (40, 1)), atol=1e-6)
    np.testing.assert_allclose(vectors[1::5], vectors[4::5], atol=1e-6)
    assert len(told) > 1
    assert told == sorted(told)
    assert told[-1] == (200, 200)


@pytest.mark.parametrize("text", ["", "  \n", "\x00", "\u200b"])
def test_a_text_without_a_token_is_a_zero_vector(tower: TextTower, text: str) -> None:
    vectors = tower.encode(["mug", text])
    assert vectors[0].any()
    assert not vectors[1].any()


def test_no_texts_are_no_vectors(tower: TextTower) -> None:
    assert tower.encode([]).shape == (0, tower.dim)


def test_a_text_is_cut_at_the_towers_limit(tower: TextTower) -> None:
    fits = tower.settings.max_tokens - 2  # beside [CLS] and [SEP]
    exact, longer = tower.encode(["mug " * fits, "mug " * 5000])
    np.testing.assert_array_equal(exact, longer)


@pytest.mark.parametrize("file", ["tower.json", "tokenizer.json", "tower.onnx"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe nothing", b'{"pooling": "\xff"}'])
def test_a_folder_that_is_no_tower_is_refused(tmp_path: Path, folder: Path, file: str, content: bytes | None) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelRejected, match=str(tmp_path)):
        TextTower(tmp_path)


def test_serving_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, models.serving; sys.exit(' '.join({'torch', 'transformers', 'onnx'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_release_holds_the_vectors_that_its_tower_gives(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "towers" / folder.name)
    told: list[tuple[int, int]] = []
    text = build_text(tmp_path, [*TITLES, TITLES[0], ""], progress=lambda done, of: told.append((done, of)))
    assert told[-1] == (len(TITLES) + 1, len(TITLES) + 1)  # the repeated title is embedded once
    draft = tmp_path / "draft"
    draft.mkdir()
    text.save(draft)
    write_scorers(draft, None)
    save_item_models(ItemModels(), draft)
    manifest = Manifest(created_ts_ms=0, data="titles", data_until_ts_ms=0, features=NAMES, metrics={})
    models = open_models(publish(tmp_path, draft, manifest).folder)
    kept = np.stack([models.vector(text_hash(title)) for title in TITLES])  # type: ignore[misc]
    np.testing.assert_allclose(models.embed(TITLES), kept, atol=1e-4)  # 1e-7 of the tower, times whitening's 1/std
    assert models.vector(text_hash("never seen")) is None
    assert not models.embed([""]).any()


def test_a_text_is_embedded_only_once_in_the_life_of_a_tower(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "towers" / folder.name)
    told: list[tuple[int, int]] = []
    first = build_text(tmp_path, TITLES)
    again = build_text(tmp_path, TITLES[::-1], progress=lambda done, of: told.append((done, of)))
    assert not told
    np.testing.assert_allclose(again.vectors[::-1], first.vectors, atol=1e-3)
    build_text(tmp_path, [*TITLES, "Something new"], progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 1)]


@pytest.mark.parametrize("whiten", [True, False])
def test_a_shop_without_any_text_has_vectors_that_say_nothing(tmp_path: Path, folder: Path, whiten: bool) -> None:
    shutil.copytree(folder, tmp_path / "towers" / folder.name)
    vectors = build_text(tmp_path, ["", ""], dim=8, whiten=whiten).vectors
    assert vectors.shape == (2, 8)
    assert not vectors.any()


def test_a_broken_cache_of_vectors_is_made_again(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "towers" / folder.name)
    first = build_text(tmp_path, TITLES)
    (tmp_path / "towers" / f"{folder.name}.vectors.safetensors").write_bytes(b"broken")
    np.testing.assert_array_equal(build_text(tmp_path, TITLES).vectors, first.vectors)
