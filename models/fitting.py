"""The loop that fits a scorer. The features' network and the sequence tower go through the same one.

    rate of the step → loss of some lists → the same where it hurts most → one move → running mean of the weights
    every so many steps a look at the newest week; with patience, its best weights are kept

Called by training.py and sequence_training.py; what a list's loss is, is theirs and losses.py's.
"""

import copy
import math
import time
from collections.abc import Callable
from typing import Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.schedules import make_optimiser, set_rate
from models.train_settings import Step, TrainSettings
from recsys.errors import Misuse

Ended = Literal["", "early", "minutes", "stopped"]  # by itself; by patience; by time; by Ctrl-C
# Of some lists, by their numbers: the loss of one, and the inputs it was computed from. moved: what is added to them.
LossOf = Callable[[NDArray[np.int64], torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]
Log = Callable[[str, int, float], None]  # (name, step, value)


class Plan(msgspec.Struct, frozen=True):
    """How far and how fast. until: the share of the steps after which to end; deadline_s: of time.monotonic."""

    label: str
    epochs: int
    batch: int
    rate: float
    until: float = 1.0
    deadline_s: float = math.inf


class Descent(msgspec.Struct, frozen=True):
    """What came of it. best: the share of the steps at which the weights were those that are kept."""

    ended: Ended
    best: float
    curve: list[tuple[int, float]]


def descend(
    network: torch.nn.Module,
    loss_of: LossOf,
    count: int,
    plan: Plan,
    settings: TrainSettings,
    judge: Callable[[], float] | None,
    step: Step,
    log: Log = lambda name, at, value: None,
) -> Descent:
    """Fit the network on `count` lists, in place; it ends in evaluation mode.

    judge: what the network is worth on the newest week, more is better. Batches are drawn from torch's seed. Ctrl-C ends
    it with what it has. Raises Misuse where the loss is no number.
    """
    batches = [b.numpy() for _ in range(plan.epochs) for b in torch.randperm(count).split(plan.batch)]
    optimiser = make_optimiser(settings.optimiser, list(network.parameters()), plan.rate, settings.weight_decay)
    mean = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.average)) if settings.average else None
    began_s, curve = time.monotonic(), list[tuple[int, float]]()
    ended: Ended = ""
    best, kept, worse = -math.inf, None, 0
    steps, done = max(1, round(len(batches) * plan.until)), 0
    try:
        for batch in batches[:steps]:
            spent = (time.monotonic() - began_s) / max(plan.deadline_s - began_s, 1e-9)
            if done and spent >= 1:
                ended = "minutes"
                break
            share = min(max(done / max(len(batches) - 1, 1), spent), 1.0)
            set_rate(optimiser, plan.rate, share, settings.schedule, settings.warm_up)
            network.train()
            loss = _move(network, optimiser, loss_of, batch, settings)
            if not math.isfinite(loss):
                raise Misuse(
                    f"{plan.label}: the loss is {loss} at step {done + 1} of {len(batches)}; lower learning_rate (now "
                    f"{plan.rate:g}), beta or adversarial"
                )
            done += 1
            if mean:
                mean.update_parameters(network)
            log(f"{plan.label}/loss", done, loss)
            step(plan.label, done, len(batches))
            if judge and (done % settings.validate_every == 0 or done == steps):
                worth = _judge(network, mean, judge)
                curve.append((done, worth))
                log(f"{plan.label}/ndcg_at_10", done, worth)
                worse += 1
                if worth > best:
                    best, worse, kept = worth, 0, (done, copy.deepcopy((mean or network).state_dict()))
                if settings.patience and worse >= settings.patience:
                    ended = "early"
                    break
    except KeyboardInterrupt:
        if not done:
            raise
        ended = "stopped"
    if settings.patience and kept:
        done = kept[0]
        (mean or network).load_state_dict(kept[1])
    if mean:
        network.load_state_dict(mean.module.state_dict())
    network.eval()
    return Descent(ended, done / len(batches), curve)


def _move(
    network: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    loss_of: LossOf,
    batch: NDArray[np.int64],
    settings: TrainSettings,
) -> float:
    """One step, its gradient cut; adversarial: with the gradient of moved inputs added (Miyato et al. 2017)."""
    optimiser.zero_grad()
    loss, inputs = loss_of(batch, None)
    if settings.adversarial:
        (slope,) = torch.autograd.grad(loss, inputs, retain_graph=True)
        length = slope.flatten(1).norm(dim=1).clamp(min=1e-12)
        moved = settings.adversarial * slope / length.view(-1, *[1] * (slope.dim() - 1))
        loss = (loss + loss_of(batch, moved)[0]) / 2
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
    optimiser.step()
    return float(loss.detach())


def _judge(network: torch.nn.Module, mean: AveragedModel | None, judge: Callable[[], float]) -> float:
    """What it is worth as it would serve: without dropout, by the mean of its weights if there is one."""
    network.eval()
    if mean is None:
        return judge()
    own = copy.deepcopy(network.state_dict())
    network.load_state_dict(mean.module.state_dict())
    worth = judge()
    network.load_state_dict(own)
    return worth
