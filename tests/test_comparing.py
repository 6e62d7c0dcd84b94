"""Policies on one scorer: the demonstration of cures, and the policy that is found for what may be lost."""

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from past_helpers import DAY_S, T, draw_past
from shop_helpers import unit_rows

from models.comparing import EASE, TOP_K, Comparison, compare, ways
from models.history import History
from models.judging import Shop
from models.ours import Scorers
from models.plots import plot_cures, plot_tuned
from models.train_settings import TrainSettings
from models.tuning import SINGLE, Tuned, as_toml, grid, rate, sliders, tune, turn
from recsys.errors import Misuse
from recsys.policy import Cap, Pin, Policy
from streams.settings import load_settings

FAST = TrainSettings(epochs=1, cuts=3, per_cut=60)
BASE = Policy(slate_size=10)


@pytest.fixture(scope="module", autouse=True)
def small_batches() -> Iterator[None]:
    """Showings count from batch to batch: were all fifty users one, the price would drive them all to the same items."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.ours.BATCH", 2)
        yield


@pytest.fixture(scope="module")
def history() -> History:
    return draw_past(0, users=50, items=80)


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    return unit_rows(80)


@pytest.fixture(scope="module")
def scorers(history: History, vectors: NDArray[np.float32]) -> Callable[[], Scorers]:
    return lambda: Scorers(history, vectors, BASE, FAST, lambda what, done, of: None)


@pytest.fixture(scope="module")
def cured(history: History, vectors: NDArray[np.float32], scorers: Callable[[], Scorers]) -> Comparison:
    return compare(scorers(), ways(BASE), [T], "all", Shop(history, vectors), "drawn", 5, over_time=True)


@pytest.fixture(scope="module")
def tuned(history: History, scorers: Callable[[], Scorers]) -> Tuned:
    return tune(scorers(), BASE, T, [T + 28 * DAY_S], 0.1, Shop(history, None), "drawn", 5)


# --- the demonstration ------------------------------------------------------------------------------------------------


def test_each_cure_is_alone_in_its_row_and_top_k_has_none() -> None:
    default, of = Policy(), ways(Policy(exposure_penalty=2.0, caps=(Cap(attribute="brand"),)))
    off = {"diversity": "none", "exposure_penalty": 0, "coverage": "none", "remember": 0, "fatigue_shown": 0}
    for name, policy in of.items():
        turned = {knob for knob, value in off.items() if getattr(policy, knob) != value}
        assert policy.caps, "what is no cure is the same in all"
        assert len(turned) == {TOP_K: 0, "ours": 3, "DPP and memory": 2}.get(name, 1)
    assert {of[name].diversity for name in ("MMR", "DPP", "SSD")} == {"mmr", "dpp", "ssd"}
    assert of["exposure price"].exposure_penalty == 2.0
    assert ways(replace(default, exposure_penalty=0))["exposure price"].exposure_penalty > 0


def test_every_way_stands_in_the_table_with_the_references_below(cured: Comparison) -> None:
    names = [row.name for row in cured.table]
    assert names[: len(ways(BASE)) + 1] == [*ways(BASE), EASE]
    first = cured.table[0]
    assert (first.ratio, first.ratio_95) == (1, (1, 1))
    assert cured.of(EASE).overlap_of_ease == pytest.approx(1)
    assert cured.users > 0


def test_the_price_cures_overlap_and_a_way_within_a_list_its_distance(cured: Comparison) -> None:
    assert cured.of("exposure price").variety.overlap < cured.of(TOP_K).variety.overlap
    assert (cured.of("MMR").variety.text_distance or 0) > (cured.of(TOP_K).variety.text_distance or 1)


def test_lists_of_six_days_before_are_compared(
    cured: Comparison, history: History, scorers: Callable[[], Scorers]
) -> None:
    for row in cured.table[: len(ways(BASE)) + 1]:
        assert row.variety.temporal_diversity is not None
        assert 0 < row.variety.temporal_diversity < 1
    at_once = compare(scorers(), {TOP_K: ways(BASE)[TOP_K]}, [T], "new", Shop(history, None), "drawn", 5)
    assert {row.variety.temporal_diversity for row in at_once.table} == {None}


def test_memory_of_what_was_shown_repels(cured: Comparison) -> None:
    changed = {row.name: row.variety.temporal_diversity or 0.0 for row in cured.table}
    assert changed["DPP and memory"] > changed["DPP"]


def test_what_was_shown_in_vain_makes_way_and_is_forgotten_after_the_comparison(
    scorers: Callable[[], Scorers], history: History
) -> None:
    own, few = scorers(), {name: ways(BASE)[name] for name in (TOP_K, "fatigue")}
    found = compare(own, few, [T], "new", Shop(history, None), "drawn", 5, over_time=True)
    top, tired = (found.of(name).variety.temporal_diversity for name in few)
    assert top is not None
    assert tired is not None
    assert tired > 2 * top
    assert own.learner.world.shown == {}


def test_the_cures_are_drawn_as_the_same_file(cured: Comparison, tmp_path: Path) -> None:
    once, again = plot_cures(cured, tmp_path / "once"), plot_cures(cured, tmp_path / "again")
    assert once.name == "diversity.svg"
    assert once.read_bytes() == again.read_bytes()


# --- the search -------------------------------------------------------------------------------------------------------


def test_the_choice_is_within_what_may_be_lost_and_gains_most_of_those(tuned: Tuned) -> None:
    chosen = next(one for one in tuned.tried if one.name == tuned.chosen)
    assert chosen.ratio >= 0.9
    assert chosen.gain == max(one.gain for one in tuned.tried if one.within) >= 0
    assert all(one.within == (one.ratio >= 0.9) for one in tuned.tried)
    assert len(tuned.tried) == len(grid(BASE))


def test_the_gain_by_hand(tuned: Tuned) -> None:
    alone, chosen = tuned.tuned.of(TOP_K), tuned.tuned.of(tuned.chosen)
    cap = tuned.tuned.table[-1].variety.category_distance if tuned.tuned.table[-1].name != EASE else np.inf
    near, far = (min(row.variety.category_distance, cap) for row in (alone, chosen))
    expected = np.log(alone.variety.overlap / chosen.variety.overlap) + np.log(far / near)
    assert max(one.gain for one in tuned.tried if one.within) == pytest.approx(expected)


def test_it_is_judged_later_than_it_was_chosen_beside_relevance_alone_and_what_was_there(tuned: Tuned) -> None:
    assert tuned.judged.days > tuned.tuned.days
    assert [row.name for row in tuned.judged.table[:3]] == [TOP_K, "as it was", "tuned"]
    assert tuned.judged.of("tuned").ratio_95 is not None


def test_nothing_lost_leaves_relevance_alone_or_what_costs_nothing(tuned: Tuned) -> None:
    tried = rate(tuned.tuned, grid(BASE), 0.0)
    assert [one.name for one in tried if one.within][0] == TOP_K
    assert all(one.ratio >= 1 for one in tried if one.within)


def test_where_relevance_finds_nothing_there_is_nothing_to_weigh(tuned: Tuned) -> None:
    blind = replace(tuned.tuned, table=[replace(row, ratio=None) for row in tuned.tuned.table])
    with pytest.raises(Misuse, match="found nothing"):
        rate(blind, grid(BASE), 0.02)


def test_sliders_turn_one_knob_each() -> None:
    for policy in sliders(Policy(strength=0.4)).values():
        turned = [policy.diversity != "none", policy.exposure_penalty > 0, policy.coverage != "none"]
        assert sum(turned) <= 1
    assert len(sliders(Policy())) == 1 + sum(bool(value) for values in SINGLE.values() for value in values)
    assert turn(Policy(diversity="ssd"), {"strength": 0.3}).diversity == "ssd"
    assert turn(Policy(diversity="none"), {"strength": 0.3}).diversity == Policy().diversity


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(strength=0.05, diversity="none", exposure_penalty=1e-5),
        Policy(caps=(Cap(attribute="brand", most=2),), pins=(Pin(0, 'a "quoted" item'),), price_bands=(1.0, 9.5)),
    ],
)
def test_a_policy_that_is_written_is_the_policy_that_is_read(policy: Policy, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(as_toml(policy, "two\nlines"))
    assert load_settings(file, {}, {}).policy == policy
    assert set(tomllib.loads(file.read_text())["policy"]) <= set(Policy.__struct_fields__)


def test_what_was_tried_is_drawn_and_travels_as_json(tuned: Tuned, tmp_path: Path) -> None:
    assert plot_tuned(tuned, tmp_path).read_text().endswith("</svg>\n")
    assert msgspec.json.decode(msgspec.json.encode(tuned), type=Tuned) == tuned


def test_a_policy_is_not_judged_by_purchases_that_chose_it(scorers: Callable[[], Scorers], history: History) -> None:
    with pytest.raises(Misuse, match="judged 27 days after the moment of tuning.*28 days or more apart"):
        tune(scorers(), BASE, T, [T + 27 * DAY_S], 0.1, Shop(history, None), "drawn", 5)


def test_moments_nearer_than_the_visits_before_them_are_said(scorers: Callable[[], Scorers], history: History) -> None:
    near = [T, T + 5 * DAY_S]
    with pytest.raises(Misuse, match="from 6 days before a moment on"):
        compare(scorers(), {TOP_K: BASE}, near, "all", Shop(history, None), "drawn", 5, over_time=True)
