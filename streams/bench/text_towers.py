"""What the text side is worth by itself: towers raw and whitened, and the words of a text, for items known and cold.

A user is the mean of the last 20 distinct items' vectors; items are ranked by their cosine to it. No behaviour, no
labels, nothing fitted but the whitening, so that two towers differ by what they make of a text and by nothing else. Cold:
a tenth of the catalogue at a time is taken out of everybody's past and ranked among itself; `cold_new` leaves out what
its buyer had in that past, which is nearer to a launch and harder.
Called by `slatecast bench texts`, and by tuned_texts.py for its judgement. What a text adds to behaviour is for
`slatecast evaluate` to say.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.export import export_tower
from models.history import read_history
from models.item_vectors import embed, hash_texts
from models.judging import Interval, K
from models.origins import MIN_ITEMS, Origin, Truth, default_origins, make_origin, top_k
from models.text_tower import TowerSettings, read_settings
from models.whitening import fit_whitening
from recsys.catalogue import Item, item_text
from recsys.context import RECENT
from recsys.lexical import Lexicon
from recsys.metrics import interval, ndcg_at_k, resample_means

FOLDS = 10  # of the catalogue; each item is cold once
MEASURES = ("new", "all", "cold", "cold_new")
TEXTS: Mapping[str, Callable[[Item], str]] = {"title": lambda item: item.title, "item": item_text}
Floats = NDArray[np.float32]
Columns = NDArray[np.int64]
Ask = Callable[[Columns, Columns], Floats]  # (columns a user likes, columns to rank) -> cosines


class Figure(msgspec.Struct, frozen=True):
    """NDCG@10, mean over users; over that of random order; less that of the words alone, the same users. 95 % each."""

    ndcg: float
    ndcg_95: Interval
    times_random: float
    times_random_95: Interval
    over_words: float
    over_words_95: Interval


class Line(msgspec.Struct, frozen=True):
    """One way to read texts."""

    side: str
    new: Figure
    all: Figure
    cold: Figure
    cold_new: Figure


class Report(msgspec.Struct, frozen=True):
    """The comparison. at: the moment; users: who was asked, by measure; towers: what each says of itself."""

    table: list[Line]
    at: str
    items: int
    users: dict[str, int]
    text: str
    dim: int
    seed: int
    min_buyers: int
    towers: dict[str, TowerSettings]


def measure(
    source: str,
    home: Path,
    towers: Mapping[str, Path],
    at_s: int | None,
    min_buyers: int,
    text: Literal["title", "item"],
    dim: int,
    seed: int,
    tell: Callable[[str], None],
) -> Report:
    """The comparison at one moment. towers: name -> folder, of weights or ready; at_s: None for the last; dim: whitened to.

    Raises as `make_origin` and `export_tower`. A tower's vectors are kept, so a second time takes seconds.
    """
    tell(f"reading {source}")
    history = read_history(source)
    origin, truth = make_origin(history, default_origins(history)[-1] if at_s is None else at_s, min_buyers)
    items = [origin.history.items[row] for row in origin.rows.tolist()]
    texts = [TEXTS[text](item) for item in items]
    rng = np.random.default_rng(seed)
    lexicon = Lexicon(item.title for item in items)  # a category's words say less than they drown
    asks: dict[str, Ask] = {"random": lambda liked, ranked: rng.random(len(ranked)).astype(np.float32)}
    asks["words"] = words = by_words(lexicon)
    about = {}
    for name, folder in towers.items():
        tell(f"embedding {len(texts)} texts with {name}")
        tower = export_tower(folder, home / "towers")
        raw = embed(tower, texts, hash_texts(texts))
        whitened = by_vectors(fit_whitening(raw, dim).apply(raw))
        asks |= {name: by_vectors(raw), f"{name}, whitened": whitened, f"{name}, with words": _sum(whitened, words)}
        about[name] = read_settings(tower)
    pasts, folds = pasts_of(origin), np.random.default_rng(seed).permutation(len(texts)) % FOLDS
    figures: list[dict[str, NDArray[np.float64]]] = []
    for name, ask in asks.items():
        tell(f"ranking by {name}")
        figures.append(judge_side(ask, origin, truth, pasts, folds))
    users = {name: int(np.isfinite(figures[0][name]).sum()) for name in MEASURES}
    table = _lines(list(asks), figures, rng)
    return Report(table, origin.day, len(texts), users, text, dim, seed, min_buyers, about)


def by_vectors(vectors: Floats) -> Ask:
    """Cosines of unit vectors to the mean of those that a user likes."""

    def ask(liked: Columns, ranked: Columns) -> Floats:
        mean = vectors[liked].mean(axis=0)
        return np.asarray(vectors[ranked] @ (mean / max(float(np.linalg.norm(mean)), 1e-12)), np.float32)

    return ask


def by_words(lexicon: Lexicon) -> Ask:
    """Cosines of words to those of what a user likes."""
    return lambda liked, ranked: lexicon.cosines(lexicon.taste(liked, np.ones(len(liked))), ranked)


def _sum(one: Ask, other: Ask) -> Ask:
    return lambda liked, ranked: one(liked, ranked) + other(liked, ranked)


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


def _lines(
    sides: Sequence[str], figures: Sequence[Mapping[str, NDArray[np.float64]]], rng: np.random.Generator
) -> list[Line]:
    """Means over users and their intervals; the same users for all sides in a draw."""
    chance, words = sides.index("random"), sides.index("words")
    found: dict[str, list[Figure]] = {}
    for measure in MEASURES:
        values = np.stack([each[measure] for each in figures], axis=1)
        values = values[np.isfinite(values).all(axis=1)]
        mean, drawn = values.mean(axis=0), resample_means(values, rng)
        found[measure] = [
            Figure(
                float(mean[at]),
                interval(drawn[:, at]),
                float(mean[at] / mean[chance]),
                interval(drawn[:, at] / drawn[:, chance]),
                float(mean[at] - mean[words]),
                interval(drawn[:, at] - drawn[:, words]),
            )
            for at in range(len(sides))
        ]
    return [
        Line(side, new, every, cold, cold_new)
        for side, new, every, cold, cold_new in zip(sides, *(found[name] for name in MEASURES), strict=True)
    ]
