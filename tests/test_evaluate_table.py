"""The table of the protocol on a small shop: each figure, the ratios, the bands, and what a recommender must not do."""

from pathlib import Path

import numpy as np
import pytest
from evaluate_helpers import ORIGINS, habits, ndcg, shop
from numpy.typing import NDArray
from past_helpers import DAY_S, T, past

from models.baselines import FAMILIES, Scored, ease, popularity
from models.evaluate import Evaluation, evaluate
from models.history import History
from models.judging import BASKETS, Lists, judge_bands
from models.origins import TASKS, WINDOW_S, Origin, Task, make_origin, top_k
from models.plots import plot

__all__ = ["shop"]  # the fixture


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
def judged(shop: History) -> Evaluation:
    return evaluate(shop, "drawn", ORIGINS, {"": Oracle()}, vectors=np.eye(120, dtype=np.float32))


# --- figures ----------------------------------------------------------------------------------------------------------


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


def test_figures_of_several_fits_are_their_means(shop: History) -> None:
    class Twice:
        """Popularity, and nothing at all."""

        name = "ours"

        def rank(self, origin: Origin, task: Task, k: int) -> NDArray[np.int64]:
            lists = top_k(popularity(origin), origin, task, k)
            return np.stack([lists, np.full_like(lists, -1)])

    result = evaluate(shop, "drawn", ORIGINS, {"": Twice()})
    assert ndcg(result, "all", "ours") == pytest.approx(ndcg(result, "all", "popularity") / 2)


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


def test_variants_stand_in_the_table_and_ratios_speak_of_the_first(shop: History, judged: Evaluation) -> None:
    worse = Scored("ours", popularity)
    result = evaluate(shop, "drawn", ORIGINS, {"": Oracle(), "strength 1": worse})
    assert (result.ratio_new, result.ratio_all) == (judged.ratio_new, judged.ratio_all)
    assert [line.setting for line in result.table if line.model == "ours"] == ["", "strength 1"] * 2
    for variant in result.variants:
        assert variant.ratio == pytest.approx(ndcg(result, variant.task, "popularity"), rel=1e-6), "an oracle has 1"
        assert variant.ratio_95[0] < variant.ratio < variant.ratio_95[1]
    assert not judged.variants


def test_own_frequency_is_not_asked_for_what_is_new(judged: Evaluation) -> None:
    asked = {(line.task, line.model) for line in judged.table}
    assert asked == {(task, family.name) for family in FAMILIES for task in family.tasks} | {
        (task, "ours") for task in TASKS
    }


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


def test_the_same_figures_are_drawn_as_the_same_files(judged: Evaluation, tmp_path: Path) -> None:
    once = plot(judged, tmp_path / "once")
    again = plot(judged, tmp_path / "again")
    assert [path.name for path in once] == ["frontier.svg", "bands.svg"]
    for path, other in zip(once, again, strict=True):
        assert path.read_bytes() == other.read_bytes()
        assert "</svg>" in path.read_text()


# --- settings and seeds -----------------------------------------------------------------------------------------------


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


# --- rules ------------------------------------------------------------------------------------------------------------


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
