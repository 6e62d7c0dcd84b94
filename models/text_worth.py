"""What vectors and words of texts are worth by themselves, at a moment in the past, for items known and cold.

A user is the mean of the last 20 distinct items' vectors; items are ranked by their cosine to it. No behaviour, no
labels, so that two ways to read a text differ by what they make of it and by nothing else. Cold: a tenth of the
catalogue at a time is taken out of everybody's past and ranked among itself; `cold_new` leaves out what its buyer had in
that past, which is nearer to a launch and harder. Called by compression.py, and by `slatecast bench texts|tune-text`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.judging import K
from models.origins import MIN_ITEMS, Origin, Truth, top_k
from recsys.context import RECENT
from recsys.lexical import Lexicon
from recsys.metrics import ndcg_at_k

FOLDS = 10  # of the catalogue; each item is cold once
MEASURES = ("new", "all", "cold", "cold_new")
Floats = NDArray[np.float32]
Columns = NDArray[np.int64]
Ask = Callable[[Columns, Columns], Floats]  # (columns a user likes, columns to rank) -> cosines


def by_vectors(vectors: Floats) -> Ask:
    """Cosines of unit vectors to the mean of those that a user likes."""

    def ask(liked: Columns, ranked: Columns) -> Floats:
        mean = vectors[liked].mean(axis=0)
        return np.asarray(vectors[ranked] @ (mean / max(float(np.linalg.norm(mean)), 1e-12)), np.float32)

    return ask


def by_words(lexicon: Lexicon) -> Ask:
    """Cosines of words to those of what a user likes."""
    return lambda liked, ranked: lexicon.cosines(lexicon.taste(liked, np.ones(len(liked))), ranked)


def judge_side(
    ask: Ask, origin: Origin, truth: Truth, pasts: Sequence[Columns], folds: Columns
) -> dict[str, NDArray[np.float64]]:
    """NDCG@10 of each asked user, (U,), by measure; NaN where there is nothing to find. A fold of -1 is never cold."""
    every = np.arange(len(origin.rows))
    scores = np.stack([ask(_newest(past), every) for past in pasts])
    found = {task: _ndcg(top_k(scores, origin, task, K), truth.of(task)) for task in ("new", "all")}
    cold = {"cold": truth.all, "cold_new": truth.new}
    by_fold = {name: np.full((len(pasts), FOLDS), np.nan) for name in cold}
    for fold in range(FOLDS):
        hidden = np.flatnonzero(folds == fold)
        rows = origin.rows[hidden]
        here = set(rows.tolist())
        for place, past in enumerate(pasts):
            known = past[folds[past] != fold]
            if truth.all[place] & here and len(set(known.tolist())) >= MIN_ITEMS:
                best = rows[np.argsort(-ask(_newest(known), hidden), kind="stable")[:K]].tolist()
                for name, wanted in cold.items():
                    if sought := wanted[place] & here:
                        by_fold[name][place, fold] = ndcg_at_k(best, sought, K)
    for name, each in by_fold.items():
        asked = np.isfinite(each).any(axis=1)
        found[name] = np.full(len(pasts), np.nan)
        found[name][asked] = np.nanmean(each[asked], axis=1)
    return found


def pasts_of(origin: Origin) -> list[Columns]:
    """The columns that each asked user bought, in order of time."""
    order = np.argsort(origin.user, kind="stable")
    ends = np.searchsorted(origin.user[order], [origin.users, origin.users + 1])
    return [origin.column[order[start:end]] for start, end in ends.T.tolist()]


def _newest(past: Columns) -> Columns:
    """The last distinct columns, RECENT at most."""
    return np.array(list(dict.fromkeys(past[::-1].tolist()))[:RECENT])


def _ndcg(lists: Columns, truth: Sequence[set[int]]) -> NDArray[np.float64]:
    pairs = zip(lists.tolist(), truth, strict=True)
    return np.array(
        [ndcg_at_k([row for row in rows if row >= 0], items, K) if items else np.nan for rows, items in pairs]
    )
