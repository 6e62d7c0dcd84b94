"""Training lists from history: what a list could have offered at a past moment, and what the user then bought.

At weekly cuts, for users who come again: candidates and features by the very code that serves (`gather`,
`filter_candidates`, `compute_features`), labels from the next session. A label at or after the end of the data that
may be used is dropped: it lies in the future that is judged. All candidates are kept, so no correction for sampled
negatives is needed (forgetting it costs half of the accuracy on new items: docs/decisions.md).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.history import History
from models.sequence_tower import pad_trails
from models.world import World
from recsys.candidates import Source, gather
from recsys.context import Request, see
from recsys.features import NAMES, compute_features
from recsys.filters import filter_candidates
from recsys.fusion import cut
from recsys.policy import Policy
from recsys.profiles import CART, CLICK, PURCHASE, VIEW
from recsys.profiles import EMPTY as EMPTY_PROFILE
from recsys.scoring import HEADS, Ask, trail_of
from recsys.signals import DAY_S

WEEK_S = 7 * DAY_S
LABEL_WINDOW_S = 28 * DAY_S  # a user who stays away longer says nothing about this moment
# What is trained on is not what policy forbids to show: everything the sources find.
OPEN = Policy(cooldown_h=0, fatigue_shown=0)


class Lists(msgspec.Struct, frozen=True):
    """Training lists, stacked. rows: (N,) int64, the candidates; features: (N, F) float32; bought, clicked: (N,) bool, in
    the next session; seen: (N,) bool, bought before the cut; ends: (L,) int64, where each list ends; trails: see
    `pad_trails`, a row a list; label_s: (L,) int64, when that session began (the later of both kinds).
    """

    rows: NDArray[np.int64]
    features: NDArray[np.float32]
    bought: NDArray[np.bool_]
    clicked: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    ends: NDArray[np.int64]
    trails: dict[str, NDArray[Any]]
    label_s: NDArray[np.int64]

    def before(self, at_s: int) -> "Lists":
        """Those whose next session began before a moment: users who stayed away meanwhile have the same one in lists of
        several cuts, so leaving out the newest cuts alone would not hide what is judged.
        """
        which = self.label_s < at_s
        lengths = np.diff(self.ends, prepend=0)
        of_rows = np.repeat(which, lengths)
        columns = {name: getattr(self, name)[of_rows] for name in ("rows", "features", "bought", "clicked", "seen")}
        trails = {name: of[which] for name, of in self.trails.items()}
        return Lists(**columns, ends=np.cumsum(lengths[which]), trails=trails, label_s=self.label_s[which])

    @property
    def heads(self) -> int:
        """How many can be learned: that of clicks only where there are some."""
        return len(HEADS) if self.clicked.any() else len(HEADS) - 1


class Session(msgspec.Struct, frozen=True):
    """What a user did next. items: (n,) int64 distinct rows."""

    items: NDArray[np.int64]
    begins_s: int


def next_sessions(
    history: History, at_s: int, until_s: int, actions: Sequence[int] = (PURCHASE,)
) -> dict[int, Session]:
    """Per user, the first session with such actions at or after `at_s` within the label window."""
    begin, end = np.searchsorted(history.ts_s, [at_s, min(until_s, at_s + LABEL_WINDOW_S)])
    rows = np.flatnonzero(np.isin(history.action[begin:end], actions)) + begin
    found: dict[int, Session] = {}
    if not len(rows):
        return found
    users, sessions, items = history.user[rows], history.session[rows], history.item[rows]
    first, where = np.unique(users, return_index=True)
    session_of = dict(zip(first.tolist(), sessions[where].tolist(), strict=True))
    begins_s = dict(zip(first.tolist(), history.ts_s[rows[where]].tolist(), strict=True))
    same = sessions == np.array([session_of[u] for u in users.tolist()], sessions.dtype)
    order = np.argsort(users[same], kind="stable")
    grouped, starts = np.unique(users[same][order], return_index=True)
    for user, chunk in zip(grouped.tolist(), np.split(items[same][order], starts[1:]), strict=True):
        found[user] = Session(np.unique(chunk).astype(np.int64), begins_s[user])
    return found


def ask_of(world: World, request: Request, sources: Sequence[Source], policy: Policy) -> Ask:
    """A request's candidates, their features and the user's trail at this moment."""
    context = see(request, world.shop)
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

    At most `per_cut` users who buy next, and as many who only look, drawn by rng: else the many who look would leave no
    room for those who buy. About 1.5 ms a list.
    """
    world.advance(cut_s)
    labels = _Labels(world, cut_s, until_s)
    buyers, lookers = sorted(labels.bought), sorted(labels.clicked.keys() - labels.bought.keys())
    # Who comes for the first time too: a list is made for them as well.
    users = map(int, [*rng.permutation(buyers)[:per_cut], *rng.permutation(lookers)[:per_cut]])
    return labels.put(((user, world.request(user)) for user in users), sources, policy)


def make_strangers(
    world: World,
    lists: Lists,
    until_s: int,
    sources: Sequence[Source],
    policy: Policy,
    rng: np.random.Generator,
) -> Lists:
    """Lists of this moment for nobody known, with labels of users who are: to learn from, never to judge by.

    Where nearly everybody has a past, too few come for the first time to learn from, and what scorers make of their lists
    is left to chance (docs/experiments.md). As many as are missing to make one list of STRANGERS a newcomer's; none in a
    shop to which many come.
    """
    newcomers = np.count_nonzero(lists.features[lists.ends - 1, USER_PURCHASES] == 0)
    missing = len(lists.ends) // STRANGERS - newcomers
    if missing <= 0:
        return EMPTY
    labels = _Labels(world, world.now_s, until_s)
    users = rng.permutation(sorted(labels.bought))[:missing]
    nobody = Request("", EMPTY_PROFILE, float(world.now_s))
    return labels.put(((user, nobody) for user in map(int, users)), sources, policy)


class _Labels:
    """What users bought next after a moment, and what they looked at next."""

    def __init__(self, world: World, at_s: int, until_s: int) -> None:
        self.world = world
        self.bought = next_sessions(world.history, at_s, until_s)
        self.clicked = next_sessions(world.history, at_s, until_s, TOUCHES)

    def put(self, asked: Iterable[tuple[int, Request]], sources: Sequence[Source], policy: Policy) -> Lists:
        """Candidates, features and trail of each request, with what that user did next."""
        asks, bought, clicked, label_s = [], [], [], []
        for user, request in asked:
            ask = ask_of(self.world, request, sources, policy)
            labels = [of.get(user, STAYED_AWAY) for of in (self.bought, self.clicked)]
            buys, looks = (np.isin(ask.rows, label.items) for label in labels)
            if buys.any() or looks.any():  # a list of which nothing was wanted says nothing about its order
                asks.append(ask)
                bought.append(buys)
                clicked.append(looks)
                label_s.append(max(label.begins_s for label in labels))
        if not asks:
            return EMPTY
        features = np.concatenate([ask.features for ask in asks])
        return Lists(
            np.concatenate([ask.rows for ask in asks]),
            features,
            np.concatenate(bought),
            np.concatenate(clicked),
            features[:, OWN_SEEN] > 0,
            np.cumsum([len(ask.rows) for ask in asks]),
            pad_trails([ask.trail for ask in asks]),
            np.array(label_s, np.int64),
        )


def join(parts: Sequence[Lists]) -> Lists:
    """All of them, one after the other."""
    before = np.cumsum([0, *(len(part.rows) for part in parts)])[:-1]
    return Lists(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.bought for part in parts]),
        np.concatenate([part.clicked for part in parts]),
        np.concatenate([part.seen for part in parts]),
        np.concatenate([part.ends + start for part, start in zip(parts, before, strict=True)]),
        {name: np.concatenate([part.trails[name] for part in parts]) for name in EMPTY.trails},
        np.concatenate([part.label_s for part in parts]),
    )


def measure(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and spread of each column, (F,) each, to scale it by; a column that never varies gets a spread of SILENT.

    History often has no clicks, searches or showings. Nothing was learned of such a column, so when it moves live it must
    not meet the weights that the network happened to begin with.
    """
    # Summed in float32 a column of one value drifts by .003 and more over 100,000 rows, and would seem to vary.
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = np.sqrt(np.square(features - mean).mean(axis=0, dtype=np.float64))
    return mean, np.where(spread > 1e-6, spread, SILENT).astype(np.float32)


SILENT = 1e6  # features are logarithms and shares: divided by it nothing is left of them
OWN_SEEN, USER_PURCHASES = NAMES.index("own_seen"), NAMES.index("user_purchases")
STRANGERS = 20  # a ninth of the lists changed nothing for who is known; a twentieth is enough to be no exception
TOUCHES = (CLICK, VIEW, CART)  # a view is what a click leads to
NOTHING = np.empty(0, np.int64)
STAYED_AWAY = Session(NOTHING, 0)
EMPTY = Lists(
    np.empty(0, np.int64),
    np.empty((0, len(NAMES)), np.float32),
    np.empty(0, np.bool_),
    np.empty(0, np.bool_),
    np.empty(0, np.bool_),
    np.empty(0, np.int64),
    pad_trails([]),
    np.empty(0, np.int64),
)
