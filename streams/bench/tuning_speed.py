"""Our contrastive step against sentence-transformers' on the same base, texts, batch, loss and optimiser, in one run.

Each round each engine tunes in a process of its own, so memory is its own too; medians of rounds are compared. A text's
positive is the text itself seen through other dropout, so both read the same tokens, padding aside: the same texts in
batches of the same size, softmax over the batch with temperature .05, AdamW, one thread. Steps are timed from the second on.
The peer is SentenceTransformerTrainer where `datasets` is installed, else sentence-transformers' own plain loop, which
does less around a step; the report says which.
Called by `slatecast bench train`, and as a module by itself.
"""

import contextlib
import importlib.metadata
import importlib.util
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from recsys.errors import Unavailable, how_to_install

ENGINES = ("ours", "ours, one call", "ours, sorted", "sentence-transformers", "sentence-transformers, bfloat16")
WARM = 2  # steps that are not timed: threads start, memory is mapped
RATE = 2e-5
SHORTEST, LONGEST = 3, 110  # words of a text, log-uniform: titles to descriptions

WORDS = (
    "red",
    "blue",
    "mug",
    "lamp",
    "oak",
    "chair",
    "set",
    "with",
    "large",
    "cotton",
    "glass",
    "heart",
    "box",
    "paper",
)


class Work(msgspec.Struct, frozen=True):
    """What an engine does."""

    base: str
    engine: str
    steps: int
    batch: int
    max_tokens: int = 128
    threads: int = 1  # as many for all: on a busy machine a second one only waits


class Speed(msgspec.Struct, frozen=True):
    """What it took. tokens_per_s: without padding; precision: of the products."""

    steps_per_s: float
    tokens_per_s: float
    rss_mib: float
    precision: str
    peer: str = ""


def draw_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of mixed lengths from a shop's words; all differ."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST), count)).astype(int)
    return [f"{number} " + " ".join(rng.choice(WORDS, length)) for number, length in enumerate(lengths.tolist())]


def measure(base: Path, steps: int, batch: int, rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Ratios of steps a second. Raises Unavailable without sentence-transformers."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise Unavailable(f"the peer is not installed: {how_to_install('bench')}")
    found: dict[str, list[Speed]] = {engine: [] for engine in ENGINES}
    for number in range(rounds):
        for engine in ENGINES[:: 1 if number % 2 == 0 else -1]:
            tell(f"round {number + 1} of {rounds}: {engine}")
            found[engine].append(_in_process(Work(str(base), engine, steps, batch)))
    median = {engine: statistics.median(one.steps_per_s for one in speeds) for engine, speeds in found.items()}
    ours, peer = found["ours"], median["sentence-transformers"]
    return {
        "steps_per_s": median["ours"],
        "tokens_per_s": statistics.median(one.tokens_per_s for one in ours),
        "ratio_sentence_transformers": median["ours"] / peer,
        "ratio_float32_one_call": median["ours, one call"] / peer,
        "ratio_float32_sorted": median["ours, sorted"] / peer,
        "ratio_same_precision": median["ours"] / (peer if ours[0].precision == "float32" else median[ENGINES[-1]]),
        "rss_mib": max(one.rss_mib for one in ours),
        "precision": ours[0].precision,
        "threads": Work("", "", 0, 0).threads,
        "peer": found["sentence-transformers"][0].peer,
        "batch": batch,
        "steps": steps,
        "rounds": rounds,
        "engines": [
            {
                "engine": engine,
                "steps_per_s": median[engine],
                "lowest": min(one.steps_per_s for one in speeds),
                "highest": max(one.steps_per_s for one in speeds),
                "rss_mib": max(one.rss_mib for one in speeds),
                "precision": speeds[0].precision,
            }
            for engine, speeds in found.items()
        ],
    }


def _in_process(work: Work) -> Speed:
    command = [sys.executable, "-P", "-W", "ignore", "-m", "streams.bench.tuning_speed"]
    done = subprocess.run(command, input=msgspec.json.encode(work), capture_output=True)
    if done.returncode:
        raise Unavailable(f"{work.engine} failed: {done.stderr.decode().strip().rpartition(chr(10))[2]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Speed)


def time_engine(work: Work) -> Speed:
    """One engine in this process."""
    import torch

    torch.set_num_threads(work.threads)
    texts = draw_texts(work.steps * work.batch)
    with tempfile.TemporaryDirectory() as scratch:
        if work.engine.startswith("ours"):
            ended, precision, peer = _ours(work, texts, Path(scratch))
        else:
            ended, precision, peer = _peer(work, texts, Path(scratch))
    steps_per_s = (len(ended) - WARM) / (ended[-1] - ended[WARM - 1])
    tokens = statistics.mean(_tokens(work, texts)) * 2 * work.batch
    rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Speed(steps_per_s, steps_per_s * tokens, rss_mib, precision, peer)


def _tokens(work: Work, texts: list[str]) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work.base, local_files_only=True, trust_remote_code=False)
    return [min(work.max_tokens, len(tokenizer(text)["input_ids"])) for text in texts]


def _ours(work: Work, texts: list[str], scratch: Path) -> tuple[list[float], str, str]:
    """The whole loop of `slatecast tune-text`. Ends of steps, monotonic seconds."""
    import torch

    from models.text_settings import TuneSettings
    from models.text_tuning import Run

    settings = TuneSettings(
        loss="views",
        word_drop=0.0,
        hold_out=0.0,
        learning_rate=RATE,
        batch=work.batch,
        steps=work.steps,
        save_every=work.steps,
        max_tokens=work.max_tokens,
        minutes=60,
        threads=work.threads,
        precision="auto" if work.engine == "ours" else "float32",
    )
    if work.engine == "ours, one call":
        settings = msgspec.structs.replace(settings, token_budget=2 * work.batch * work.max_tokens)
    ended: list[float] = []
    run = Run(Path(work.base), scratch / "out", texts, None, settings, torch.device("cpu"))
    tuned = run.go(lambda what, done, of: ended.append(time.monotonic()))
    return ended, tuned.precision, ""


def _peer(work: Work, texts: list[str], scratch: Path) -> tuple[list[float], str, str]:
    """sentence-transformers, quiet and offline."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(work.base, device="cpu", local_files_only=True, trust_remote_code=False)
    model.max_seq_length = work.max_tokens
    half = work.engine.endswith("bfloat16")
    began: list[float] = []

    class Timed(MultipleNegativesRankingLoss):
        """The loss; its beginning is the end of the step before."""

        def forward(self, *arguments: Any, **named: Any) -> torch.Tensor:
            began.append(time.monotonic())
            result: torch.Tensor = super().forward(*arguments, **named)
            return result

    loss = Timed(model, scale=20.0)
    with contextlib.redirect_stdout(sys.stderr):
        if importlib.util.find_spec("datasets"):
            name = "SentenceTransformerTrainer"
            _trainer(work, texts, scratch, model, loss, half)
        else:
            from sentence_transformers.sentence_transformer.readers import InputExample

            name = "SentenceTransformer.old_fit"
            pairs: Any = [InputExample(texts=[text, text]) for text in texts]
            loader: Any = torch.utils.data.DataLoader(pairs, batch_size=work.batch, shuffle=True)
            warm = work.steps // 10
            plain: dict[str, Any] = {"epochs": 1, "warmup_steps": warm, "optimizer_params": {"lr": RATE}}
            model.old_fit([(loader, loss)], use_amp=half, show_progress_bar=False, **plain)
    peer = f"{name}, sentence-transformers {importlib.metadata.version('sentence-transformers')}"
    return [*began[1:], time.monotonic()], "bfloat16" if half else "float32", peer


def _trainer(work: Work, texts: list[str], scratch: Path, model: Any, loss: Any, half: bool) -> None:
    import datasets
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=work.batch,
        num_train_epochs=1,
        learning_rate=RATE,
        warmup_steps=work.steps // 10,
        bf16=half,
        use_cpu=True,
        optim="adamw_torch",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    pairs = datasets.Dataset.from_dict({"anchor": texts, "positive": texts})
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=pairs, loss=loss).train()


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(time_engine(msgspec.json.decode(sys.stdin.buffer.read(), type=Work))))
