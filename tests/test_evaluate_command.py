"""`slatecast evaluate`, `tune` and `train` as they are typed: tables, plots, and one clear line for a mistake."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from decoder_helpers import write_decoders
from evaluate_helpers import ORIGINS, ndcg, shop

from models.baselines import FAMILIES
from models.evaluate import Evaluation, evaluate
from models.history import History
from models.origins import TASKS
from streams.cli.main import main
from streams.settings import load_settings

__all__ = ["shop"]  # the fixture

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command line as the user types it; exit code, stdout, stderr."""

    def call(*args: object, command: str = "evaluate") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["slatecast", command, *map(str, args)])
        with pytest.raises(SystemExit) as left:
            main()
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return int(left.value.code or 0), out.out, out.err

    return call


@pytest.fixture
def folder(shop: History, tmp_path: Path) -> Path:
    columns = zip(shop.user.tolist(), shop.item.tolist(), shop.ts_s.tolist(), shop.session.tolist(), strict=True)
    events = [
        {"type": "purchase", "user": f"u{user}", "item": f"i{item}", "ts": ts_s, "session": f"s{session}"}
        for user, item, ts_s, session in columns
    ]
    for name, rows in ("events", events), ("items", shop.items):
        lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines))
    return tmp_path


def test_evaluate_prints_one_object_with_the_table_of_the_function(run: Run, folder: Path, shop: History) -> None:
    code, out, err = run(folder, "--origins", "2011-03-14,2011-03-28", "--json")
    assert code == 0, err
    result = msgspec.convert(json.loads(out), Evaluation)
    assert [asked.day for asked in result.origins] == ["2011-03-14", "2011-03-28"]
    here = evaluate(shop, "drawn", ORIGINS)
    assert ndcg(result, "all", "own frequency") == pytest.approx(ndcg(here, "all", "own frequency"))
    assert {"ratio_new", "ratio_all", "overlap_ratio", "table"} <= set(json.loads(out))


def test_evaluate_prints_a_table_that_fits_a_pipe_and_draws_it(run: Run, folder: Path, tmp_path: Path) -> None:
    plots, decoder = tmp_path / "plots", write_decoders(lambda name: tmp_path / name)["llama"]
    options = ["--strengths", "0,0.5", "--plots", plots, "--set", "epochs=1", "--deep", decoder, "--deep-weight", 0.5]
    code, out, err = run(folder, "--min-buyers", 3, *options)
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert "items with 3 or more buyers" in out
    for family in FAMILIES:
        assert family.name in out
    for variant in ("strength 0.5", "deep 0.5"):
        assert f"slatecast {variant}" in out
        for task in TASKS:
            assert f"task {task}: {variant} is " in out
    assert (plots / "frontier.svg").is_file()
    assert (plots / "bands.svg").is_file()


def test_the_demonstration_is_a_table_and_one_page(run: Run, folder: Path, tmp_path: Path) -> None:
    plots = tmp_path / "plots"
    code, out, err = run(folder, "--origins", "2011-03-14", "--diversity", "--plots", plots, "--set", "epochs=1")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    for way in ("top-k", "MMR", "DPP", "SSD", "category coverage", "exposure price", "ours", "EASE"):
        assert way in out
    assert [path.name for path in plots.iterdir()] == ["diversity.svg"]


def test_tune_writes_a_policy_that_slatecast_reads_all_it_tried_and_a_plot(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    tuned = tmp_path / "tuned"
    args = (folder, "--origins", "2011-03-14,2011-04-11", "--lose", 0.5, "--out", tuned, "--set", "epochs=1")
    code, out, err = run(*args, command="tune")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert "judged where nothing was tuned" in out
    tried = json.loads((tuned / "tried.json").read_text())
    assert len(tried) == 32
    policy = load_settings(tuned / "policy.toml", {}, {}).policy
    chosen = max((one for one in tried if one["within"]), key=lambda one: one["gain"])
    assert policy.exposure_penalty == chosen["knobs"]["exposure_penalty"]
    assert (tuned / "tuned.svg").is_file()


def test_tuning_needs_a_later_moment_to_judge_at(run: Run, folder: Path) -> None:
    code, _, err = run(folder, "--origins", "2011-03-14", command="tune")
    assert code == 2
    assert "two or more moments" in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["{}/none"], "is no folder"),
        (["{}", "--origins", "soon"], "write dates as"),
        (["{}", "--origins", "2031-01-01"], "nobody to ask"),
        (["{}", "--min-buyers", "0"], "--min-buyers"),
        (["{}", "--min-buyers", "1000"], "nobody to ask"),
        (["{}", "--strengths", "0.1,2"], "numbers from 0 to 1"),
        (["{}", "--set", "epoch=3"], "did you mean 'epochs'"),
        (["{}", "--deep", "{}/none"], "is no folder"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_evaluated_is_one_clear_line_and_exit_code_2(
    run: Run, folder: Path, args: list[str], said: str
) -> None:
    code, out, err = run(*(arg.format(folder) for arg in args))
    assert code == 2
    assert out == ""
    assert said in err


@pytest.mark.parametrize("until", ["soon", "2011-02-05,2011-03-14"])
@pytest.mark.parametrize("command", ["train", "tune-training"])
def test_a_day_that_is_none_is_named_with_its_own_option(run: Run, folder: Path, command: str, until: str) -> None:
    code, _, err = run(folder, "--until", until, command=command)
    assert code == 2
    assert f"--until {until}: write one date, as in 2011-08-19" in err


def test_train_says_what_it_leaves_out(run: Run, folder: Path, shop: History) -> None:
    bought = np.unique(np.stack([shop.item, shop.user]), axis=1)[0]
    buyers = np.bincount(bought, minlength=len(shop.items))
    least = int(np.median(buyers))
    on_them = int(np.sum(buyers[shop.item] >= least))
    _, _, err = run(folder, "--min-buyers", least, "--home", folder, "--tower", folder / "none", command="train")
    kept = int(np.sum(buyers >= least))
    assert 0 < kept < len(shop.items)
    assert f"{kept} of {len(shop.items)} items have {least} buyers, {on_them} of {len(shop)} events are on them" in err


@pytest.mark.parametrize("name", ["events", "items"])
@pytest.mark.parametrize(
    "content", [None, b"", bytes(range(256)), gzip.compress(b"", mtime=0), gzip.compress(b'{"usr":"u1"}\n', mtime=0)]
)
def test_a_broken_file_is_one_clear_line_that_names_it(
    run: Run, folder: Path, name: str, content: bytes | None
) -> None:
    path = folder / f"{name}.jsonl.gz"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    code, out, err = run(folder)
    assert (code, out) == (2, "")
    assert name in err.splitlines()[-1]
