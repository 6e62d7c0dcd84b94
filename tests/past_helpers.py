"""Small pasts for the tests of baselines and evaluation, made by hand or drawn."""

import numpy as np

from models.history import History
from recsys.catalogue import Item
from recsys.profiles import PURCHASE

DAY_S = 86_400
T = 1_300_060_800  # midnight UTC


def past(rows: list[tuple[int, int, float]], items: int, action: int = PURCHASE) -> History:
    """(user, item, days from T) in any order; one user's purchases of the same moment are one session."""
    rows = sorted(rows, key=lambda row: row[2])
    user, item = (np.array([row[at] for row in rows], np.int32) for at in (0, 1))
    ts_s = np.array([T + round(row[2] * DAY_S) for row in rows], np.int64)
    session = np.unique(np.stack([user, ts_s]), axis=1, return_inverse=True)[1].astype(np.int32).ravel()
    names = [Item(item=f"i{n}", title=f"Thing {n}", category=f"shop > kind {n % 4} > {n % 12}") for n in range(items)]
    users = [f"u{n}" for n in range(int(user.max()) + 1)]
    unpriced = np.full(len(rows), np.nan)
    return History(user, item, ts_s, np.full(len(rows), action, np.uint8), session, unpriced, users, names)


def draw_past(seed: int, users: int = 60, items: int = 40, days: int = 120) -> History:
    """Users with habits: each returns every week or so and buys mostly of one kind, partly the same things again."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, int, float]] = []
    for user in range(users):
        kind = rng.integers(4)
        favourites = np.arange(kind, items, 4)
        for at in np.cumsum(rng.exponential(9, 40)):
            basket = {*rng.choice(favourites, 3).tolist(), int(rng.integers(items) ** 2 // items)}
            rows += [(user, item, float(at) - days) for item in basket]
    return past([row for row in rows if row[2] < 56], items)
