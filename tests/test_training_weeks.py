"""Which weeks training learns from and which it is judged by, and how much history that takes."""

import msgspec
import numpy as np
import pytest
from past_helpers import DAY_S, T, past
from shop_helpers import unit_rows
from training_helpers import SMALL, one_thread, rounds, silent, together

from models.examples import USER_PURCHASES, WEEK_S
from models.training import Learner
from recsys.errors import Misuse
from recsys.profiles import VIEW

__all__ = ["one_thread"]  # the fixture


@pytest.mark.parametrize(("weeks", "warm_up_days"), [(1, 56), (9, 56), (4, 28), (24, 400)])
def test_too_little_history_is_said_with_what_would_do(weeks: int, warm_up_days: int) -> None:
    history = rounds(weeks=weeks)
    settings = msgspec.structs.replace(SMALL, warm_up_days=warm_up_days)
    learner = Learner(history, unit_rows(len(history.items)), settings, silent)
    with pytest.raises(Misuse, match="load more history, or lower warm_up_days"):
        learner.live_until(int(history.ts_s[-1]) + 1)


def test_a_history_no_longer_than_the_warm_up_is_too_little() -> None:
    history = past([(user, user % 9, user - 40.0) for user in range(40)], items=9)
    learner = Learner(history, unit_rows(len(history.items)), SMALL, silent)
    with pytest.raises(Misuse, match="40 days of history gave 0 weeks"):
        learner.live_until(T)


def test_lists_are_cut_weekly_after_the_warm_up_and_the_newest_are_kept() -> None:
    history, told = rounds(), []
    learner = Learner(history, unit_rows(len(history.items)), SMALL, lambda *step: told.append(step))
    end_s = int(history.ts_s[-1]) + 1
    learner.live_until(end_s - 5 * WEEK_S)
    assert learner.world.now_s == end_s - 5 * WEEK_S
    assert told[-1] == ("lists of past weeks", SMALL.cuts, SMALL.cuts)
    before = learner.newest
    learner.live_until(end_s)
    assert len(learner._weeks) == SMALL.cuts
    assert not any(week is before for week in learner._weeks)


def test_lists_made_for_nobody_known_are_learned_from_and_never_judged() -> None:
    history = rounds(users=40)
    learner = Learner(history, unit_rows(len(history.items)), SMALL, silent)
    learner.live_until(int(history.ts_s[-1]) + 1)
    unknown = [np.sum(lists.features[lists.ends - 1, USER_PURCHASES] == 0) for lists in learner.split(1)]
    assert unknown == [2 * (SMALL.cuts - 1), 0]


def test_a_budget_of_time_leaves_out_older_weeks_and_keeps_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    history, passed = rounds(), iter(range(0, 10**6, 10))
    monkeypatch.setattr("models.training.time.monotonic", lambda: float(next(passed)))  # each look costs ten seconds
    cuts = []
    for minutes in (0.0, 1.0):
        learner = Learner(history, unit_rows(30), msgspec.structs.replace(SMALL, minutes=minutes), silent)
        learner.live_until(int(history.ts_s[-1]) + 1)
        cuts.append([week.rows.tolist() for week in learner._weeks])
    assert len(cuts[1]) < len(cuts[0]) == SMALL.cuts
    assert cuts[1][-1] == cuts[0][-1]


def test_what_is_judged_labels_no_list_that_is_learned_from() -> None:
    """One who stays away for weeks has the same next session in the lists of all cuts since the last."""
    rows = [(user, item, float(day)) for user in range(8) for item in (0, 1, user) for day in range(-126, 0, 7)]
    away = [(8, item, float(day)) for item in (2, 3) for day in (-120, -90, -60, -30, -3)]
    history = past([*rows, *away], items=9)
    learner = Learner(history, unit_rows(9), SMALL, silent)
    learner.live_until(T)
    newest, older = learner.newest, np.concatenate([part.label_s for part in learner._weeks[:-1]])
    assert older.max() == newest.label_s.max() == T - 3 * DAY_S
    learned, judged = learner.split(1)
    assert judged is newest
    assert learned.label_s.max() < judged.label_s.min()
    assert len(learned.ends) == len(learned.trails["trail"]) == np.sum(older < judged.label_s.min())
    assert learned.ends[-1] == len(learned.rows) == len(learned.features) == len(learned.bought)
    learner._weeks[:-1] = [newest] * (learner.weeks - 1)
    with pytest.raises(Misuse, match="no user came back before the week that is held out"):
        learner.split(1)


def test_what_is_bought_in_the_week_that_is_judged_labels_no_older_list_though_its_user_looked_later() -> None:
    """One who buys before all others of that week, and looks last: neither the least nor the greatest time of a list is its
    week's beginning.
    """
    buys = [(user, item, day - 2.0) for user in range(8) for item in (0, 1, user) for day in range(-126, 7, 7)]
    late = [(8, item, float(day)) for item in (2, 3) for day in (-90, -60, -30, -5)]
    looks = [(8, 2, day) for day in (-13.5, -1.0)]
    history = together(past([*buys, *late], items=9), past(looks, items=9, action=VIEW))
    learner = Learner(history, unit_rows(9), SMALL, silent)
    learner.live_until(T)
    learned, judged = learner.split(1)
    assert judged.label_s.max() == T - DAY_S
    assert learned.label_s.max() < T - WEEK_S
