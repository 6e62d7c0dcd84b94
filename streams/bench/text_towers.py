"""What the text side is worth by itself: towers raw and whitened, and the words of a text, for items known and cold.

How that is judged: models/text_worth.py. Called by `slatecast bench texts`. What a text adds to behaviour is for
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
from models.judging import Interval
from models.origins import default_origins, make_origin
from models.text_tower import TowerSettings, read_settings
from models.text_worth import FOLDS, MEASURES, Ask, by_vectors, by_words, judge_side, pasts_of
from models.whitening import fit_whitening
from recsys.catalogue import Item, item_text
from recsys.lexical import Lexicon
from recsys.metrics import interval, resample_means

TEXTS: Mapping[str, Callable[[Item], str]] = {"title": lambda item: item.title, "item": item_text}


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


def _sum(one: Ask, other: Ask) -> Ask:
    return lambda liked, ranked: one(liked, ranked) + other(liked, ranked)


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
