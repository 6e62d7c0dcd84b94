"""Training lists from history: what a list could have offered at a past moment, and what the user then bought.

At weekly cuts, for users who come again: candidates and features by the very code that serves (`gather`,
`filter_candidates`, `compute_features`), labels from the next session. A label at or after the end of the data that
may be used is dropped: it lies in the future that is judged. All candidates are kept, so no correction for sampled
negatives is needed (forgetting it costs half of the accuracy on new items: docs/decisions.md).
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.history import History
from models.sequence_tower import pad_trails
from models.world import World
from recsys.candidates import Source, gather
from recsys.context import see
from recsys.features import NAMES, compute_features
from recsys.filters import filter_candidates
from recsys.fusion import cut
from recsys.policy import Policy
from recsys.profiles import PURCHASE
from recsys.scoring import Ask, trail_of
from recsys.signals import DAY_S

WEEK_S = 7 * DAY_S
LABEL_WINDOW_S = 28 * DAY_S  # a user who stays away longer says nothing about this moment
# What is trained on is not what policy forbids to show: everything the sources find.
OPEN = Policy(cooldown_h=0, fatigue_shown=0)


class Lists(msgspec.Struct, frozen=True):
    """Training lists, stacked. rows: (N,) int64, the candidates; features: (N, F) float32; bought: (N,) bool;
    seen: (N,) bool, bought before the cut; ends: (L,) int64, where each list ends; trails: see `pad_trails`, a row a list.
    """

    rows: NDArray[np.int64]
    features: NDArray[np.float32]
    bought: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    ends: NDArray[np.int64]
    trails: dict[str, NDArray[Any]]


def next_sessions(history: History, at_s: int, until_s: int) -> dict[int, NDArray[np.int64]]:
    """Per user, the distinct items of the first session seen at or after `at_s` within the label window."""
    begin, end = np.searchsorted(history.ts_s, [at_s, min(until_s, at_s + LABEL_WINDOW_S)])
    rows = np.flatnonzero(history.action[begin:end] == PURCHASE) + begin
    found: dict[int, NDArray[np.int64]] = {}
    if not len(rows):
        return found
    users, sessions, items = history.user[rows], history.session[rows], history.item[rows]
    first, where = np.unique(users, return_index=True)
    session_of = dict(zip(first.tolist(), sessions[where].tolist(), strict=True))
    same = sessions == np.array([session_of[u] for u in users.tolist()], sessions.dtype)
    order = np.argsort(users[same], kind="stable")
    grouped, starts = np.unique(users[same][order], return_index=True)
    for user, chunk in zip(grouped.tolist(), np.split(items[same][order], starts[1:]), strict=True):
        found[user] = np.unique(chunk).astype(np.int64)
    return found


def ask_of(world: World, user: int, sources: Sequence[Source], policy: Policy) -> Ask:
    """One user's candidates, their features and the user's trail at this moment."""
    context = see(world.request(user), world.shop)
    found = cut(filter_candidates(context, gather(context, sources, policy.per_source), OPEN).candidates, policy)
    return Ask(found.rows, compute_features(context, found), trail_of(context))


def make_lists(
    world: World,
    cut_s: int,
    until_s: int,
    sources: Sequence[Source],
    policy: Policy,
    per_cut: int,
    rng: np.random.Generator,
) -> Lists:
    """Lists of one moment, to which the world is advanced; labels before `until_s`.

    At most `per_cut` users, drawn by rng. About 1.5 ms a list.
    """
    world.advance(cut_s)
    labels = next_sessions(world.history, cut_s, until_s)
    users = np.array(sorted(labels), np.int64)  # who comes for the first time too: a list is made for them as well
    asks, bought = [], []
    for user in rng.permutation(users)[:per_cut].tolist():
        ask = ask_of(world, user, sources, policy)
        hit = np.isin(ask.rows, labels[user])
        if hit.any():  # a list without a purchase says nothing about their order
            asks.append(ask)
            bought.append(hit)
    if not asks:
        return EMPTY
    features = np.concatenate([ask.features for ask in asks])
    return Lists(
        np.concatenate([ask.rows for ask in asks]),
        features,
        np.concatenate(bought),
        features[:, OWN_SEEN] > 0,
        np.cumsum([len(ask.rows) for ask in asks]),
        pad_trails([ask.trail for ask in asks]),
    )


def join(parts: Sequence[Lists]) -> Lists:
    """All of them, one after the other."""
    before = np.cumsum([0, *(part.ends[-1] for part in parts)])[:-1]
    return Lists(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.bought for part in parts]),
        np.concatenate([part.seen for part in parts]),
        np.concatenate([part.ends + start for part, start in zip(parts, before, strict=True)]),
        {name: np.concatenate([part.trails[name] for part in parts]) for name in EMPTY.trails},
    )


def measure(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and spread of each column, (F,) each, to scale it by; a column that never varies gets a spread of SILENT.

    History often has no clicks, searches or showings. Nothing was learned of such a column, so when it moves live it must
    not meet the weights that the network happened to begin with.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0)
    return mean.astype(np.float32), np.where(spread > 1e-6, spread, SILENT).astype(np.float32)


SILENT = 1e6  # features are logarithms and shares: divided by it nothing is left of them
OWN_SEEN = NAMES.index("own_seen")
EMPTY = Lists(
    np.empty(0, np.int64),
    np.empty((0, len(NAMES)), np.float32),
    np.empty(0, np.bool_),
    np.empty(0, np.bool_),
    np.empty(0, np.int64),
    pad_trails([]),
)
