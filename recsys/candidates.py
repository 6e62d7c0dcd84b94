"""Where candidates come from: the sources, each a few lines behind one Protocol, and how they are gathered.

A source answers with rows and scores, best first, ties by row, and nothing when it has nothing to say. What is not to be
had takes no place of what is. Scores of different sources are not comparable: fusion uses ranks, the scorer uses them as
features.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.context import Context, bought_long_ago, own_counts
from recsys.policy import Policy
from recsys.signal_table import neighbour_scores
from recsys.signals import DAY_S

ABSENT = 10_000  # the rank of a candidate that a source does not offer


class Found(msgspec.Struct, frozen=True):
    """A source's answer, best first. rows: (n,) int64 distinct; scores: (n,) float64, higher is better."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]


class Source(Protocol):
    """One way to find candidates."""

    name: str

    def find(self, context: Context, limit: int) -> Found:
        """At most `limit` rows for this request."""
        ...


class Candidates(msgspec.Struct, frozen=True):
    """The union of the sources' answers, by row.

    rows: (C,) int64 ascending;  ranks: (S, C) int64, 0 is a source's best, ABSENT where it is silent
    scores: (S, C) float64, 0 where silent;  names: the S sources
    """

    rows: NDArray[np.int64]
    ranks: NDArray[np.int64]
    scores: NDArray[np.float64]
    names: tuple[str, ...]

    def keep(self, mask: NDArray[np.bool_]) -> "Candidates":
        """Only some candidates."""
        return Candidates(self.rows[mask], self.ranks[:, mask], self.scores[:, mask], self.names)


def best(rows: NDArray[np.int64], scores: NDArray[np.float64], limit: int, available: NDArray[np.bool_]) -> Found:
    """The `limit` best of unordered scores above zero, ties by row, among what can be had: (N or more,) by row.

    >>> best(np.array([3, 1, 2]), np.array([.5, .5, .9]), 2, np.ones(4, np.bool_)).rows.tolist()
    [2, 1]
    """
    scores = scores * available[rows]  # else what is sold out takes the places of what answers as well
    order = np.lexsort((rows, -scores))[:limit]
    order = order[scores[order] > 0]
    return Found(rows[order], scores[order])


def best_of_all(scores: NDArray[Any], limit: int, available: NDArray[np.bool_]) -> Found:
    """The same of scores of the whole catalogue, (N,). O(N).

    >>> best_of_all(np.array([0, .5, .9, .5]), 2, np.ones(4, np.bool_)).rows.tolist()
    [2, 1]
    """
    rows = np.flatnonzero((scores > 0) & available[: len(scores)])
    if len(rows) > limit:
        least = np.partition(scores[rows], len(rows) - limit)[len(rows) - limit]
        rows = rows[scores[rows] >= least]  # whoever ties with the last one is ordered by row
    return best(rows, scores[rows].astype(np.float64), limit, available)


class CoVisitation:
    """What others had in the same basket or session as the user's recent items. Live."""

    name = "co_visitation"

    def find(self, context: Context, limit: int) -> Found:
        """Neighbours of the 20 recent items, the newest counting most."""
        found = neighbour_scores(context.shop.signals, context.recent, context.emphasis)
        return best(*found, limit, context.shop.catalogue.available)


class BuyAgain:
    """What the user buys again and again: own frequency, half-life 60 days (the bar for repeats, notes on quality)."""

    name = "buy_again"

    def find(self, context: Context, limit: int) -> Found:
        """Own decayed counts."""
        return best(*own_counts(context), limit, context.shop.catalogue.available)


class Learned:
    """What an item model says follows from all that the user has; with `unseen`, of what was never bought only."""

    def __init__(self, model: str, *, unseen: bool = False) -> None:
        self.name = f"{model}_unseen" if unseen else model
        self._model, self._unseen = model, unseen

    def find(self, context: Context, limit: int) -> Found:
        """The highest scores; nothing without a model."""
        scores = context.learned.get(self._model)
        if scores is None:
            return _NOTHING
        if self._unseen:
            scores = scores.copy()
            scores[context.bought.rows] = 0
            if context.request.profile.owned:  # few have it, and to ask it of thousands of items takes .1 ms
                rows = np.flatnonzero(scores > 0)
                scores[rows[bought_long_ago(context, rows)]] = 0
        return best_of_all(scores, limit, context.shop.catalogue.available)


class Trending:
    """What many distinct users touched lately, half-life 7 days."""

    name = "trending"

    def find(self, context: Context, limit: int) -> Found:
        """The crowd's interest, the same for everybody."""
        signals, now_s = context.shop.signals, context.request.now_s
        rows = signals.trending(now_s, limit)
        return best(rows, signals.decayed("short", rows, now_s), limit, context.shop.catalogue.available)


class SimilarText:
    """What reads like the user's recent items. `index` answers (vectors (Q, D), limit) -> (rows, cosines)."""

    name = "similar_text"

    def __init__(self, index: "VectorIndex | None" = None) -> None:
        self._index = index or BruteForce()

    def find(self, context: Context, limit: int) -> Found:
        """Nearest to the weighted mean of the recent items' vectors."""
        mean = taste_vector(context)
        return self._index.nearest(context, mean, limit) if mean is not None else _NOTHING


class SearchIntent:
    """What answers the newest search: nearest to the query's vector."""

    name = "search_intent"

    def __init__(self, index: "VectorIndex | None" = None) -> None:
        self._index = index or BruteForce()

    def find(self, context: Context, limit: int) -> Found:
        """Nothing when this moment has no search."""
        vector = context.request.query_vector
        return self._index.nearest(context, vector, limit) if vector is not None else _NOTHING


class SearchWords:
    """What has the words of the newest search: a model number, a brand, what a vector smooths over."""

    name = "search_words"

    def find(self, context: Context, limit: int) -> Found:
        """By cosine of title and search; nothing when this moment has no search."""
        catalogue, query = context.shop.catalogue, context.request.query
        words = catalogue.words
        return Found(*words.search(words.query(query), limit, catalogue.available)) if query else _NOTHING


class NewItems:
    """What came into the shop lately, in the categories of the user first: an item without a past has no neighbours."""

    name = "new_items"

    def __init__(self, new_days: float = 14.0) -> None:
        self._new_s = new_days * DAY_S

    def find(self, context: Context, limit: int) -> Found:
        """Newest first, doubled where the user knows the category."""
        catalogue = context.shop.catalogue
        n = len(catalogue)
        with np.errstate(invalid="ignore"):
            age_s = np.maximum(context.request.now_s - catalogue.first_s[:n], 0)
            rows = np.flatnonzero(age_s < self._new_s)  # NaN (unknown) is not new
        scores = (1 - age_s[rows] / self._new_s) * np.where(_familiar(context, rows), 2.0, 1.0)
        return best(rows, scores, limit, catalogue.available)


class Browse:
    """What the shop has, while the crowd has said little: a young shop's lists are not empty."""

    name = "browse"

    def find(self, context: Context, limit: int) -> Found:
        """The user's categories first; nothing once there are enough trending items. O(N) until then."""
        catalogue = context.shop.catalogue
        if len(context.shop.signals.trending(context.request.now_s, limit)) >= limit:
            return _NOTHING
        rows = np.flatnonzero(catalogue.available[: len(catalogue)])
        rows = rows[np.argsort(~_familiar(context, rows), kind="stable")][:limit]
        return Found(rows, np.arange(len(rows), 0, -1) / max(len(rows), 1))


def _familiar(context: Context, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether an item is of a category (its second level) of the user's recent items; without one it is not."""
    codes = context.shop.catalogue.category[:, 1]
    familiar: NDArray[np.bool_] = (codes[rows] >= 0) & np.isin(codes[rows], codes[context.recent])
    return familiar


class VectorIndex(Protocol):
    """Nearest rows to a vector; an approximate library stands behind the same door for large catalogues."""

    def nearest(self, context: Context, vector: NDArray[np.float32], limit: int) -> Found:
        """At most `limit` rows by cosine, best first."""
        ...


class BruteForce:
    """One matrix product over the whole catalogue: exact; .4 ms for 5,000 rows of 384 on one core."""

    def nearest(self, context: Context, vector: NDArray[np.float32], limit: int) -> Found:
        """Exact cosines of unit vectors; rows without a vector score 0 and stay out."""
        catalogue = context.shop.catalogue
        return best_of_all(catalogue.vectors[: len(catalogue)] @ vector, limit, catalogue.available)


def taste_vector(context: Context) -> NDArray[np.float32] | None:
    """The unit mean of the recent items' vectors, newest first in weight: (D,); None without any."""
    if not len(context.recent):
        return None
    mean = context.emphasis.astype(np.float32) @ context.shop.catalogue.vectors[context.recent]
    norm = float(np.linalg.norm(mean))
    return (mean / norm).astype(np.float32) if norm > 0 else None


def default_sources(policy: Policy, index: "VectorIndex | None" = None) -> tuple[Source, ...]:
    """All sources, in the order in which ties between them are resolved."""
    return (
        BuyAgain(),
        CoVisitation(),
        Learned("ease"),
        Learned("ease", unseen=True),
        Learned("lately", unseen=True),
        Learned("again"),
        Learned("fresh", unseen=True),
        SearchIntent(index),
        SearchWords(),
        SimilarText(index),
        Trending(),
        NewItems(policy.new_days),
        Browse(),
    )


def follow_policy(sources: Sequence[Source], policy: Policy) -> tuple[Source, ...]:
    """The same sources under another policy; what they have indexed stays.

    >>> [source.name for source in follow_policy((BuyAgain(), NewItems(14.0)), Policy(new_days=7.0))]
    ['buy_again', 'new_items']
    """
    return tuple(NewItems(policy.new_days) if isinstance(source, NewItems) else source for source in sources)


def gather(context: Context, sources: Sequence[Source], limit: int) -> Candidates:
    """Ask every source and unite the answers. O(S limit log)."""
    answers = [source.find(context, limit) for source in sources]
    rows = np.unique(np.concatenate([answer.rows for answer in answers])) if answers else np.empty(0, np.int64)
    ranks = np.full((len(sources), len(rows)), ABSENT, np.int64)
    scores = np.zeros((len(sources), len(rows)))
    for at, answer in enumerate(answers):
        column = np.searchsorted(rows, answer.rows)
        ranks[at, column] = np.arange(len(answer.rows))
        scores[at, column] = answer.scores
    return Candidates(rows, ranks, scores, tuple(source.name for source in sources))


_NOTHING = Found(np.empty(0, np.int64), np.empty(0))
