"""What tuning a text tower brings: the base and the tuned tower, both whitened, on items that the tuning has not seen.

A tenth of the catalogue is cold: neither its texts nor its purchases are tuned on, nor anything from the moment on. Users
and ranking are those of models/text_worth.py: the mean of the last 20 items, NDCG@10 by cosine. Differences are paired.
Called by `slatecast bench tune-text`.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from models.export import export_tower
from models.history import only_items, read_history
from models.item_vectors import embed, hash_texts
from models.judging import Interval
from models.origins import default_origins, make_origin
from models.text_settings import TuneSettings
from models.text_tuned import Tuned
from models.text_tuning import tune
from models.text_worth import FOLDS, MEASURES, Ask, by_vectors, by_words, judge_side, pasts_of
from models.train_settings import Step
from models.whitening import fit_whitening
from recsys.catalogue import item_text
from recsys.lexical import Lexicon
from recsys.metrics import interval, resample_means


class Change(msgspec.Struct, frozen=True):
    """One measure: NDCG@10 of base, tuned and words, means over `users`; tuned less base with its paired 95 %."""

    users: int
    base: float
    tuned: float
    words: float
    gain: float
    gain_95: Interval


class Report(msgspec.Struct, frozen=True):
    """Before and after. cold: items the tuning has not seen, ranked among themselves; cold_new: not had before."""

    source: str
    at: str
    items: int
    hidden: int
    tuning: Tuned
    new: Change
    all: Change
    cold: Change
    cold_new: Change


def measure(
    source: str,
    home: Path,
    base: Path,
    settings: TuneSettings,
    at_s: int | None,
    min_buyers: int,
    seed: int,
    tell: Callable[[str], None],
    step: Step,
) -> Report:
    """Tune at a moment and judge after it. Raises as `make_origin`, `tune` and `export_tower`."""
    tell(f"reading {source}")
    history = read_history(source)
    origin, truth = make_origin(history, default_origins(history)[-1] if at_s is None else at_s, min_buyers)
    texts = [item_text(history.items[row]) for row in origin.rows.tolist()]
    folds = np.random.default_rng(seed).permutation(len(texts)) % FOLDS
    folds[folds > 0] = -1
    shown = np.zeros(len(history.items), bool)
    shown[origin.rows[folds < 0]] = True
    with tempfile.TemporaryDirectory(prefix="tuned-", dir=home) as scratch:
        out = Path(scratch) / "tuned"
        tuned = tune(base, out, only_items(history.before(origin.at_s), shown), settings, step)
        asks: dict[str, Ask] = {}
        for name, folder, cache in (("base", base, home), ("tuned", out, Path(scratch))):
            tell(f"embedding {len(texts)} texts, {name}")
            raw = embed(export_tower(folder, cache / "towers"), texts, hash_texts(texts))
            asks[name] = by_vectors(fit_whitening(raw, raw.shape[1]).apply(raw))
    asks["words"] = by_words(Lexicon(history.items[row].title for row in origin.rows.tolist()))
    tell("ranking")
    pasts, rng = pasts_of(origin), np.random.default_rng(seed)
    figures = [judge_side(ask, origin, truth, pasts, folds) for ask in asks.values()]
    changes = {}
    for measure in MEASURES:
        values = np.stack([each[measure] for each in figures], axis=1)
        values = values[np.isfinite(values).all(axis=1)]
        (was, now, words), drawn = values.mean(axis=0).tolist(), resample_means(values, rng)
        changes[measure] = Change(len(values), was, now, words, now - was, interval(drawn[:, 1] - drawn[:, 0]))
    return Report(source, origin.day, len(texts), int((folds == 0).sum()), tuned, **changes)
