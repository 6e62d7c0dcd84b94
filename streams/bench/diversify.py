"""`slatecast bench diversify`: our re-ranker against pyversity, list by list, in one process on one core.

Sixteen shapes: MMR, DPP, SSD and SSD in a window of 8; 200 and 1000 candidates; lists of 20 and 50; 384 dimensions,
diversity .5. Items lie in clusters of about ten with cosines around .5, scores are as in shops (few high ones).
Vectors are normalised before, once, as a catalogue does when it takes them in; pyversity normalises at each call, which
is a part of its time here. What it does not offer (limits, topics, reasons) is not used. Lists are compared.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.diversify import Diversity, diversify, warm_up
from recsys.errors import Misuse

DIM, STRENGTH, SINGLES = 384, 0.5, 2000
SIZES = ((200, 20), (200, 50), (1000, 20), (1000, 50))
# pyversity's dpp weighs by exp((1 - d)·z): z counts 2(1 - d) = 1 times as much as the log-determinant, so our s is 1/2.
OURS = {
    "mmr": Diversity(method="mmr", strength=STRENGTH, scale="raw"),
    "dpp": Diversity(method="dpp", strength=1 / (1 + 2 * (1 - STRENGTH)), scale="zscore", blend=1.0),
    "ssd": Diversity(method="ssd", strength=STRENGTH, scale="zscore", blend=1.0),
    "ssd, window 8": Diversity(method="ssd", strength=STRENGTH, scale="zscore", blend=1.0, window=8),
}
Requests = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


def measure(lists: int, rounds: int, tell: Callable[[str], None]) -> dict[str, object]:
    """The whole benchmark: `lists` requests of each shape, `rounds` interleaved rounds, the medians compared.

    p99_ms_200_20 is of 2,000 single calls as the product makes them by default (dpp, blended), one list after another;
    the median of the rounds' figures, since on a shared machine a busy second would decide otherwise.
    Raises Misuse without pyversity.
    """
    try:
        import pyversity
    except ImportError as error:
        raise Misuse("pyversity is the peer here and not installed: pip install pyversity==0.2.0") from error
    before = _pin()
    try:
        warm_up()
        rows = []
        for n, k in SIZES:
            requests = make_requests(n, lists)
            for name, how in OURS.items():
                tell(f"{name}: {k} of {n}")
                more = {"window": how.window} if how.window else {}

                def ours(vectors: Any, scores: Any, how: Diversity = how, k: int = k) -> list[int]:
                    return list(map(int, diversify(scores, vectors, k, how).positions))

                def theirs(vectors: Any, scores: Any, how: Diversity = how, k: int = k, more: Any = more) -> list[int]:
                    found = pyversity.diversify(
                        vectors, scores, k, strategy=how.method, diversity=STRENGTH, **more
                    ).indices
                    return list(map(int, found))

                equal = sum(ours(*one) == theirs(*one) for one in requests)
                times_s: dict[str, list[float]] = {"ours": [], "theirs": []}
                for _ in range(rounds):
                    times_s["ours"].append(sum(_time(ours, requests)))
                    times_s["theirs"].append(sum(_time(theirs, requests)))
                middle = {who: statistics.median(values) / lists * 1e6 for who, values in times_s.items()}
                rows.append(
                    {
                        "method": name,
                        "candidates": n,
                        "list": k,
                        "us": middle["ours"],
                        "pyversity_us": middle["theirs"],
                        "ratio": middle["theirs"] / middle["ours"],
                        "equal_lists": equal,
                    }
                )
        tell("2,000 single lists")
        requests = (make_requests(200, lists) * (1 + SINGLES // lists))[:SINGLES]
        p99s_s = [
            float(
                np.percentile(
                    _time(lambda vectors, scores: list(diversify(scores, vectors, 20).positions), requests), 99
                )
            )
            for _ in range(rounds)
        ]
    finally:
        _unpin(before)
    ratios = [float(str(row["ratio"])) for row in rows]
    return {
        "geomean_ratio": statistics.geometric_mean(ratios),
        "min_ratio": min(ratios),
        "equal_lists_share": sum(int(str(row["equal_lists"])) for row in rows) / (lists * len(rows)),
        "p99_ms_200_20": statistics.median(p99s_s) * 1000,
        "pyversity": pyversity.__version__,
        "shapes": rows,
    }


def make_requests(n: int, lists: int) -> Requests:
    """(vectors (n, 384) float32 unit rows, scores (n,) float32 in [0, 1]) of so many lists, always the same."""
    made = []
    for seed in range(lists):
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(n // 10, DIM))
        vectors = centres[rng.integers(0, len(centres), n)] + rng.normal(size=(n, DIM))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        made.append((vectors.astype(np.float32), rng.beta(2, 5, n).astype(np.float32)))
    return made


def _time(choose: Callable[..., list[int]], requests: Requests) -> list[float]:
    """Seconds of each call."""
    found = []
    for vectors, scores in requests:
        begun_s = time.perf_counter()
        choose(vectors, scores)
        found.append(time.perf_counter() - begun_s)
    return found


def _pin() -> set[int] | None:
    """Stay on one core while measuring."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    return before


def _unpin(before: set[int] | None) -> None:
    if before:
        os.sched_setaffinity(0, before)
