"""Tunes a text tower on a shop's own texts and purchases: a Hugging Face folder in, one of the same shape out.

    batches by number      →  text_batches.py: the same for a seed, whoever asks
    texts → vectors        →  sorted by length, in calls under a token budget, by the pooling that will serve
    loss, step             →  text_losses.py; AdamW, SGD or Adafactor
    newest slice held out  →  the best so far is kept, and what does not get better ends

`slatecast export` makes a tower of the result, `slatecast train --tower` a release. Under torchrun each process takes
its own batches and gradients are averaged (DDP); negatives are those of the own process. Whole models are copied, not
sharded: FSDP is not offered, as what fits a tower fits a device.
Called by `slatecast tune-text` and its benchmarks.
"""

import contextlib
import math
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from models.export import source_digest
from models.fitting import Log
from models.history import History
from models.registry import sync_folder
from models.text_adapters import Learner
from models.text_batches import Batch, Batches, by_length, padded
from models.text_export import load, pooled, reads_left_to_right
from models.text_losses import contrastive, guessed
from models.text_pairs import Bought, gather, sold_texts
from models.text_resume import STATE, load_best, load_state, open_run, save_best, save_state
from models.text_settings import TuneSettings
from models.train_settings import Step
from recsys.catalogue import text_hash
from recsys.errors import Misuse, Unavailable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VALIDATED = 8  # batches, the same at each validation
ABOUT = "tuning.json"


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to; also tuning.json in its folder. Losses are of the held-out slice, None without one.

    ended: by what. trainable, parameters: weights that learned, of all. took_s: without loading; rss_mib: at most.
    """

    folder: str
    settings: TuneSettings
    ended: str
    steps: int
    best_step: int
    loss_before: float | None
    loss: float | None
    trainable: int
    parameters: int
    precision: str
    took_s: float
    tokens_per_s: float
    rss_mib: float
    merged: bool
    curve: list[tuple[int, float]]


def tune(
    base: Path,
    out: Path,
    history: History,
    settings: TuneSettings,
    step: Step,
    log: Log = lambda name, at, value: None,
) -> Tuned:
    """Tune the model of a folder and write folder `out`. Deterministic for a seed on one machine's processor.

    A run that was killed goes on when it is called again. KeyboardInterrupt keeps the best so far. log: is told losses.
    Raises Misuse where there is too little to learn from or the loss is not finite, ModelRejected for a strange base.
    """
    transformers.utils.logging.set_verbosity_error()  # its reports of what it leaves out are not for a shop
    transformers.utils.logging.disable_progress_bar()
    bought = gather(history, settings.window_days) if settings.loss == "purchases" else None
    texts = bought.texts if bought else sold_texts(history)[0]
    with _processes() as (rank, world), _device(rank, settings.threads) as device:
        run = Run(base, out, texts, bought, settings, device, rank, world, log)
        return run.go(step)


class Objective(torch.nn.Module):
    """A batch to its loss, as one module, which is what DDP wraps."""

    def __init__(self, learner: Learner, settings: TuneSettings, precision: torch.dtype) -> None:
        super().__init__()
        self.learner: Learner = learner
        self.tower: Any = pooled(learner.model, settings.pooling)
        self._settings, self._precision = settings, precision
        if settings.loss == "words":
            # A map before the input's own embeddings, since few bases come with what guessed words in their training.
            self.words: Any = learner.model.get_input_embeddings()
            vocabulary, width = self.words.weight.shape
            self.map, self.bias = torch.nn.Linear(width, width), torch.nn.Parameter(torch.zeros(vocabulary))
            torch.nn.init.eye_(self.map.weight)
            torch.nn.init.zeros_(self.map.bias)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The mean loss of a batch, float32."""
        with self._cast():
            loss = self._guess(batch) if batch.targets else self._tell_apart(batch)
        return loss + self.learner.extra_loss() if self.training else loss

    def embed(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Unit vectors of token rows, (N, D) float32, in their order."""
        found = [self.tower(*self._inputs(rows, call)).float() for call in self._calls(rows)]
        order = torch.tensor([at for call in self._calls(rows) for at in call])
        return torch.cat(found)[order.argsort().to(found[0].device)]

    def _tell_apart(self, batch: Batch) -> torch.Tensor:
        vectors = self.embed(batch.rows)
        assert batch.log_q is not None  # noqa: S101  (a contrastive batch has both)
        log_q, same = (torch.from_numpy(each).to(vectors.device) for each in (batch.log_q, batch.same))
        anchors, positives = vectors.chunk(2)
        with torch.autocast(vectors.device.type, enabled=False):
            return contrastive(anchors, positives, log_q, same, self._settings.temperature)

    def _guess(self, batch: Batch) -> torch.Tensor:
        count = sum(target >= 0 for row in batch.targets for target in row)
        total = self.bias.sum() * 0
        for call in self._calls(batch.rows):
            ids, mask = self._inputs(batch.rows, call)
            targets = padded([batch.targets[at] for at in call], -1, ids.device)
            if (here := int((targets >= 0).sum())) > 0:
                hidden = self.map(self.tower.hidden(ids, mask))
                total = total + guessed(hidden, targets, self.words.weight, self.bias).float() * (here / count)
        return total

    def _calls(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        return by_length([len(row) for row in rows], self._settings.token_budget)

    def _inputs(self, rows: Sequence[Sequence[int]], call: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        chosen, device = [rows[at] for at in call], next(self.parameters()).device
        return padded(chosen, 0, device), padded([[1] * len(row) for row in chosen], 0, device)

    def _cast(self) -> torch.autocast:
        device = next(self.parameters()).device.type
        return torch.autocast(device, self._precision, enabled=self._precision != torch.float32)


class Run:
    """One tuning run: what it needs, and the loop."""

    def __init__(
        self,
        base: Path,
        out: Path,
        texts: Sequence[str],
        bought: Bought | None,
        settings: TuneSettings,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        log: Log = lambda name, at, value: None,
    ) -> None:
        if out.exists():
            raise Misuse(f"{out} is there already; name a new folder")
        self.settings, self.out, self.rank, self.world, self.log = settings, out, rank, world, log
        self.folder = out.with_name(f"{out.name}.part")
        model, self.tokenizer = load(base)
        self.train, self.held = self._split(model, texts, bought)
        an_epoch = self.train.an_epoch / (settings.accumulate * world)
        self.steps = settings.steps or max(1, math.ceil(settings.epochs * an_epoch))
        torch.manual_seed(settings.seed)
        self.learner = Learner(model, settings, self.steps)
        if settings.dropout >= 0:
            set_dropout(model, settings.dropout)
        if settings.checkpoint_activations:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.precision = choose_precision(settings.precision, device)
        self.objective = Objective(self.learner, settings, self.precision).to(device)
        self.weights: dict[str, torch.Tensor] = {
            name: p for name, p in self.objective.named_parameters() if p.requires_grad
        }
        self.optimiser = make_optimiser(settings, list(self.weights.values()))
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        if rank == 0:
            plan = {
                "settings": msgspec.json.encode(settings).decode(),
                "base": source_digest(base),
                "texts": text_hash("\0".join(texts)),
                "purchases": text_hash(repr(bought.text.tobytes() if bought else b"")),
                "processes": str(world),
            }
            open_run(self.folder, plan)
        if world > 1:
            distributed.barrier()
        self.at, more = load_state(self.folder, self.weights, self.optimiser)
        self.learner.load_state(more, self.at.ranks)
        if self.at.step:
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": self.at.scale} if self.scaler.is_enabled() else {})  # fmt: skip
        self._parallel: Any = self.objective
        if world > 1:
            self._parallel = DistributedDataParallel(self.objective, find_unused_parameters=True)

    def _split(
        self, model: "PreTrainedModel", texts: Sequence[str], bought: Bought | None
    ) -> tuple[Batches, Batches | None]:
        """What is learned from, and the newest slice, which only says when to stop."""
        settings = self.settings
        examples = bought.anchors if bought else np.arange(len(texts))
        cut = len(examples) - round(settings.hold_out * len(examples))
        make: Callable[[NDArray[np.int64]], Batches] = lambda some: Batches(  # noqa: E731
            settings, self.tokenizer, reads_left_to_right(model), texts, bought, some
        )
        if cut < 2 or (settings.hold_out and len(examples) - cut < 2):
            raise Misuse(
                f"{len(examples)} examples, of which hold_out = {settings.hold_out:g} leaves {cut} to learn from and "
                f"{len(examples) - cut} to stop by; two of each are needed: load more, or set hold_out = 0"
            )
        return make(examples[:cut]), make(examples[cut:]) if settings.hold_out else None

    def go(self, step: Step) -> Tuned:
        """Train to the end, write the folder, say what it came to."""
        began_s, before_s = time.monotonic(), self.at.took_s
        ended = "steps"
        try:
            if self.at.step == 0 and not self.at.curve:
                self._validate()
            while self.at.step < self.steps:
                if verdict := self._agree(self._verdict()):
                    ended = verdict
                    if self.at.curve and self.at.curve[-1][0] != self.at.step:  # the last steps may be the best
                        self._validate()
                    break
                self._one_step()
                self._set(took_s=before_s + time.monotonic() - began_s)
                if self.at.step % self.settings.validate_every == 0 or self.at.step == self.steps:
                    self._validate()
                if self.rank == 0 and (self.at.step % self.settings.save_every == 0 or self.at.step == self.steps):
                    self._save()
                step("tuning", self.at.step, self.steps)
        except KeyboardInterrupt:
            if self.world > 1 or not (self.at.curve or (self.folder / STATE).is_file()):
                raise  # other processes wait for us, or nothing whole was kept
            if not self.held:  # a step may have been cut in two: back to the last whole one
                self.at, _ = load_state(self.folder, self.weights, self.optimiser)
            ended = "stopped"
        if self.held and self.rank == 0:
            load_best(self.folder, self.weights)
        return self._finish(ended)

    def _one_step(self) -> None:
        """Gradients of `accumulate` batches, one move. All chance in it comes from the seed and the step's number."""
        settings, number = self.settings, self.at.step
        torch.manual_seed(settings.seed * 1_000_003 + number * 4096 + self.rank)
        rate = settings.rate * scheduled(number, self.steps, settings)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.objective.train()
        self.optimiser.zero_grad()
        tokens = 0
        for part in range(settings.accumulate):
            batch = self.train[(number * settings.accumulate + part) * self.world + self.rank]
            tokens += batch.tokens
            last = part == settings.accumulate - 1
            waits = self._parallel.no_sync() if self.world > 1 and not last else contextlib.nullcontext()
            with waits:
                loss = self._parallel(batch) / settings.accumulate
                self._check(float(loss.detach()))
                if last:
                    self.log("tuning/loss of a batch", number + 1, float(loss.detach()) * settings.accumulate)
                self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self.weights.values(), settings.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.learner.stepped(number)
        self._set(step=number + 1, tokens=self.at.tokens + tokens)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise Misuse(
                f"the loss is {loss} at step {self.at.step}; lower learning_rate (now {self.settings.rate:g}), "
                f'or set precision = "float32" (now {str(self.precision)[6:]}), and delete {self.folder}'
            )

    def _validate(self) -> None:
        """The loss of the newest slice; the best weights are kept. Only the first process does it."""
        if self.held is None or self.rank:
            return
        self.objective.eval()
        with torch.no_grad():
            some = [self.held[number] for number in range(min(VALIDATED, self.held.an_epoch))]
            loss = float(np.mean([float(self.objective(batch)) for batch in some]))
        self._check(loss)
        self.log("tuning/loss of the newest slice", self.at.step, loss)
        at = self.at
        self._set(curve=[*at.curve, (at.step, loss)], worse=at.worse + 1)
        if loss < at.best:
            save_best(self.folder, self.weights)
            self._set(best=loss, best_step=at.step, worse=0)

    def _verdict(self) -> str:
        """Why it should end now, or nothing."""
        if self.at.took_s > self.settings.minutes * 60:
            return "minutes"
        return "early" if self.held and self.at.worse >= self.settings.patience else ""

    def _agree(self, verdict: str) -> str:
        """The first process's verdict, for all."""
        if self.world == 1:
            return verdict
        said = [verdict]
        distributed.broadcast_object_list(said)
        return said[0]

    def _save(self) -> None:
        self._set(scale=self.scaler.get_scale(), ranks=self.learner.ranks())
        save_state(self.folder, self.weights, self.optimiser, self.learner.state(), self.at)

    def _set(self, **changes: Any) -> None:
        self.at = msgspec.structs.replace(self.at, **changes)

    def _finish(self, ended: str) -> Tuned:
        at, settings = self.at, self.settings
        held = self.held is not None
        tuned = Tuned(
            folder=str(self.out),
            settings=settings,
            ended=ended,
            steps=at.step,
            best_step=at.best_step if held else at.step,
            loss_before=at.curve[0][1] if at.curve else None,
            loss=at.best if held else None,
            trainable=sum(p.numel() for p in self.learner.parameters() if p.requires_grad),
            parameters=sum(p.numel() for p in self.learner.parameters()),
            precision=str(self.precision)[6:],
            took_s=at.took_s,
            tokens_per_s=at.tokens * self.world / max(at.took_s, 1e-9),
            rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            merged=self.learner.inside is None,
            curve=at.curve,
        )
        if self.rank == 0:
            write_folder(self.learner, self.tokenizer, self.out, tuned)
            shutil.rmtree(self.folder)
        return tuned


def write_folder(learner: Learner, tokenizer: "PreTrainedTokenizerBase", out: Path, tuned: Tuned) -> None:
    """The folder, beside its place and renamed. Raises Unavailable if the disk is full."""
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        learner.write(part)
        tokenizer.save_pretrained(part)
        (part / ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(tuned)))
        sync_folder(part)
        part.replace(out)
    except SafetensorError as error:  # wraps what the system said
        raise Unavailable(f"{out} cannot be written ({error}): make room; the same command then goes on") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def scheduled(step: int, steps: int, settings: TuneSettings) -> float:
    """The share of the learning rate at a step."""
    warm = settings.warm_up * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    if settings.schedule == "constant":
        return 1.0
    left = (steps - step) / max(1.0, steps - warm)
    return left if settings.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2


def make_optimiser(settings: TuneSettings, weights: list[torch.Tensor]) -> torch.optim.Optimizer:
    """The optimiser of the settings, over what learns; biases and norms do not decay."""
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups, settings.rate)
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, settings.rate, momentum=0.9)
    return torch.optim.Adafactor(groups, settings.rate)


def choose_precision(asked: str, device: torch.device) -> torch.dtype:
    """In what the products are computed; weights stay float32. auto: what the device has, by what it says of itself."""
    if asked != "auto":
        found: torch.dtype = getattr(torch, asked)
        return found
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has = torch.cpu.get_capabilities()
    return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else torch.float32


def set_dropout(model: torch.nn.Module, share: float) -> None:
    """Dropout wherever the model has it, in modules and in attention."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        if isinstance(getattr(module, "attention_dropout", None), float):  # a number in Llama, a module in others
            vars(module)["attention_dropout"] = share


@contextlib.contextmanager
def _processes() -> Iterator[tuple[int, int]]:
    """Our number and how many there are, as torchrun says; alone without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield 0, 1
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield distributed.get_rank(), world
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def _device(rank: int, threads: int) -> Iterator[torch.device]:
    """The device of a process, and its share of the cores."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", str(rank))))
        torch.cuda.set_device(device)
        yield device
        return
    before = torch.get_num_threads()
    half = (os.cpu_count() or 1) // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, half))
    try:
        yield torch.device("cpu")
    finally:
        torch.set_num_threads(before)
