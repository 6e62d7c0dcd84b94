"""A small shop for the tests of evaluation, its moments, and a figure by its name."""

import pytest
from past_helpers import DAY_S, T, draw_past

from models.evaluate import Evaluation
from models.history import History
from models.origins import Task

ORIGINS = [T, T + 14 * DAY_S]


@pytest.fixture(scope="module")
def shop() -> History:
    return draw_past(0, users=80, items=120)


def habits(users: int) -> list[tuple[int, int, float]]:
    """Everybody has bought items 0–4 once, 20 days ago."""
    return [(user, item, -20.0) for user in range(users) for item in range(5)]


def ndcg(result: Evaluation, task: Task, model: str) -> float:
    return next(
        line.accuracy.ndcg for line in result.table if (line.task, line.model) == (task, model) and line.accuracy
    )
