"""`slatecast bench scorer`: what the scores of a list cost, against a cross-encoder and other embedders in the same run.

A request: 200 candidates for a user with 20 items behind them. Ours, with item vectors cached and with nothing cached,
beside a cross-encoder of the same body that reads the titles themselves; then our text tower beside fastembed and
sentence-transformers on the same weights. All on one core with one thread, in turn, several rounds, their medians.
Ratios are of processor time, which a busy neighbour stretches least; `_wall` is the same by the clock. Not measured:
what scores are worth (`slatecast evaluate`), and the features of candidates (`slatecast bench hot-path`).
"""

import contextlib
import importlib.util
import itertools
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import numpy as np

from models.export import EXPORT_LIMIT_S, QUIET, default_weights, export_tower
from models.files import read_rows
from models.presets import PRESETS, find_complete_journey
from recsys.errors import ModelRejected, Unavailable, how_to_install
from streams.bench import scorer_ours, scorer_peers
from streams.bench.ground import ENGINE_CORE, command, environ
from streams.bench.scorer_ours import ISOLATION_CASES
from streams.bench.scorer_work import CANDIDATES, HISTORY, Order, Took

MODULES = {"ours": scorer_ours.__name__, "start": scorer_ours.__name__}
MAKER = "sentence_transformers"  # it has torch, and makes the release
PEERS = {"fastembed": "fastembed", "sentence_transformers": "sentence-transformers"}  # module -> what is installed
OURS = {"cached": "slatecast, vectors cached", "tower": "of it the sequence tower", "uncached": "slatecast, no vectors"}
CROSS_ENCODERS = {
    "onnx": "cross-encoder in ONNX Runtime",
    "sentence_transformers": "cross-encoder in sentence-transformers",
}
EMBEDDERS = {
    ("ours", "embed"): "slatecast",
    ("fastembed", "embed_32"): "fastembed, batches of 32",
    ("fastembed", "embed_256"): "fastembed, batches of 256",
    ("sentence_transformers", "embed"): "sentence-transformers",
}
TASKS = [*(("ours", what) for what in OURS), *((who, "cross") for who in CROSS_ENCODERS), *EMBEDDERS]
# Of a score or a part of a vector: those that are compared compute the same, or it is no comparison. Seen: 1e-6.
SAME_WORK = 1e-3
T = TypeVar("T")


def measure(
    home: Path, weights: Path | None, texts: int, pairs: int, rounds: int, tell: Callable[[str], None]
) -> dict[str, object]:
    """The whole benchmark. tell: what is running now.

    weights: folder of a Hugging Face encoder, by default MiniLM's. texts: titles to embed, at least 220. pairs: how
    many of the 200 a cross-encoder is timed on. Raises Unavailable if a peer is not installed, ModelRejected if two
    that are compared do different work.
    """
    check_installed(PEERS)
    source, titles, load = weights or default_weights(), real_titles(texts), _load()
    home.mkdir(parents=True, exist_ok=True)
    tell("exporting the text tower, if it was not yet")
    tower = export_tower(source, home / "towers")
    with tempfile.TemporaryDirectory(prefix="bench-", dir=home) as name, contextlib.ExitStack() as stack:
        order = Order(
            engine=MAKER,
            folder=str(Path(name).resolve()),
            texts=titles,
            pairs=pairs,
            weights=str(source.resolve()),
            tower=str(tower.resolve()),
            core=ENGINE_CORE,
        )
        tell("making a release and a cross-encoder")
        engines = {MAKER: stack.enter_context(running(order))}
        made = engines[MAKER].about
        order = msgspec.structs.replace(order, release=made["release"])
        tell("starting a ranker's models")
        starts = [start(order) for _ in range(rounds)]
        for who in {who: None for who, _ in TASKS if who != MAKER}:
            tell(f"getting {who} ready")
            engines[who] = stack.enter_context(running(msgspec.structs.replace(order, engine=who)))
        about = {who: engine.about for who, engine in engines.items()}
        differ = {what: largest_difference(about, what) for what in ("scores", "vectors")}
        took: dict[tuple[str, str], list[Took]] = {task: [] for task in TASKS}
        for number in range(rounds):
            for who, what in TASKS:
                tell(f"round {number + 1} of {rounds}: {who}, {what}")
                took[who, what].append(engines[who].ask(what, Took))
        tell("candidates alone and together")
        isolation = engines["ours"].ask("isolation", float)
    peaks = [peak for _, peak in starts if peak is not None]
    return {
        **compare({task: middle(each) for task, each in took.items()}, texts, pairs),
        "parity_max": made["parity_max"],
        "isolation_equal_share": isolation,
        "isolation_cases": ISOLATION_CASES,
        "startup_s": statistics.median(took_s for took_s, _ in starts),
        "rss_mib": statistics.median(peaks) if peaks else None,
        "candidates": CANDIDATES,
        "history": HISTORY,
        "texts": texts,
        "tokens_per_text": about["ours"]["tokens"],
        "tokens_per_pair": about["onnx"]["tokens"],
        "pairs_timed": pairs,
        "pairs_in_a_batch": {who: about[who]["batch"] for who in CROSS_ENCODERS},
        "peers_differ_by": differ,
        "weights": "all-MiniLM-L6-v2" if weights is None else weights.name,
        "scorers": "random weights, default sizes: what they cost, not what they are worth",
        "versions": {who: each["version"] for who, each in about.items() if "version" in each},
        "rounds": rounds,
        "load_before": load,
        "load_after": _load(),
    }


def _load() -> float | None:
    """Of the last minute, with what runs beside; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def compare(took: Mapping[tuple[str, str], Took], texts: int, pairs: int) -> dict[str, object]:
    """Ratios, each against the fastest peer, and the times behind them."""
    requests = {OURS[what]: took["ours", what] for what in OURS}
    # A pair is a pair: the time of those that were scored, for all of them.
    cross = {name: scaled(took[who, "cross"], CANDIDATES / pairs) for who, name in CROSS_ENCODERS.items()}
    fast = [took[task] for task in EMBEDDERS if task[0] == "fastembed"]
    return {
        "ratio_cross_encoder": _ratio(cross.values(), took["ours", "cached"], "cpu_s"),
        "ratio_cross_encoder_wall": _ratio(cross.values(), took["ours", "cached"], "wall_s"),
        "ratio_cross_encoder_nothing_cached": _ratio(cross.values(), took["ours", "uncached"], "cpu_s"),
        "ratio_cross_encoder_nothing_cached_wall": _ratio(cross.values(), took["ours", "uncached"], "wall_s"),
        "tower_ms": 1000 * took["ours", "tower"].wall_s,
        "ratio_fastembed": _ratio(fast, took["ours", "embed"], "cpu_s"),
        "ratio_fastembed_wall": _ratio(fast, took["ours", "embed"], "wall_s"),
        "ratio_sentence_transformers": _ratio([took["sentence_transformers", "embed"]], took["ours", "embed"], "cpu_s"),
        "requests": [
            {"who": name, "ms": 1000 * t.wall_s, "cpu_ms": 1000 * t.cpu_s, "lists_per_cpu_s": 1 / t.cpu_s}
            for name, t in {**requests, **cross}.items()
        ],
        "embedding": [
            {"who": name, "texts_per_s": texts / took[task].wall_s, "texts_per_cpu_s": texts / took[task].cpu_s}
            for task, name in EMBEDDERS.items()
        ],
    }


def _ratio(peers: Iterable[Took], ours: Took, clock: str) -> float:
    return float(min(getattr(peer, clock) for peer in peers) / getattr(ours, clock))


def middle(each: Sequence[Took]) -> Took:
    """The median of rounds."""
    return Took(statistics.median(took.wall_s for took in each), statistics.median(took.cpu_s for took in each))


def scaled(took: Took, by: float) -> Took:
    """As much work again and again."""
    return Took(took.wall_s * by, took.cpu_s * by)


def check_installed(modules: Mapping[str, str]) -> None:
    """Raises Unavailable naming what is missing: a peer that is not there is no peer that was beaten."""
    missing = [name for module, name in modules.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise Unavailable(f"{' and '.join(missing)}: not installed, to compare with: {how_to_install('bench')}")


def real_titles(count: int) -> list[str]:
    """Distinct titles of groceries (Complete Journey), of 15 MiniLM tokens on average."""
    rows = read_rows(find_complete_journey() / "products.parquet", "items", PRESETS["complete-journey"])
    titles = (row.item.title for row in rows if row.item is not None)
    return list(itertools.islice(dict.fromkeys(itertools.islice(titles, 20 * count)), count))


def largest_difference(about: Mapping[str, Mapping[str, Any]], what: str) -> float:
    """Between what engines answered to the same. Raises ModelRejected where it is not the same work."""
    answers = {who: np.array(each[what]) for who, each in about.items() if what in each}
    (first, expected), *others = answers.items()
    worst = 0.0
    for who, answer in others:
        difference = float(np.abs(answer - expected).max()) if answer.shape == expected.shape else np.inf
        if not difference <= SAME_WORK:  # NaN is refused too
            raise ModelRejected(f"{what} of {who} and {first} differ by {difference:.2g}: this compares unlike things")
        worst = max(worst, difference)
    return worst


def start(order: Order) -> tuple[float, float | None]:
    """Seconds from nothing to a first scored list, and the peak of resident memory in MiB, of a fresh process."""
    began_s = time.perf_counter()
    with running(msgspec.structs.replace(order, engine="start", texts=[], core=-1)) as engine:
        took_s = time.perf_counter() - began_s
    if engine.about["heavy"]:
        raise ModelRejected(f"a ranker's models imported {', '.join(engine.about['heavy'])}: they belong to training")
    return took_s, engine.about["peak_mib"]


class Running(msgspec.Struct, frozen=True):
    """An engine at work. about: what it said when it was ready; said: what its libraries say, a file."""

    process: subprocess.Popen[bytes]
    stdin: IO[bytes]
    stdout: IO[bytes]
    said: IO[bytes]
    about: dict[str, Any] = {}

    def ask(self, task: str, kind: type[T]) -> T:
        """Have one task done."""
        return self.tell(task.encode(), kind)

    def tell(self, line: bytes, kind: type[T]) -> T:
        """A line, and the line that answers it. Raises Unavailable where none comes within the limit."""
        limit = threading.Timer(EXPORT_LIMIT_S, self.process.kill)
        limit.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # the missing answer says it
                self.stdin.write(line + b"\n")
                self.stdin.flush()
            answer = self.stdout.readline()
        finally:
            limit.cancel()
        if not answer:
            self.said.seek(0)
            last = self.said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise Unavailable(f"an engine ended, or took over {EXPORT_LIMIT_S:g} s: {last}")
        return msgspec.json.decode(answer, type=kind)


@contextlib.contextmanager
def running(order: Order) -> Iterator[Running]:
    """An engine for the length of a block, once it is ready. Raises Unavailable if it does not become so."""
    alone = {**environ(), **QUIET, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command(MODULES.get(order.engine, scorer_peers.__name__)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=alone,
        ) as process,
    ):
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None  # noqa: S101 - both were opened as pipes
        assert stdout is not None  # noqa: S101
        try:
            engine = Running(process, stdin, stdout, said)
            yield msgspec.structs.replace(engine, about=engine.tell(msgspec.json.encode(order), dict[str, Any]))
        finally:
            process.kill()  # it holds nothing that must be put away
            with contextlib.suppress(BrokenPipeError):  # it ended before it read all
                stdin.close()
