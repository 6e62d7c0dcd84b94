"""Tunes a text tower on a shop's own texts and purchases: a Hugging Face folder in, one of the same shape out.

    batches by number      →  text_batches.py: the same for a seed, whoever asks; text_views.py varies their texts
    texts → vectors, loss  →  text_objective.py, by the pooling that will serve; text_losses.py, text_teacher.py
    gradients              →  text_gradients.py: at once or call by call, under attack; text_memory.py says which
    step                   →  text_optimiser.py: AdamW, SGD or Adafactor; text_averaging.py
    newest slice held out  →  the best so far is kept, and what does not get better ends

`slatecast export` makes a tower of the result, `slatecast train --tower` a release. Under torchrun each process takes
its own batches (text_processes.py); negatives are those of the own process.
Called by `slatecast tune-text` and its benchmarks.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import transformers
from torch import distributed

from models.export import source_digest
from models.fitting import Log
from models.history import History
from models.schedules import set_rate
from models.text_adapters import Learner
from models.text_averaging import Average
from models.text_batches import split
from models.text_export import load, reads_left_to_right
from models.text_gradients import Gradients
from models.text_memory import live_tokens, measure
from models.text_objective import Objective
from models.text_optimiser import choose_precision, make_optimiser, set_dropout
from models.text_pairs import Bought, gather, sold_texts
from models.text_processes import agree, copies, device_of, fill, processes, shard, whole
from models.text_pruning import keep_silent
from models.text_resume import STATE, load_best, load_state, open_run, save_best, save_state
from models.text_settings import TuneSettings
from models.text_teacher import Teacher
from models.text_tuned import Tuned, report, write_folder
from models.train_settings import Step
from recsys.catalogue import text_hash
from recsys.errors import Misuse

VALIDATED = 8  # batches, the same at each validation
AVERAGE = "average"  # of what is saved


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
    with processes() as (rank, world), device_of(rank, settings.threads) as device:
        run = Run(base, out, texts, bought, settings, device, rank, world, log)
        return run.go(step)


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
        self.settings, self.base, self.out, self.rank, self.world = settings, base, out, rank, world
        self._log = log
        self.folder = out.with_name(f"{out.name}.part")
        self.sharded = settings.parallel == "fsdp" and world > 1
        model, self.tokenizer = load(base)
        teacher = Teacher(settings, model, self.tokenizer, texts, device) if settings.loss == "teacher" else None
        self.train, self.held = split(settings, self.tokenizer, reads_left_to_right(model), texts, bought)
        an_epoch = self.train.an_epoch / (settings.accumulate * world)
        self.steps = settings.steps or max(1, math.ceil(settings.epochs * an_epoch))
        torch.manual_seed(settings.seed)
        self.learner = Learner(model, settings, self.steps)
        if settings.train in ("all", "top"):
            keep_silent(model)
        if settings.dropout >= 0:
            set_dropout(model, settings.dropout)
        if settings.checkpoint_activations:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.precision = choose_precision(settings.precision, device)
        self.objective = Objective(self.learner, settings, self.precision, teacher).to(device)
        self.trainable, self.parameters = (
            sum(p.numel() for p in self.learner.parameters() if p.requires_grad or every) for every in (False, True)
        )
        need = measure(self.objective, self.train, settings) if settings.memory_mib else None
        if self.sharded:
            shard(self.objective, device, world)
        self.weights = learning(self.objective)
        self.optimiser = make_optimiser(settings, list(self.weights.values()))
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        if rank == 0:
            plan = {
                "settings": msgspec.json.encode(settings).decode(),
                "base": source_digest(base),
                "teacher": source_digest(teacher.folder) if teacher else "",
                "texts": text_hash("\0".join(texts)),
                "purchases": text_hash(repr(bought.text.tobytes() if bought else b"")),
                "processes": str(world),
            }
            open_run(self.folder, plan)
        if world > 1:
            distributed.barrier()
        self.average = Average(self.weights, settings.average) if settings.average else None
        self._load()
        if need is not None and self.at.live is None:
            share = world if self.sharded else 1
            self._set(live=live_tokens(need, 4 * self.trainable // share, settings, device))
        parallel = copies(self.objective) if world > 1 and not self.sharded else self.objective
        self._gradients = Gradients(self.objective, parallel, self.scaler, self.sharded)
        self._gradients.live = self.at.live

    def go(self, step: Step) -> Tuned:
        """Train to the end, write the folder, say what it came to."""
        began_s, before_s = time.monotonic(), self.at.took_s
        ended = "steps"
        try:
            if self.at.step == 0 and not self.at.curve:
                self._validate()
            while self.at.step < self.steps:
                if verdict := agree(self._verdict(), self.world):
                    ended = verdict
                    if self.at.curve and self.at.curve[-1][0] != self.at.step:  # the last steps may be the best
                        self._validate()
                    break
                self._one_step()
                self._set(took_s=before_s + time.monotonic() - began_s)
                if self.at.step % self.settings.validate_every == 0 or self.at.step == self.steps:
                    self._validate()
                if self.at.step % self.settings.save_every == 0 or self.at.step == self.steps:
                    self._save()
                step("tuning", self.at.step, self.steps)
        except KeyboardInterrupt:
            if self.world > 1 or not (self.at.curve or (self.folder / STATE).is_file()):
                raise  # other processes wait for us, or nothing whole was kept
            if not self.held:  # a step may have been cut in two: back to the last whole one
                self._load()
            ended = "stopped"
        souped = self._choose() if self._judges else 1
        return self._finish(ended, souped)

    def _one_step(self) -> None:
        """Gradients of `accumulate` batches, one move. All chance in it comes from the seed and the batches' numbers."""
        settings, number = self.settings, self.at.step
        # By the middle of the step: neither the first nor the last is for nothing.
        set_rate(self.optimiser, settings.rate, (number + 0.5) / self.steps, settings.schedule, settings.warm_up)
        self.objective.train()
        self.optimiser.zero_grad()
        tokens = 0
        for part in range(settings.accumulate):
            at = (number * settings.accumulate + part) * self.world + self.rank
            batch, seed = self.train[at], (settings.seed * 1_000_003 + at) * 4096
            tokens += batch.tokens
            last = part == settings.accumulate - 1
            loss = self._gradients.add(batch, seed, 1 / settings.accumulate, last)
            self._check(loss)
            if last:
                self._log("tuning/loss of a batch", number + 1, loss)
        self.scaler.unscale_(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self.weights.values(), settings.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.learner.stepped(number)
        if self.average is not None:
            self.average.follow(number)
        self._set(step=number + 1, tokens=self.at.tokens + tokens)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise Misuse(
                f"the loss is {loss} at step {self.at.step}; lower learning_rate (now {self.settings.rate:g}), "
                f'or set precision = "float32" (now {str(self.precision)[6:]}), and delete {self.folder}'
            )

    @property
    def _judges(self) -> bool:
        """Whether this process validates: the first alone, or all, where each holds a share of the weights."""
        return self.rank == 0 or self.sharded

    def _validate(self) -> None:
        """The loss of the newest slice; the best weights are kept."""
        if self.held is None or not self._judges:
            return
        with self._averaged():
            loss, at = self._held_loss(), self.at
            self._check(loss)
            self._log("tuning/loss of the newest slice", at.step, loss)
            kept = sorted([*at.kept, (loss, at.step)])[: self.settings.soup]
            if (loss, at.step) in kept:
                save_best(self.folder, self.weights, at.step, self.rank == 0)
        is_best = at.best is None or loss < at.best
        better = {"best": loss, "best_step": at.step, "worse": 0} if is_best else {"worse": at.worse + 1}
        self._set(curve=[*at.curve, (at.step, loss)], kept=kept, **better)

    def _held_loss(self) -> float:
        assert self.held is not None  # noqa: S101  (whoever asks has seen that)
        self.objective.eval()
        with torch.no_grad():
            some = [self.held[number] for number in range(min(VALIDATED, self.held.an_epoch))]
            return float(np.mean([float(self.objective(self.objective.whole(batch))) for batch in some]))

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """While the weights are their running average, if there is one."""
        return self.average.shown() if self.average is not None else contextlib.nullcontext()

    def _choose(self) -> int:
        """The weights that are kept: the best, or the mean of the best; without validations the last. Of how many."""
        if self.held is None:
            if self.average is not None:
                fill(self.weights, self.average.values)
            return 1
        steps = [step for _, step in self.at.kept]
        if len(steps) > 1:
            load_best(self.folder, self.weights, *steps)
            loss = self._held_loss()
            if self.at.best is None or loss < self.at.best:
                self._set(best=loss)
                return len(steps)
        load_best(self.folder, self.weights, steps[0])
        return 1

    def _verdict(self) -> str:
        """Why it should end now, or nothing."""
        if self.at.took_s > self.settings.minutes * 60:
            return "minutes"
        return "early" if self.held and self.at.worse >= self.settings.patience else ""

    def _save(self) -> None:
        """For all processes, since each may hold a share."""
        if self._judges:
            self._set(scale=self.scaler.get_scale(), ranks=self.learner.ranks())
            average = self.average.values if self.average is not None else {}
            more = self.learner.state() | {f"{AVERAGE}|{name}": value for name, value in average.items()}
            save_state(self.folder, self.weights, self.optimiser, more, self.at, self.rank == 0)

    def _load(self) -> None:
        """Go on from the saved state, or begin."""
        self.at, more = load_state(self.folder, self.weights, self.optimiser)
        if self.at.step and self.average is not None:
            fill(self.average.values, {name: more.pop(f"{AVERAGE}|{name}") for name in self.weights})
        self.learner.load_state(more, self.at.ranks)
        if self.at.step and self.scaler.is_enabled():
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": self.at.scale})

    def _set(self, **changes: Any) -> None:
        self.at = msgspec.structs.replace(self.at, **changes)

    def _finish(self, ended: str, souped: int) -> Tuned:
        tuned = report(self, ended, souped)
        learner = self._whole_learner() if self.sharded else self.learner
        if self.rank == 0:
            write_folder(learner, self.tokenizer, self.folder / "folder", self.out, tuned)
            shutil.rmtree(self.folder)
        return tuned

    def _whole_learner(self) -> Learner:
        """What learned, put together from all shares into the base once more."""
        found = {name: whole(value) for name, value in self.weights.items()}
        fresh = Objective(Learner(load(self.base)[0], self.settings, self.steps), self.settings, self.precision)
        fill(learning(fresh), found)
        return fresh.learner


def learning(objective: Objective) -> dict[str, torch.Tensor]:
    """The weights that learn, by name."""
    return {name: weight for name, weight in objective.named_parameters() if weight.requires_grad}
