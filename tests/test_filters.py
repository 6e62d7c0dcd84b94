"""What may not be shown, and why: not to be had, bought, shown too often in vain. Each reason counted once."""

import numpy as np
import pytest
from shop_helpers import T, bought, clicked, live, look, names, plain, remember, shown

from recsys.candidates import Candidates, default_sources
from recsys.context import Context, Request
from recsys.events import Event
from recsys.filters import filter_candidates
from recsys.pipeline import recommend
from recsys.policy import Policy
from recsys.profiles import KEEP_PURCHASES, Profile, apply
from recsys.scoring import Scored

HOUR = 1 / 24  # of a day
POLICY = Policy()


def everything(context: Context) -> Candidates:
    """All items, as one source would offer them."""
    rows = np.arange(len(context.shop.catalogue))
    return Candidates(rows, rows[None], np.ones((1, len(rows))), ("all",))


def kept(*events: Event, policy: Policy = POLICY, gone: tuple[str, ...] = ()) -> tuple[list[str], dict[str, int]]:
    """Which of i0 … i4 a user with these events may be shown, and the counts of the others."""
    shop, _ = live(plain(5))
    for item in gone:
        shop.catalogue.remove(item)
    context = look(shop, remember(*events))
    found = filter_candidates(context, everything(context), policy)
    return names(shop.catalogue, found.candidates.rows), found.dropped


def test_a_stranger_may_be_shown_everything_that_is_to_be_had() -> None:
    assert kept() == (["i0", "i1", "i2", "i3", "i4"], {"unavailable": 0, "bought": 0, "fatigued": 0})
    assert kept(gone=("i1", "i4")) == (["i0", "i2", "i3"], {"unavailable": 2, "bought": 0, "fatigued": 0})


@pytest.mark.parametrize(("hours", "dropped"), [(0, True), (3.99, True), (4.01, False), (-1, True)])
def test_a_bought_item_comes_back_after_the_cooldown(hours: float, dropped: bool) -> None:
    rows, counts = kept(bought("i2", hours * HOUR))
    assert ("i2" not in rows) is dropped
    assert counts["bought"] == dropped


def test_lists_of_new_items_leave_out_whatever_was_ever_bought() -> None:
    events = bought("i2", 400), bought("i3", 1), clicked("i4")
    assert kept(*events, policy=Policy(repeats="new"))[0] == ["i0", "i1", "i4"]
    assert kept(*events)[0] == ["i0", "i1", "i2", "i3", "i4"]


def test_lists_of_new_items_leave_out_what_was_bought_before_the_purchases_that_are_kept() -> None:
    many = [bought("elsewhere", 1 + n / 100) for n in range(KEEP_PURCHASES)]
    events = bought("i2", 400), *many
    assert kept(*events, policy=Policy(repeats="new"))[0] == ["i0", "i1", "i3", "i4"]
    assert kept(*events)[0] == ["i0", "i1", "i2", "i3", "i4"]
    assert "i2" in kept(*(shown(["i2"], days / 2) for days in range(5)), *events)[0]  # a habit does not tire


def test_an_item_shown_too_often_in_vain_is_left_out() -> None:
    lists = [shown(["i1", "i2"], n) for n in range(4)] + [shown(["i1"], 5)]
    five = Policy(fatigue_shown=5)
    assert kept(*lists, policy=five) == (["i0", "i2", "i3", "i4"], {"unavailable": 0, "bought": 0, "fatigued": 1})
    assert kept(*lists, policy=Policy(fatigue_shown=4))[0] == ["i0", "i3", "i4"]
    assert kept(*lists, policy=Policy(fatigue_shown=0))[0] == ["i0", "i1", "i2", "i3", "i4"]


def test_showings_of_more_than_a_week_ago_are_forgiven() -> None:
    assert "i1" in kept(*(shown(["i1"], days) for days in (0, 1, 7.01)))[0]


@pytest.mark.parametrize("answer", [clicked("i1", 2), bought("i1", 2), bought("i1", 100)])
def test_who_answers_a_showing_or_has_the_habit_is_shown_it_again(answer: Event) -> None:
    assert "i1" in kept(*(shown(["i1"], days) for days in range(5)), answer)[0]


def test_what_was_touched_long_before_the_showings_is_no_answer_to_them() -> None:
    assert "i1" not in kept(*(shown(["i1"], days) for days in range(5)), clicked("i1", 8))[0]


def test_an_item_that_several_reasons_would_drop_is_counted_under_the_first() -> None:
    lists = [shown(["i0", "i1", "i2"], n) for n in range(1, 6)]
    found = kept(*lists, bought("i0", HOUR), bought("i1", HOUR), gone=("i0",), policy=Policy(cooldown_h=4))
    assert found == (["i3", "i4"], {"unavailable": 1, "bought": 1, "fatigued": 1})


def test_ranks_and_scores_stay_with_their_items() -> None:
    shop, _ = live(plain(5))
    context = look(shop, remember(bought("i0"), bought("i3")))
    found = filter_candidates(context, everything(context), POLICY).candidates
    assert found.ranks.tolist() == [[1, 2, 4]]
    assert found.scores.shape == (1, 3)


def test_nothing_left_is_an_answer() -> None:
    assert kept(gone=("i0", "i1", "i2", "i3", "i4")) == ([], {"unavailable": 5, "bought": 0, "fatigued": 0})


def test_a_purchase_removes_the_item_from_later_slates() -> None:
    habits = [bought(f"i{n}", 20 + n, f"u{user}") for n in range(20, 0, -1) for user in range(5)]
    shop, profiles = live(plain(30), habits)
    after = apply(profiles["u0"], bought("i7"), b"bought")

    def slate(profile: Profile, hours: float) -> list[str]:
        request = Request("u0", profile, T + hours * 3600)
        policy = Policy(slate_size=20)
        draft = recommend([request], shop, default_sources(policy), lambda asks, vectors: Scored(None, "none"), policy)[
            0
        ]
        return [item.item for item in draft.items]

    assert "i7" in slate(profiles["u0"], 0)
    assert "i7" not in slate(after, 0)
    assert "i7" not in slate(after, 3.9)
    assert "i7" in slate(after, 4.1)
