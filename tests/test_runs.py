"""A training leaves a folder that says what it was and how it went; runs are listed, shown and compared."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.runs import METRICS, Window, check_same, flatten, list_runs, read_metrics, read_run, start_run
from models.train_settings import TrainSettings
from recsys.errors import Misuse
from streams.cli.runs import runs

NOW_MS = 1_764_166_503_000
WINDOW = Window("shop", 1_700_000_000_000, 1_764_000_000_000, 5, 2, 3)
Cli = Callable[..., str]


def trained(home: Path, now_ms: int = NOW_MS, steps: int = 3, **changes: object) -> Path:
    """A run that logs a falling loss."""
    settings = msgspec.structs.replace(TrainSettings(), **changes)
    with start_run(home, "train", settings, WINDOW, now_ms) as run:
        for step in range(1, steps + 1):
            run.log("fit/loss", step, 1 / step)
        run.close("done", {"ndcg_at_10": 0.25 + settings.seed})
    return run.folder


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    def run(*words: str) -> str:
        return CliRunner().invoke(runs, [*words, "--home", str(tmp_path)], catch_exceptions=False).output

    return run


def test_a_run_is_a_folder_that_says_all_of_it(tmp_path: Path) -> None:
    folder = trained(tmp_path, beta=0.5)
    assert folder == tmp_path / "runs" / "20251126-141503-train"
    _, about = read_run(tmp_path, folder.name)
    assert about.ended == "done"
    assert about.window == WINDOW
    assert about.settings["beta"] == 0.5
    assert about.settings["seed"] == 0
    assert about.result == {"ndcg_at_10": 0.25}
    assert about.environment["packages"]["torch"]
    lines = read_metrics(folder)["fit/loss"]
    assert [(line.step, line.value) for line in lines] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert (folder / "curves.svg").read_text().endswith("</svg>\n")


def test_tensorboard_reads_the_same_figures(tmp_path: Path) -> None:
    board = EventAccumulator(str(trained(tmp_path)))
    board.Reload()
    assert [(one.step, round(one.value, 5)) for one in board.Scalars("fit/loss")] == [(1, 1.0), (2, 0.5), (3, 0.33333)]


def test_figures_are_on_disk_before_the_next_step_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    with start_run(tmp_path, "train", TrainSettings(), WINDOW, NOW_MS) as run:
        run.log("fit/loss", 1, 0.5)
        assert read_metrics(run.folder)["fit/loss"][0].value == 0.5
        assert read_run(tmp_path, "last")[1].ended == "running"
        with (run.folder / METRICS).open("ab") as file:
            file.write(b'{"name":"fit/lo')
        assert list(read_metrics(run.folder)) == ["fit/loss"]


@pytest.mark.parametrize(("error", "ended"), [(Misuse("no such shop"), "failed"), (KeyboardInterrupt(), "stopped")])
def test_what_ends_a_run_is_named_in_it_and_not_swallowed(tmp_path: Path, error: BaseException, ended: str) -> None:
    with (
        pytest.raises(type(error)),
        start_run(tmp_path, "train", TrainSettings(), WINDOW, NOW_MS) as run,
    ):
        raise error
    about = read_run(tmp_path, run.folder.name)[1]
    assert about.ended == ended
    assert about.reason == ("Misuse: no such shop" if ended == "failed" else "")


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    assert [trained(tmp_path).name for _ in range(3)] == [f"20251126-141503-train{end}" for end in ("", "-2", "-3")]


def test_weights_and_biases_must_be_there_if_it_is_asked_for(tmp_path: Path) -> None:
    with (
        pytest.raises(Misuse, match="pip install wandb"),
        start_run(tmp_path, "train", TrainSettings(), WINDOW, NOW_MS, wandb=True),
    ):
        raise AssertionError("it began without")
    assert list_runs(tmp_path) == ([], [])


def test_runs_are_listed_shown_and_compared(tmp_path: Path, cli: Cli) -> None:
    one, other = trained(tmp_path), trained(tmp_path, NOW_MS + 86_400_000, seed=1, steps=5)
    assert [about["id"] for about in json.loads(cli("list", "--json"))] == [one.name, other.name]
    assert "ndcg_at_10 0.2500" in cli("list")
    assert json.loads(cli("show", "--json"))["run"]["id"] == other.name
    assert len(json.loads(cli("show", "20251126", "--json"))["metrics"]["fit/loss"]) == 3
    assert "settings.seed" in cli("show")
    found = json.loads(cli("diff", one.name, "--json"))["differences"]
    assert found["settings.seed"] == [0, 1]
    assert found["result.ndcg_at_10"] == [0.25, 1.25]
    assert "settings.beta" not in found
    assert "settings.seed" in cli("diff", one.name, other.name)


@pytest.mark.parametrize(
    ("words", "said"),
    [(("show", "2"), "several runs begin"), (("show", "x"), "no run begins"), (("diff", "last"), "name two runs")],
)
def test_a_run_that_is_not_meant_by_a_name_is_said_with_those_there_are(
    tmp_path: Path, cli: Cli, words: tuple[str, ...], said: str
) -> None:
    folders = [trained(tmp_path), trained(tmp_path, NOW_MS + 1000)]
    with pytest.raises(Misuse, match=said) as refused:
        cli(*words)
    assert folders[1].name in str(refused.value)


@pytest.mark.parametrize("text", [b'{"id": 3}', b'{"id": "\xff"}', b""])
def test_a_run_that_cannot_be_read_is_passed_over_in_the_list_and_named_when_asked_for(
    tmp_path: Path, cli: Cli, text: bytes
) -> None:
    folder = trained(tmp_path)
    (folder / "run.json").write_bytes(text)
    assert "no runs yet" in cli("list")
    with pytest.raises(Misuse, match="another version"):
        cli("show", "last")


def test_a_run_goes_on_with_its_own_settings_and_data_only(tmp_path: Path) -> None:
    about = read_run(tmp_path, trained(tmp_path).name)[1]
    check_same(about, "train", TrainSettings(), WINDOW)
    for command, settings, window, said in (
        ("tune-training", TrainSettings(), WINDOW, "command = train, not tune-training"),
        ("train", TrainSettings(epochs=3), WINDOW, "settings.epochs = 8, not 3"),
        ("train", TrainSettings(), msgspec.structs.replace(WINDOW, events=1), "window.events = .*, not 1"),
    ):
        with pytest.raises(Misuse, match=said):
            check_same(about, command, settings, window)


def test_names_of_nested_settings_are_dotted() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1]}) == {"a.b.c": 1, "d": [1]}
