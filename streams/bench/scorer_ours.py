"""Ours in `slatecast bench scorer`: a release as a ranker serves it, whether its bits depend on company, its start.

Called by scorer.py, as a process. Imports neither torch nor transformers, and at the top nothing heavy: see
scorer_work.py.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recsys.errors import ModelRejected
from recsys.features import NAMES
from recsys.scoring import TRAIL, Ask, Trail
from streams.bench.scorer_work import CANDIDATES, HISTORY, Engine, Order, serve, timed

if TYPE_CHECKING:
    from models.serving import Models

REQUESTS = 50  # of a millisecond or two each, in a round
ITEMS = 5000  # of the catalogue whose vectors are cached: 8 MB, more than a core's own cache
SAMPLE = 8  # texts whose vectors are compared with the peers'
ISOLATION_CASES = 120
TRAILS = (0, 1, 3, 7, 20, 33, 48, 49, TRAIL)  # of the users whose lists meet in one call
COUNTS = (1, 2, 3, 7, 8, 9, 31, 33, 50, 64, 100, 199, CANDIDATES)
HEAVY = {"torch", "transformers", "sentence_transformers", "onnx", "scipy"}  # what a ranker does without

Score = Callable[[Sequence[Ask], NDArray[np.float32]], NDArray[np.float32]]


def run_ours(order: Order) -> Engine:
    """A release at work."""
    from models.sequence_tower import SequenceTower
    from models.serving import open_models
    from models.text_tower import TextTower

    release = Path(order.release)
    models = open_models(release)
    score = scoring(models)
    tower = SequenceTower(release / "sequence" / "tower.onnx")
    text = TextTower(release / "text")
    asks, vectors = draw(TRAILS, ITEMS, models.dim)
    (one,), _ = draw([HISTORY], ITEMS, models.dim)
    (fresh,), _ = draw([HISTORY], CANDIDATES + HISTORY, models.dim)

    def score_uncached() -> None:
        score([fresh], models.embed(order.texts[: CANDIDATES + HISTORY]))

    return Engine(
        {
            "vectors": text.encode(order.texts[:SAMPLE]).ravel().tolist(),
            "tokens": _mean_tokens(release / "text" / "tokenizer.json", order.texts),
        },
        {
            "cached": timed(lambda: score([one], vectors), REQUESTS),
            "tower": timed(lambda: tower.score([one], vectors), REQUESTS),
            "uncached": timed(score_uncached),
            "embed": timed(lambda: text.encode(order.texts)),
            "isolation": lambda: isolation_share(score, asks, vectors, ISOLATION_CASES),
        },
    )


def run_start(order: Order) -> Engine:
    """A ranker's start as far as models go: imports, a release verified and opened, a first list."""
    from models.serving import open_models

    models = open_models(Path(order.release))
    (one,), vectors = draw([HISTORY], ITEMS, models.dim)
    scoring(models)([one], vectors)
    return Engine({"peak_mib": peak_mib(), "heavy": sorted(HEAVY & sys.modules.keys())})


def scoring(models: "Models") -> Score:
    """The logits of lists. Raises ModelRejected where another than the best scorer made them: that is not measured."""

    def score(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        scored = models.score(asks, vectors)
        if scored.logits is None or scored.scorer != "sequence":
            raise ModelRejected(f"the list was made by {scored.scorer}: {scored.degraded_reason}")
        return scored.logits

    return score


def draw(trails: Sequence[int], items: int, dim: int) -> tuple[list[Ask], NDArray[np.float32]]:
    """Lists of 200 candidates, their users with trails of these lengths; the catalogue's vectors, (items, dim)."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(items, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asks = [
        Ask(
            rng.permutation(items)[:CANDIDATES],
            rng.normal(size=(CANDIDATES, len(NAMES))).astype(np.float32),
            Trail(
                rng.permutation(items)[:length],
                rng.integers(0, 4, length),
                5 * rng.random((length, 2)).astype(np.float32),
            ),
        )
        for length in trails
    ]
    return asks, vectors


def isolation_share(score: Score, asks: Sequence[Ask], vectors: NDArray[np.float32], cases: int) -> float:
    """The share of cases in which every candidate has the bits that it has when nothing else is asked for.

    A case: some of the users in one call, of each some of the candidates, in any order.
    """

    def some_of(ask: Ask, places: NDArray[np.int64]) -> Ask:
        return Ask(ask.rows[places], ask.features[places], ask.trail)

    alone = [
        np.concatenate([score([some_of(ask, np.array([at]))], vectors) for at in range(len(ask.rows))]) for ask in asks
    ]
    rng, equal = np.random.default_rng(1), 0
    for _ in range(cases):
        users = rng.permutation(len(asks))[: rng.integers(1, len(asks) + 1)].tolist()
        places = [rng.permutation(len(asks[user].rows))[: rng.choice(COUNTS)] for user in users]
        together = score([some_of(asks[user], at) for user, at in zip(users, places, strict=True)], vectors)
        expected = np.concatenate([alone[user][at] for user, at in zip(users, places, strict=True)])
        equal += together.tobytes() == expected.tobytes()
    return equal / cases


def peak_mib() -> float | None:
    """The most memory this process ever had resident; None where nobody says.

    Not getrusage: its peak begins with that of the process that started this one.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def _mean_tokens(tokenizer: Path, texts: list[str]) -> float:
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(tokenizer))
    plain.no_padding()
    return statistics.mean(len(one.ids) for one in plain.encode_batch(texts))


if __name__ == "__main__":
    serve({"ours": run_ours, "start": run_start})
