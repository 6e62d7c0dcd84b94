"""Moments in the past at which a recommender is asked, and what users then bought: the protocol's data, no figures.

At an origin T everything comes from events before T: the catalogue, who is asked, what is masked. What happened at T or
later is only in the `Truth`, which no recommender gets.
Called by `models/baselines.py` and `models/evaluate.py`, and by whatever is judged.
"""

from datetime import UTC, datetime
from typing import Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from models.history import History
from recsys.errors import Misuse

Task = Literal["new", "all"]
TASKS: tuple[Task, ...] = ("new", "all")
DAY_S = 86_400
WINDOW_S = 28 * DAY_S  # who comes back later than in four weeks says little about a list of today
MIN_ITEMS = 5  # distinct catalogue items a user must know: below that there is no taste to judge
MIN_BUYERS = 5  # an item nobody knows cannot be learned from purchases alone; a large shop sets more
ORIGINS = 3


class Origin(msgspec.Struct, frozen=True):
    """A moment, and what may be known at it.

    history: the whole one, for recommenders that replay it; only `history.before(at_s)` may be looked at.
    rows: (C,) int64, the catalogue as rows of history.items, ascending. users: (U,) int64, who is asked, ascending.
    user, column, ts_s: (P,) the catalogue's purchases before at_s in time order, column an index into rows.
    counts: (all users, C) float32 CSR, how often who bought what. seen: (U, C) bool, what the asked have bought.
    known: (U,) int64, how many distinct items that is.
    """

    history: History
    at_s: int
    rows: NDArray[np.int64]
    users: NDArray[np.int64]
    user: NDArray[np.int32]
    column: NDArray[np.int64]
    ts_s: NDArray[np.int64]
    counts: sparse.csr_matrix
    seen: NDArray[np.bool_]
    known: NDArray[np.int64]

    @property
    def day(self) -> str:
        """The moment for people, as in 2011-09-02."""
        return datetime.fromtimestamp(self.at_s, UTC).strftime("%Y-%m-%d")


class Truth(msgspec.Struct, frozen=True):
    """What the asked users bought next, as sets of rows of history.items, in the order of Origin.users.

    new: leaves out what the user had bought before; empty where nothing remains, and then the user does not count.
    """

    all: list[set[int]]
    new: list[set[int]]

    def of(self, task: Task) -> list[set[int]]:
        """The truth of one task."""
        return self.new if task == "new" else self.all

    def places(self, task: Task) -> list[int]:
        """The places of the users that can be judged: those with something to find."""
        return [place for place, items in enumerate(self.of(task)) if items]


class Recommender(Protocol):
    """What is judged. One instance is asked at each origin, for both tasks."""

    name: str

    def rank(self, origin: Origin, task: Task, k: int) -> NDArray[np.int64]:
        """(U, k) rows of history.items for origin.users, best first, from origin.rows only, no item twice.

        (S, U, k) of one that was fitted from several seeds: its figures are means over them.
        -1 pads a list that has nothing more to show. For the task new, nothing the user has bought.
        """
        ...


def make_origin(
    history: History, at_s: int, min_buyers: int = MIN_BUYERS, min_items: int = MIN_ITEMS
) -> tuple[Origin, Truth]:
    """The moment and its truth. Raises Misuse where nobody can be asked.

    min_items: distinct items of the catalogue that a user must know to be asked. Truth is the first session within four
    weeks that holds an item of the catalogue (for new: one the user had not bought): its distinct items of that kind.
    """
    bought = history.purchases()
    past = bought.before(at_s)
    n = len(history.items)
    pairs = np.unique(past.user.astype(np.int64) * n + past.item)
    rows = np.flatnonzero(np.bincount(pairs % n, minlength=n) >= min_buyers)
    column_of = np.full(n, -1)
    column_of[rows] = np.arange(len(rows))
    column = column_of[past.item]
    known = column >= 0
    shape = (len(history.user_ids), len(rows))
    counts = sparse.csr_matrix((np.ones(known.sum(), np.float32), (past.user[known], column[known])), shape)
    counts.sum_duplicates()

    window = bought.between(at_s, at_s + WINDOW_S)
    can_hit = (column_of[window.item] >= 0) & (np.diff(counts.indptr) >= min_items)[window.user]
    repeat = np.isin(window.user.astype(np.int64) * n + window.item, pairs)
    every, fresh = _first_session(window.take(can_hit)), _first_session(window.take(can_hit & ~repeat))
    if not fresh:
        raise nobody_to_ask(at_s, len(rows), min_buyers, min_items)
    users = np.array(sorted(every), np.int64)
    seen = counts[users].toarray() > 0
    origin = Origin(
        history,
        at_s,
        rows,
        users,
        past.user[known],
        column[known],
        past.ts_s[known],
        counts,
        seen,
        seen.sum(axis=1),
    )
    return origin, Truth([every[user] for user in users.tolist()], [fresh.get(user, set()) for user in users.tolist()])


def nobody_to_ask(at_s: int, items: int, min_buyers: int, min_items: int = MIN_ITEMS) -> Misuse:
    """What to say of a moment at which no user can be judged."""
    day = datetime.fromtimestamp(at_s, UTC).date()
    return Misuse(
        f"at {day} there is nobody to ask: no user knew {min_items} of the {items} items with {min_buyers} or "
        "more buyers and bought another in the 28 days after; choose an origin inside the data, or lower "
        "--min-buyers"
    )


def _first_session(window: History) -> dict[int, set[int]]:
    """Per user, the items of the first session there is."""
    session_of: dict[int, int] = {}
    found: dict[int, set[int]] = {}
    for user, session, item in zip(window.user.tolist(), window.session.tolist(), window.item.tolist(), strict=True):
        if session_of.setdefault(user, session) == session:
            found.setdefault(user, set()).add(item)
    return found


def default_origins(history: History) -> list[int]:
    """Three moments four weeks apart; the last one's window ends with the data. Midnight UTC, ascending."""
    last = (int(history.ts_s[-1]) + 1 - WINDOW_S) // DAY_S * DAY_S
    return [last - back * WINDOW_S for back in reversed(range(ORIGINS))]


def parse_origins(text: str) -> list[int]:
    """`2011-08-19,2011-09-02` as unix seconds, ascending. Raises Misuse.

    >>> parse_origins("2011-09-02,2011-08-19")
    [1313712000, 1314921600]
    """
    try:
        return sorted({_midnight_s(part) for part in text.split(",")})
    except ValueError:
        raise Misuse(f"--origins {text}: write dates as 2011-08-19,2011-09-02") from None


def parse_day(text: str, option: str) -> int:
    """`2011-08-19`, as an option says it, as unix seconds. Raises Misuse.

    >>> parse_day("2011-08-19", "--until")
    1313712000
    """
    try:
        return _midnight_s(text)
    except ValueError:
        raise Misuse(f"{option} {text}: write one date, as in 2011-08-19") from None


def _midnight_s(day: str) -> int:
    return int(datetime.strptime(day.strip(), "%Y-%m-%d").replace(tzinfo=UTC).timestamp())


def top_k(scores: NDArray[np.float32], origin: Origin, task: Task, k: int) -> NDArray[np.int64]:
    """The k best columns as rows of history.items; -inf is never shown, equal scores go by row.

    scores: (U, C), no NaN. For the task new what was bought is masked. O(U C).
    """
    if np.isnan(scores).any():
        raise Misuse("scores hold NaN, which would win every comparison")
    masked = np.where(origin.seen, -np.inf, scores) if task == "new" else scores
    k_here = min(k, masked.shape[1])
    # The k-th largest first, then only those at or above it in order: sorting all would cost ten times more.
    bar = -np.partition(-masked, k_here - 1, axis=1)[:, k_here - 1]
    lists = np.full((len(masked), k), -1, np.int64)
    for position, row in enumerate(masked):
        able = np.flatnonzero((row >= bar[position]) & (row > -np.inf))
        best = able[np.argsort(-row[able], kind="stable")][:k]
        lists[position, : len(best)] = origin.rows[best]
    return lists
