"""Our own lists in the protocol: they keep its rules at every moment, and know nothing of a later one."""

import msgspec
import numpy as np
import pytest
from past_helpers import DAY_S, T
from shop_helpers import unit_rows
from training_helpers import SMALL, drawn, one_thread, silent

from models.evaluate import evaluate
from models.history import History
from models.origins import make_origin
from models.ours import Ours, Scorers
from recsys.policy import Policy

__all__ = ["drawn", "one_thread"]  # the fixtures


def test_our_lists_keep_the_protocols_rules_at_every_origin(drawn: History) -> None:
    settings = msgspec.structs.replace(SMALL, warm_up_days=14, epochs=1)
    ours = Ours(Scorers(drawn, unit_rows(len(drawn.items)), Policy(), settings, silent, seeds=2), Policy())
    for at_s in (T, T + 14 * DAY_S):
        origin, truth = make_origin(drawn, at_s)
        of_seeds = ours.rank(origin, "all", 10)
        assert of_seeds.shape == (2, len(origin.users), 10)
        assert (of_seeds[0] != of_seeds[1]).any()
        every, (fresh, _) = of_seeds[0], ours.rank(origin, "new", 10)
        np.testing.assert_array_equal(ours.rank(origin, "new", 10)[0], fresh)
        for place, lists in enumerate(zip(every.tolist(), fresh.tolist(), strict=True)):
            for rows in lists:
                shown = [row for row in rows if row >= 0]
                assert shown == rows[: len(shown)]
                assert len(set(shown)) == len(shown)
                assert set(shown) <= set(origin.rows.tolist())
            assert not origin.seen[place, np.searchsorted(origin.rows, [row for row in lists[1] if row >= 0])].any()
        hits = [bool(set(rows) & hidden) for rows, hidden in zip(every.tolist(), truth.all, strict=True)]
        assert np.mean(hits) > 0.5


def test_variants_of_one_scorer_are_asked_moment_by_moment_so_none_knows_a_later_one(drawn: History) -> None:
    settings = msgspec.structs.replace(SMALL, warm_up_days=14, epochs=1)
    scorers = Scorers(drawn, unit_rows(len(drawn.items)), Policy(), settings, silent)
    twins = {name: Ours(scorers, Policy()) for name in ("", "the same")}
    result = evaluate(drawn, "drawn", [T, T + 14 * DAY_S], twins)
    found = [(line.task, line.accuracy, line.variety) for line in result.table if line.model == "slatecast"]
    assert found[0] == found[1]
    assert found[2] == found[3]
    with pytest.raises(ValueError, match="cannot go back"):
        scorers.at(T)
