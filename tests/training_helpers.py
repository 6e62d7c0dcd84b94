"""Pasts, lists and settings for the tests of training: small, and quick to learn from."""

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from past_helpers import draw_past, past
from shop_helpers import unit_rows

from models.examples import Lists, make_lists
from models.history import COLUMNS, History
from models.sequence_tower import pad_trails
from models.train_settings import TrainSettings
from models.world import World
from recsys.candidates import default_sources
from recsys.policy import Policy
from recsys.scoring import Trail

SOURCES = default_sources(Policy())
# Small and quick: a habit as plain as that of `rounds` is seen in a few hundred lists.
SMALL = TrainSettings(cuts=5, batch=8, epochs=8, warm_up_days=42, tower_width=0)
NOTHING = Trail(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 2), np.float32))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On busy cores two threads wait for each other at every tiny step: 70 to 200 s instead of 28, measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def drawn() -> History:
    return draw_past(0)


def silent(what: str, done: int, of: int) -> None:
    """Progress that nobody watches."""


def rounds(users: int = 20, weeks: int = 18) -> History:
    """Everybody goes round six favourites, one a week: what comes next is what was not bought for longest."""
    rng = np.random.default_rng(0)
    favourites = [rng.permutation(30)[:6] for _ in range(users)]
    rows = [
        (user, int(favourites[user][week % 6]), 7.0 * (week - weeks) + 0.5 + user / 100)
        for week in range(weeks)
        for user in range(users)
    ]
    return past(rows, items=30)


def together(one: History, other: History) -> History:
    """Two pasts of the same items as one."""
    columns = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in COLUMNS}
    history = msgspec.structs.replace(one, **columns, user_ids=max(one.user_ids, other.user_ids, key=len))
    return history.take(np.argsort(history.ts_s, kind="stable"))


def make(history: History, cut_s: int, until_s: int, per_cut: int = 1000, seed: int = 0) -> Lists:
    rng = np.random.default_rng(seed)
    return make_lists(World(history, unit_rows(len(history.items))), cut_s, until_s, SOURCES, Policy(), per_cut, rng)


def listed(
    features: NDArray[np.float32], bought: NDArray[np.bool_], seen: NDArray[np.bool_], ends: NDArray[np.int64]
) -> Lists:
    """Lists of users who have no past."""
    rows, clicked = np.arange(len(features)), np.zeros(len(features), np.bool_)
    return Lists(rows, features, bought, clicked, seen, ends, pad_trails([NOTHING] * len(ends)), 0 * ends)
