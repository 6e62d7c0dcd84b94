"""The release that training leaves, finished or stopped by Ctrl-C; and that serving answers what was trained."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from training_helpers import NOTHING, SMALL, one_thread, rounds, silent

from models.examples import Lists, measure
from models.export import default_weights, export_tower
from models.item_vectors import build_text
from models.registry import Release, champion, open_release, publish
from models.scorer import Network
from models.serving import NoModels, ReleaseModels, open_models
from models.training import Learner, train
from recsys.catalogue import item_text, text_hash
from recsys.errors import ModelRejected, Unavailable
from recsys.features import NAMES
from recsys.scoring import Ask, Scored, Trail

__all__ = ["one_thread"]  # the fixture

TOWERED = msgspec.structs.replace(SMALL, tower_width=16, tower_layers=1, tower_epochs=1)


@pytest.fixture(scope="module")
def trained(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Release]:
    """A folder with a release made by `train`; the tower is exported once a home, as for the demo."""
    tower = export_tower(default_weights(), home / "towers")
    own = tmp_path_factory.mktemp("home")
    shutil.copytree(tower, own / "towers" / tower.name)
    return own, train(rounds(), own, "rounds", 1_700_000_000_000, TOWERED, None, silent).release


@pytest.fixture
def redraft(trained: tuple[Path, Release], tmp_path: Path) -> Callable[[], Path]:
    """The files of the release, to make another of."""

    def draft() -> Path:
        return Path(shutil.copytree(trained[1].folder, tmp_path / "draft", copy_function=os.link))

    return draft


# --- what training leaves ---------------------------------------------------------------------------------------------


def test_train_makes_a_champion_that_says_what_it_is(trained: tuple[Path, Release]) -> None:
    home, release = trained
    assert champion(home) == release.folder
    manifest = open_release(release.folder).manifest
    assert manifest.features == NAMES
    assert manifest.data == "rounds"
    assert manifest.data_until_ts_ms == (int(rounds().ts_s[-1]) + 1) * 1000
    assert manifest.metrics["ndcg_at_10"] > 0.9 > manifest.metrics["ndcg_at_10_own_frequency"]
    assert not list((home / "releases").glob("draft-*"))


def interrupting(fits: int) -> tuple[list[int], Callable[[str, int, int], None]]:
    """One entry per fit that has begun, and a listener that presses Ctrl-C in the fifth step of that one."""
    begun: list[int] = []

    def step(what: str, done: int, of: int) -> None:
        if what == "fitting the scorer":
            begun.extend([1] * (done == 1))
            if len(begun) == fits and done == 5:
                raise KeyboardInterrupt

    return begun, step


@pytest.mark.parametrize(("fits_begun", "least"), [(1, 0.3), (2, 0.3), (4, 0.9)])
def test_ctrl_c_leaves_a_release_of_what_was_learned_so_far(
    trained: tuple[Path, Release], tmp_path: Path, fits_begun: int, least: float
) -> None:
    """In the linear fit, in the network's, and in that of what would serve: then what was judged serves."""
    shutil.copytree(trained[0] / "towers", tmp_path / "towers")
    begun, step = interrupting(fits_begun)
    found = train(rounds(), tmp_path, "rounds", 1_700_000_000_000, SMALL, None, step)
    assert found.ended == "stopped"
    assert len(begun) == fits_begun
    assert champion(tmp_path) == found.release.folder
    assert found.worth["scorer"].ndcg_at_10 > least


def test_ctrl_c_while_patience_seeks_the_last_step_ends_training_too(
    trained: tuple[Path, Release], tmp_path: Path
) -> None:
    shutil.copytree(trained[0] / "towers", tmp_path / "towers")
    begun, step = interrupting(4)  # linear and network are judged; both again, to see how far to go
    patient = msgspec.structs.replace(SMALL, patience=50)
    found = train(rounds(), tmp_path, "rounds", 1_700_000_000_000, patient, None, step)
    assert (found.ended, len(begun)) == ("stopped", 4)
    assert found.worth["scorer"].ndcg_at_10 > 0.9


def test_ctrl_c_before_a_step_of_what_would_serve_leaves_what_was_judged(
    trained: tuple[Path, Release], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large shop the lists of all weeks are measured for seconds before it."""
    shutil.copytree(trained[0] / "towers", tmp_path / "towers")
    measured: list[int] = []

    def press(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        measured.append(len(features))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(features)

    monkeypatch.setattr("models.network_training.measure", press)
    found = train(rounds(), tmp_path, "rounds", 1_700_000_000_000, SMALL, None, silent)
    assert found.ended == "stopped"
    assert champion(tmp_path) == found.release.folder


def test_a_full_disk_is_one_line_and_leaves_no_release(trained: tuple[Path, Release], tmp_path: Path) -> None:
    shutil.copytree(trained[0] / "towers", tmp_path / "towers")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(what: str, done: int, of: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1])) if what == "fitting the scorer" else None

    try:
        with pytest.raises((Unavailable, OSError), match="cannot be written|File too large"):
            train(rounds(), tmp_path, "rounds", 1_700_000_000_000, SMALL, None, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert champion(tmp_path) is None
    assert list((tmp_path / "releases").iterdir()) == []


# --- serving ----------------------------------------------------------------------------------------------------------


NO_VECTORS = np.zeros((0, 0), np.float32)


def test_a_release_answers_what_was_learned(trained: tuple[Path, Release]) -> None:
    home, release = trained
    history, models = rounds(), open_models(release.folder)
    side = build_text(home, [item_text(item) for item in history.items])
    learner = Learner(history, side.vectors, TOWERED, silent)
    learner.live_until(int(history.ts_s[-1]) + 1)
    lists = learner.newest
    asks = asks_of(lists)
    scored = models.score(asks, side.vectors)
    assert (scored.scorer, scored.degraded_reason) == ("sequence", None)
    np.testing.assert_allclose(scored.logits, learner.fit().score(lists, side.vectors), rtol=1e-4, atol=1e-4)
    assert models.release == release.id
    assert models.dim == side.vectors.shape[1]
    np.testing.assert_array_equal(models.vector(text_hash(item_text(history.items[3]))), side.vectors[3])


def asks_of(lists: Lists) -> list[Ask]:
    """Training lists as serving would ask them."""
    starts = [0, *lists.ends[:-1].tolist()]
    lengths = (lists.trails["trail"] >= 0).sum(axis=1).tolist()
    return [
        Ask(
            lists.rows[start:end],
            lists.features[start:end],
            Trail(*(lists.trails[name][at, :length] for name in ("trail", "actions", "marks"))),
        )
        for at, (start, end, length) in enumerate(zip(starts, lists.ends.tolist(), lengths, strict=True))
    ]


def test_a_release_for_other_features_is_refused(
    trained: tuple[Path, Release], redraft: Callable[[], Path], tmp_path: Path
) -> None:
    manifest = msgspec.structs.replace(trained[1].manifest, features=("other", *NAMES[1:]))
    release = publish(tmp_path, redraft(), manifest)
    with pytest.raises(ModelRejected, match=r"trained on other features \(other, own_count\); train again"):
        open_models(release.folder)


@pytest.mark.parametrize(("name", "array"), [("whitening", "matrix"), ("whitening", "mean"), ("vectors", "vectors")])
def test_a_release_whose_parts_do_not_belong_together_is_refused(
    trained: tuple[Path, Release], redraft: Callable[[], Path], tmp_path: Path, name: str, array: str
) -> None:
    draft = redraft()
    file = draft / f"{name}.safetensors"
    arrays = load_file(file)
    file.unlink()  # a link to the trained one
    save_file({**arrays, array: arrays[array][:-1]}, file)
    with pytest.raises(ModelRejected, match="are of different trainings; train again"):
        open_models(publish(tmp_path, draft, trained[1].manifest).folder)


def test_a_scorer_that_breaks_is_named_in_the_answer_said_once_and_the_next_makes_the_list(
    trained: tuple[Path, Release], redraft: Callable[[], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draft = redraft()
    (draft / "scorer.onnx").unlink()  # a link to the trained one
    huge = np.full((len(NAMES), 2), 3e38, np.float32)
    ones = np.ones(len(NAMES), np.float32)
    (draft / "scorer.onnx").write_bytes(Network(huge, np.zeros(2, np.float32), 0 * ones, ones)._graph())
    models = ReleaseModels(publish(tmp_path, draft, trained[1].manifest))
    vectors = np.zeros((30, models.dim), np.float32)
    for _ in range(2):
        scored = models.score([Ask(np.arange(4), np.ones((4, len(NAMES)), np.float32), NOTHING)], vectors)
        assert scored.scorer == "linear"
        assert scored.logits is not None
        assert np.isfinite(scored.logits).all()
        assert scored.degraded_reason is not None
        assert "not finite" in scored.degraded_reason
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2  # the tower's, the network's
    bad = [Ask(np.arange(1), np.full((1, len(NAMES)), np.nan, np.float32), NOTHING)]
    assert models.score(bad, vectors).logits is None


def test_without_a_release_lists_are_made_by_rank_fusion() -> None:
    models = NoModels()
    assert models.score([Ask(np.arange(3), np.zeros((3, len(NAMES)), np.float32), NOTHING)], NO_VECTORS) == Scored(
        None, "rank_fusion", "no release: run `slatecast train`"
    )
    assert models.embed(["mug", "pan"]).shape == (2, 0)
    assert models.vector("0" * 32) is None


def test_a_folder_that_is_no_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="slatecast train"):
        open_models(tmp_path / "none")


@pytest.mark.parametrize("module", ["streams.ranker", "models.serving", "recsys.pipeline"])
def test_serving_starts_without_torch_and_transformers(module: str) -> None:
    heavy = "{'torch', 'transformers', 'onnx', 'scipy', 'faust'}"
    code = f"import sys, {module}; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
