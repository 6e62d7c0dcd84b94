"""A text tower made smaller and faster for serving, and a gate that says what it lost and whether it may ship.

    weights → whole layers out, whole heads out → taught by the weights → graph → eight bits → judged beside their tower
Each step is optional; each choice is made on the shop's own texts. The gate asks what a shop would feel: cold items found by
text alone, at a moment after everything the calibration has seen; how like the vectors are is said beside it, since it is
no limit worth having: whitening stretches what rounding adds (docs/training.md).
Called by `slatecast compress` and benchmarks/compression.py. What is taken out how: text_pruning.py, text_int8.py.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.export import MAX_TOKENS, make_tower, source_digest
from models.history import History
from models.item_vectors import embed, hash_texts
from models.judging import Interval
from models.origins import make_origin
from models.text_batches import by_length, padded
from models.text_export import load, pooled
from models.text_int8 import EXACT, quantise
from models.text_pruning import attentions, drop_heads, drop_layers
from models.text_settings import TuneSettings
from models.text_tower import GRAPH, Reading, TextReader, TextTower
from models.text_tuning import tune
from models.text_worth import FOLDS, by_vectors, judge_side, pasts_of
from models.train_settings import Step
from models.whitening import fit_whitening
from recsys.catalogue import item_text
from recsys.errors import Misuse
from recsys.metrics import interval, resample_means

CALIBRATED, TIMED = 256, 400  # texts: scales and importance no longer move beyond; ten seconds of MiniLM on a core
NEIGHBOURS = 10
STEPS_A_MINUTE = 40  # of 64 texts: what half of MiniLM does on a core that others use too
Floats = NDArray[np.float32]


class How(msgspec.Struct, frozen=True, kw_only=True):
    """What is taken out. layers: how many stay, None for all; heads: the share that goes; distil: minutes in which what is
    left learns to read the shop's texts as the whole did; int8: linear maps in eight bits, but for the share `exact` of them.
    """

    layers: int | None = None
    heads: float = 0.0
    distil: float = 0.0
    int8: bool = False
    exact: float = EXACT


class Limits(msgspec.Struct, frozen=True):
    """What may ship. lose: of the NDCG@10 of cold items, at most so much, as a share of the original's; sure: the same at
    the unlucky end of the 95 % interval, since a few hundred users do not show 2 %. faster: times, at least.
    """

    lose: float = 0.02
    sure: float = 0.10
    faster: float = 1.2


class Judged(msgspec.Struct, frozen=True):
    """What came of it, beside the original. cosine: mean of whitened vectors to the original's; neighbours: share of an
    item's ten nearest that are the same; cold, cold_before: NDCG@10; change: relative, with a paired 95 %; refused: why it
    may not ship, empty if it may.
    """

    mib: float
    mib_before: float
    faster: float
    cosine: float
    neighbours: float
    cold: float
    cold_before: float
    change: float
    change_95: Interval
    refused: str
    layers: list[int]
    heads: list[list[int]]


class Compressed(msgspec.Struct, frozen=True):
    """A compressed tower's folder, and which layers and heads are in it (empty: all)."""

    folder: Path
    layers: list[int]
    heads: list[list[int]]

    def remove(self) -> None:
        """Leave nothing of it."""
        shutil.rmtree(self.folder)


def make(
    weights: Path, reading: Reading, out: Path, history: History, at_s: int, min_buyers: int, how: How, step: Step
) -> Compressed:
    """Make tower folder `out`; what was pruned stands beside it as weights, in `out`/weights, for `tune-text` to heal.

    Calibrated on texts of the catalogue of a moment, taught by those of all that was sold by then. Raises Misuse for a
    How that takes nothing out, and as `export_tower`, `make_origin` and `tune`. Minutes: the texts are read again for each
    layer and head tried.
    """
    if not (how.int8 or how.heads or how.layers):
        raise Misuse("nothing to take out: name --int8, --layers or --heads")
    if how.distil and not (how.heads or how.layers):
        raise Misuse("nothing to distil into: --distil teaches what --layers or --heads leave; name one of them")
    origin, _ = make_origin(history, at_s, min_buyers)
    rows = np.sort(np.random.default_rng(0).permutation(origin.rows)[:CALIBRATED])
    texts = [item_text(history.items[row]) for row in rows.tolist()]
    layers, heads = list[int](), list[list[int]]()
    with tempfile.TemporaryDirectory(prefix="compress-") as scratch:
        pruned = Path(scratch) / "weights"
        if how.layers is not None or how.heads:
            layers, heads = _prune(weights, reading, pruned, texts, how, step)
            if how.distil:
                taught = Path(scratch) / "taught"
                tune(pruned, taught, history.before(at_s), distilling(weights, reading, how.distil), step)
                pruned = taught
            weights = pruned
        plain = Path(scratch) / "tower" if how.int8 else out
        step("making the graph", 0, 1)
        make_tower(weights, plain, source_digest(weights, reading), reading)
        if how.int8:
            quantise(plain, out, texts, how.exact)
        step("making the graph", 1, 1)
        if pruned.exists():
            shutil.move(pruned, out / "weights")
    return Compressed(out, layers, heads)


def distilling(teacher: Path, reading: Reading, minutes: float) -> TuneSettings:
    """How a pruned tower is taught. minutes: at most, of learning; the teacher reads all texts before, 15 s for 3,000 titles.

    Texts as they are: with a fifth of the words left out, the teacher reads anew each time, and after a minute unseen texts
    were at a cosine of .74 instead of .82. The rate ends at nothing, so steps have to be known: a machine quicker than
    STEPS_A_MINUTE is done before its minutes, a slower one is stopped by them.
    """
    return TuneSettings(
        loss="teacher",
        teacher=str(teacher),
        pooling=reading.pooling,
        prompt=reading.prompt,
        minutes=minutes,
        steps=max(1, round(STEPS_A_MINUTE * minutes)),
        learning_rate=3e-4,  # 2e-4 and 5e-4 came to the same within a minute
        word_drop=0.0,
        dropout=0.0,
    )


def _prune(
    weights: Path, reading: Reading, out: Path, texts: Sequence[str], how: How, step: Step
) -> tuple[list[int], list[list[int]]]:
    """The weights without some layers and heads, as a Hugging Face folder."""
    model, tokenizer = load(weights)
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    reader = TextReader(own, reading.prompt, MAX_TOKENS, str(weights))
    rows = [one.ids for one in reader.read(texts)]
    tower = pooled(model, reading.pooling)

    def read() -> Floats:
        vectors = np.zeros((len(rows), model.config.hidden_size), np.float32)
        with torch.no_grad():
            for call in by_length([len(row) for row in rows], 1024):
                chosen, device = [rows[at] for at in call], torch.device("cpu")
                mask = padded([[1] * len(row) for row in chosen], 0, device)
                vectors[call] = tower(padded(chosen, 0, device), mask).numpy()
        return vectors

    before = read()
    whitening = fit_whitening(before, before.shape[1])
    wanted = whitening.apply(before)

    def likeness() -> float:
        return float((whitening.apply(read()) * wanted).sum(axis=1).mean())

    layers = drop_layers(model, how.layers, likeness, step) if how.layers is not None else []
    heads = drop_heads(model, how.heads, likeness, step) if how.heads else [one.alive() for one in attentions(model)]
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return layers, heads


def judge(
    made: Compressed,
    original: Path,
    history: History,
    at_s: int,
    min_buyers: int,
    limits: Limits,
    step: Step,
    seed: int = 0,
) -> Judged:
    """A compressed tower beside the original one, on a moment's catalogue and what was bought after it.

    Both are whitened on that catalogue, each by its own. Raises as `make_origin`.
    """
    origin, truth = make_origin(history, at_s, min_buyers)
    texts = [item_text(history.items[row]) for row in origin.rows.tolist()]
    pasts, folds = pasts_of(origin), np.random.default_rng(seed).permutation(len(texts)) % FOLDS
    tell = partial(step, "embedding items")
    # Vectors of the original are kept, under its digest; a folder of any name may have been another tower yesterday.
    raws = embed(original, texts, hash_texts(texts), tell), TextTower(made.folder, threads=0).encode(texts, tell)
    whitened, cold = [], []
    for raw in raws:
        whitened.append(fit_whitening(raw, raw.shape[1]).apply(raw))
        cold.append(judge_side(by_vectors(whitened[-1]), origin, truth, pasts, folds)["cold"])
    values = np.stack(cold, axis=1)
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        raise Misuse(f"nobody bought a cold item after {origin.day}; load more history, or lower --min-buyers")
    before, after = values.mean(axis=0).tolist()
    drawn = resample_means(values, np.random.default_rng(seed))
    change = after / before - 1 if before else 0.0
    ends = interval(drawn[:, 1] / np.maximum(drawn[:, 0], 1e-12) - 1)
    faster = _time(original, made.folder, texts[:TIMED])
    size, size_before = ((folder / GRAPH).stat().st_size / 2**20 for folder in (made.folder, original))
    return Judged(
        mib=size,
        mib_before=size_before,
        faster=faster,
        cosine=_cosine(*whitened),
        neighbours=_neighbours(*whitened),
        cold=after,
        cold_before=before,
        change=change,
        change_95=ends,
        refused=refuse(change, ends, faster, limits),
        layers=made.layers,
        heads=made.heads,
    )


def refuse(change: float, change_95: Interval, faster: float, limits: Limits) -> str:
    """Why it may not ship; nothing if it may.

    >>> refuse(-0.01, (-0.03, 0.01), 2.0, Limits()), refuse(-0.05, (-0.08, -0.02), 2.0, Limits())
    ('', 'cold items lose 5.0 % of their NDCG, 2 % may be lost')
    """
    said = []
    if not -change <= limits.lose:
        said.append(f"cold items lose {-change:.1%} of their NDCG, {limits.lose:.0%} may be lost".replace("%", " %"))
    if not -change_95[0] <= limits.sure:
        said.append(f"it may be {-change_95[0]:.0%}, where {limits.sure:.0%} is the most".replace("%", " %"))
    if not faster >= limits.faster:
        said.append(f"it is {faster:.2f} times as fast, less than {limits.faster:g}")
    return "; ".join(said)


def _cosine(before: Floats, after: Floats) -> float:
    """Mean whitened cosine, after a rotation for the best: whitenings of two towers are turned against each other."""
    if before.shape != after.shape:
        return float("nan")
    left, _, right = np.linalg.svd(after.T.astype(np.float64) @ before)
    return float(((after @ (left @ right)) * before).sum(axis=1).mean())


def _neighbours(before: Floats, after: Floats) -> float:
    """Of each text's ten nearest (of all others, in a shop of fewer), the share that both have."""
    near, count = [], min(NEIGHBOURS, len(before) - 1)
    for vectors in (before, after):
        likes = vectors @ vectors.T
        np.fill_diagonal(likes, -2)
        near.append(np.argpartition(-likes, count, axis=1)[:, :count])
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(*near, strict=True)]) / count)


def _time(original: Path, compressed: Path, texts: Sequence[str], rounds: int = 3) -> float:
    """How many times as many texts a second of processor time, one thread, taking turns; the best of each."""
    towers = [TextTower(folder) for folder in (original, compressed)]
    took: list[list[float]] = [[], []]
    for _ in range(rounds):
        for tower, each in zip(towers, took, strict=True):
            began_s = time.process_time()
            tower.encode(texts)
            each.append(time.process_time() - began_s)
    return min(took[0]) / min(took[1])
