"""The protocol: who is asked at a moment and what counts, then the table on a small shop, then the command."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from decoder_helpers import write_decoders
from numpy.typing import NDArray
from past_helpers import DAY_S, T, draw_past, past

from models.baselines import FAMILIES, Scored, ease, popularity
from models.evaluate import Evaluation, evaluate
from models.history import COLUMNS, History
from models.judging import BASKETS, Lists, judge_bands
from models.origins import (
    MIN_ITEMS,
    TASKS,
    WINDOW_S,
    Origin,
    Task,
    default_origins,
    make_origin,
    parse_origins,
    top_k,
)
from models.plots import plot
from recsys.errors import Misuse
from recsys.profiles import VIEW
from streams.cli.main import main
from streams.settings import load_settings

Run = Callable[..., tuple[int, str, str]]


def habits(users: int) -> list[tuple[int, int, float]]:
    """Everybody has bought items 0–4 once, 20 days ago."""
    return [(user, item, -20.0) for user in range(users) for item in range(5)]


# --- who is asked, what counts ----------------------------------------------------------------------------------------


def test_the_catalogue_is_what_enough_different_users_had_bought_before() -> None:
    rows = habits(4) + [(user, 7, -19.0) for user in range(3)] + [(3, 7, 1.0)]
    rows += [(0, 5, -3.0), (0, 5, -2.0), (1, 5, -1.0), (2, 5, 0.0), (0, 6, -1.0)]
    origin, _ = make_origin(past(rows, 8), T, min_buyers=3)
    assert origin.rows.tolist() == [0, 1, 2, 3, 4, 7]  # item 5: three buyers, but the third buys at T
    assert make_origin(past(rows, 8), T, min_buyers=2)[0].rows.tolist() == [0, 1, 2, 3, 4, 5, 7]


def test_counts_and_masks_are_as_of_the_moment() -> None:
    rows = [*habits(2), (0, 5, -3.0), (0, 5, -2.0), (1, 5, 0.0)]
    origin, _ = make_origin(past(rows, 6), T, min_buyers=1)
    assert origin.users.tolist() == [1]
    assert origin.counts.toarray().tolist() == [[1, 1, 1, 1, 1, 2], [1, 1, 1, 1, 1, 0]]
    assert origin.seen.tolist() == [[True] * 5 + [False]]
    assert (origin.ts_s < T).all()
    assert origin.day == "2011-03-14"


def test_only_users_with_enough_distinct_items_are_asked() -> None:
    assert MIN_ITEMS == 5
    rows = habits(2) + [(2, item % 4, -9.0 - item) for item in range(9)] + [(user, 5, 1.0) for user in range(3)]
    rows += [(0, 5, -30.0)]
    _, truth = make_origin(history := past(rows, 6), T, min_buyers=1)
    assert make_origin(history, T, min_buyers=1)[0].users.tolist() == [0, 1]
    assert truth.all == [{5}, {5}]


def test_the_truth_is_the_first_session_that_can_be_hit() -> None:
    rows = [*habits(2), (1, 5, -5.0)]
    rows += [(0, 7, 1.0)]  # nobody had bought 7: it cannot be found
    rows += [(0, 0, 2.0), (0, 1, 2.0), (0, 0, 2.0), (0, 7, 2.0)]  # repeats
    rows += [(0, 5, 3.0), (0, 0, 3.0), (0, 2, 4.0)]
    origin, truth = make_origin(past(rows, 8), T, min_buyers=1)
    assert origin.users.tolist() == [0]
    assert truth.all == [{0, 1}]
    assert truth.new == [{5}]  # the first session with something he had not bought, without the repeat in it


def test_a_session_at_the_moment_counts_and_one_four_weeks_later_does_not() -> None:
    rows = habits(3) + [(0, 0, 0.0), (1, 0, 27.99), (2, 0, 28.0), (0, 5, -1.0), (1, 5, 0.5)]
    origin, truth = make_origin(past(rows, 6), T, min_buyers=1)
    assert origin.users.tolist() == [0, 1]
    assert truth.all == [{0}, {5}]
    assert truth.places("new") == [1]


def test_views_are_no_purchases() -> None:
    bought, viewed = past([*habits(2), (0, 5, -1.0), (1, 5, 1.0)], 8), past([(0, 6, -9.0), (1, 7, 0.5)], 8, VIEW)
    columns = {name: np.concatenate([getattr(bought, name), getattr(viewed, name)]) for name in COLUMNS}
    order = np.argsort(columns["ts_s"], kind="stable")
    both = msgspec.structs.replace(bought, **{name: column[order] for name, column in columns.items()})
    origin, truth = make_origin(both, T, min_buyers=1)
    assert origin.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert truth.all == [{5}]


def test_a_moment_with_nobody_to_ask_says_what_to_do() -> None:
    with pytest.raises(Misuse, match=r"2011-03-14 there is nobody to ask.*--min-buyers"):
        make_origin(past(habits(2), 5), T, min_buyers=1)


def test_default_moments_are_four_weeks_apart_and_the_last_window_ends_with_the_data() -> None:
    history = past([(0, 0, -100.0), (0, 0, 40.5)], 1)
    origins = default_origins(history)
    assert np.diff(origins).tolist() == [WINDOW_S, WINDOW_S]
    assert origins[-1] == T + 12 * DAY_S


@pytest.mark.parametrize("text", ["2011-13-01", "yesterday", "2011-08-19;2011-09-02", ""])
def test_moments_that_are_no_dates_are_refused(text: str) -> None:
    with pytest.raises(Misuse, match="2011-08-19,2011-09-02"):
        parse_origins(text)


# --- the table --------------------------------------------------------------------------------------------------------

ORIGINS = [T, T + 14 * DAY_S]


class Oracle:
    """Knows the future."""

    name = "ours"

    def rank(self, origin: Origin, task: Task, k: int) -> NDArray[np.int64]:
        truth = make_origin(origin.history, origin.at_s, min_items=0)[1].of(task)
        lists = np.full((len(truth), k), -1)
        for place, items in enumerate(truth):
            lists[place, : min(k, len(items))] = sorted(items)[:k]
        return lists


@pytest.fixture(scope="module")
def shop() -> History:
    return draw_past(0, users=80, items=120)


@pytest.fixture(scope="module")
def judged(shop: History) -> Evaluation:
    return evaluate(shop, "drawn", ORIGINS, {"": Oracle()}, vectors=np.eye(120, dtype=np.float32))


def ndcg(result: Evaluation, task: Task, model: str) -> float:
    return next(
        line.accuracy.ndcg for line in result.table if (line.task, line.model) == (task, model) and line.accuracy
    )


def test_who_knows_the_future_has_every_figure_at_its_best(judged: Evaluation) -> None:
    for line in judged.table:
        if line.model == "ours":
            assert line.accuracy is not None
            assert (line.accuracy.ndcg, line.accuracy.hit_rate, line.accuracy.average_precision) == (1, 1, 1)
            assert line.accuracy.ndcg_95 == pytest.approx((1, 1))


def test_ratios_are_to_the_best_baseline_of_each_task(judged: Evaluation) -> None:
    for task, best, ratio, ends in (
        ("new", judged.best_new, judged.ratio_new, judged.ratio_new_95),
        ("all", judged.best_all, judged.ratio_all, judged.ratio_all_95),
    ):
        values = {line.model: line.accuracy.ndcg for line in judged.table if line.task == task and line.accuracy}
        del values["ours"]
        assert values[best] == max(values.values())
        assert ratio == pytest.approx(1 / values[best])
        assert ends is not None
        assert ends[0] < ratio < ends[1]


def test_users_are_judged_by_what_they_know_too_and_nobody_is_left_out(shop: History, judged: Evaluation) -> None:
    for task, best, ratio in (("new", judged.best_new, judged.ratio_new), ("all", judged.best_all, judged.ratio_all)):
        bands = [band for band in judged.bands if band.task == task]
        regulars = [band for band in bands if band.items not in ("0", "1–4")]
        assert sum(band.users for band in regulars) == sum(getattr(at, f"users_{task}") for at in judged.origins)
        assert {band.ndcg for band in bands} == {1.0}
        assert all(band.ratio_95 and band.ratio and band.ratio_95[0] <= band.ratio for band in bands)
        assert ratio is not None
        assert all(band.ratio is not None and band.ratio <= ratio for band in regulars if band.best != best)


def test_a_band_by_hand() -> None:
    """Three users know five items, one knows twenty, one nothing. Only the twenty's list has what is bought next."""
    rows = [*habits(4), *[(3, item, -9.0) for item in range(5, 20)], *[(user, 20, 1.0) for user in (0, 1, 2, 3, 5)]]
    rows += [(4, item, -30.0) for item in range(21)]
    moment = make_origin(past(rows, 21), T, min_buyers=1, min_items=0)
    assert moment[0].known.tolist() == [5, 5, 5, 20, 0]
    nothing = np.full((1, 5, 10), -1)
    ours, best, other = nothing.copy(), nothing.copy(), nothing.copy()
    ours[0, 3, 0] = best[0, 0, 0] = other[0, 4, 0] = 20
    best[0, 3, :2] = 1, 20
    named = {"ours": ours, "best": best, "other": other}
    rows_of = {name: Lists("new", name, "", [lists], [[0, 1, 2, 3]]) for name, lists in named.items()}
    none, light, heavy = judge_bands(
        rows_of["ours"], [rows_of["best"], rows_of["other"]], [moment], np.random.default_rng(0)
    )
    assert (none.items, none.users, none.ndcg, none.best, none.ndcg_best) == ("0", 1, 0.0, "other", 1.0)
    assert (light.items, light.users, light.ndcg, light.ratio) == ("5–19", 3, 0.0, 0.0)
    assert light.ndcg_best == pytest.approx(1 / 3)
    assert (heavy.items, heavy.users, heavy.ndcg, heavy.best) == ("20–99", 1, 1.0, "best")
    assert heavy.ratio == pytest.approx(np.log2(3))
    assert heavy.ratio_95 == pytest.approx((np.log2(3), np.log2(3)))


def test_figures_of_several_fits_are_their_means(shop: History) -> None:
    class Twice:
        """Popularity, and nothing at all."""

        name = "ours"

        def rank(self, origin: Origin, task: Task, k: int) -> NDArray[np.int64]:
            lists = top_k(popularity(origin), origin, task, k)
            return np.stack([lists, np.full_like(lists, -1)])

    result = evaluate(shop, "drawn", ORIGINS, {"": Twice()})
    assert ndcg(result, "all", "ours") == pytest.approx(ndcg(result, "all", "popularity") / 2)


def test_variants_stand_in_the_table_and_ratios_speak_of_the_first(shop: History, judged: Evaluation) -> None:
    worse = Scored("ours", popularity)
    result = evaluate(shop, "drawn", ORIGINS, {"": Oracle(), "strength 1": worse})
    assert (result.ratio_new, result.ratio_all) == (judged.ratio_new, judged.ratio_all)
    assert [line.setting for line in result.table if line.model == "ours"] == ["", "strength 1"] * 2
    for variant in result.variants:
        assert variant.ratio == pytest.approx(ndcg(result, variant.task, "popularity"), rel=1e-6), "an oracle has 1"
        assert variant.ratio_95[0] < variant.ratio < variant.ratio_95[1]
    assert not judged.variants


def test_the_same_figures_are_drawn_as_the_same_files(judged: Evaluation, tmp_path: Path) -> None:
    once = plot(judged, tmp_path / "once")
    again = plot(judged, tmp_path / "again")
    assert [path.name for path in once] == ["frontier.svg", "bands.svg"]
    for path, other in zip(once, again, strict=True):
        assert path.read_bytes() == other.read_bytes()
        assert "</svg>" in path.read_text()


def test_own_frequency_is_not_asked_for_what_is_new(judged: Evaluation) -> None:
    asked = {(line.task, line.model) for line in judged.table}
    assert asked == {(task, family.name) for family in FAMILIES for task in family.tasks} | {
        (task, "ours") for task in TASKS
    }


def test_the_same_lists_as_the_best_baseline_are_exactly_as_good(shop: History, judged: Evaluation) -> None:
    penalty = next(line.setting for line in judged.table if (line.task, line.model) == ("new", "EASE"))
    same = Scored("ours", lambda origin: ease(origin, float(penalty.removeprefix("λ "))))
    result = evaluate(shop, "drawn", ORIGINS, {"": same})
    assert ndcg(result, "new", "ours") == ndcg(result, "new", "EASE")
    if result.best_new == "EASE":
        assert result.ratio_new_95 == (1, 1)
    assert result.overlap_ratio == pytest.approx(1, abs=0.2)  # of task all the penalty may be another


def test_figures_are_means_over_users_then_over_moments(shop: History, judged: Evaluation) -> None:
    from recsys.metrics import ndcg_at_k

    means = []
    for at_s in ORIGINS:
        origin, truth = make_origin(shop, at_s)
        lists = top_k(popularity(origin), origin, "new", 10).tolist()
        means.append(np.mean([ndcg_at_k(lists[place], truth.new[place], 10) for place in truth.places("new")]))
    assert ndcg(judged, "new", "popularity") == pytest.approx(np.mean(means))


def test_one_list_for_everybody_overlaps_fully_and_covers_ten_items(judged: Evaluation) -> None:
    line = next(line for line in judged.table if (line.task, line.model) == ("all", "popularity"))
    assert line.variety.overlap == pytest.approx(1)
    assert line.variety.coverage == pytest.approx(np.mean([10 / asked.items for asked in judged.origins]))
    assert line.variety.text_distance == 1  # the vectors given are orthogonal
    assert line.variety.text_minimum == 1


def test_text_distances_need_vectors_and_ratios_need_ours(shop: History) -> None:
    result = evaluate(shop, "drawn", ORIGINS)
    assert {line.variety.text_distance for line in result.table} == {None}
    assert (result.ratio_new, result.ratio_all, result.overlap_ratio) == (None, None, None)
    assert (result.ratio_new_95, result.ratio_all_95) == (None, None)


def test_settings_are_chosen_at_a_moment_whose_window_ends_before_the_first(shop: History, judged: Evaluation) -> None:
    assert judged.tuned_at == make_origin(shop, T - WINDOW_S)[0].day
    early = evaluate(shop, "drawn", [T - 95 * DAY_S])
    assert early.tuned_at is None
    first = {(family.name, next(iter(family.settings))) for family in FAMILIES}
    assert {(line.model, line.setting) for line in early.table if line.accuracy} == first


def test_the_future_does_not_choose_the_settings(shop: History) -> None:
    """Without what happened after the first moment's window, the same settings and the same figures come out."""
    short = shop.before(T + WINDOW_S)
    whole, cut = (evaluate(history, "drawn", [T]) for history in (shop, short))
    assert whole == cut


def test_the_same_seed_gives_the_same_object_and_another_only_other_intervals(shop: History) -> None:
    one, two, other = (evaluate(shop, "drawn", ORIGINS, seed=seed) for seed in (0, 0, 1))
    assert one == two
    assert one != other
    assert [line.accuracy.ndcg for line in one.table if line.accuracy] == [
        line.accuracy.ndcg for line in other.table if line.accuracy
    ]


def test_real_baskets_stand_beside_the_lists_where_they_are_long_enough() -> None:
    rows = [(user, item, -20.0) for user in range(4) for item in range(20)]
    rows += [(user, item, 1.0) for user in range(4) for item in range(user, user + 12)] + [(0, 20, -1.0), (1, 20, 2.0)]
    result = evaluate(past(rows, 21), "baskets", [T], min_buyers=1)
    line = next(line for line in result.table if line.model == BASKETS)
    assert line.task == "all"  # only one of them has anything new
    assert line.accuracy is None
    assert 0.2 < line.variety.overlap < 1
    assert line.variety.category_minimum == pytest.approx(1 / 3)  # ten items of four kinds: two share all but the last
    assert 1 / 3 < line.variety.category_low <= line.variety.category_distance <= line.variety.category_high < 1


@pytest.mark.parametrize("fault", ["shape", "twice", "outside", "bought"])
def test_a_recommender_that_breaks_the_rules_is_stopped(shop: History, fault: str) -> None:
    class Cheat:
        name = "ours"

        def rank(self, origin: Origin, task: Task, k: int) -> NDArray[np.int64]:
            scores = popularity(origin)
            lists = top_k(scores, origin, "all" if fault == "bought" else task, k)
            if fault == "shape":
                return lists[1:]
            if fault == "twice":
                lists[0, 1] = lists[0, 0]
            if fault == "outside":
                lists[0, 0] = 10_000
            return lists

    with pytest.raises(ValueError, match="ours at 2011-03-14"):
        evaluate(shop, "drawn", ORIGINS, {"": Cheat()})


def test_a_list_may_end_early(shop: History) -> None:
    class Short:
        name = "ours"

        def rank(self, origin: Origin, task: Task, k: int) -> NDArray[np.int64]:
            lists = top_k(popularity(origin), origin, task, k)
            lists[:, 3:] = -1
            lists[0] = -1
            return lists

    result = evaluate(shop, "drawn", ORIGINS, {"": Short()})
    assert 0 < ndcg(result, "all", "ours") < ndcg(result, "all", "popularity")


# --- the command ------------------------------------------------------------------------------------------------------


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
