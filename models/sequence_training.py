"""Fits the sequence tower on training lists, beside the features' network and with the same loss.

Called by training.py after the features' network is fitted; only there, and in sequence_export.py, is torch loaded.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.examples import Lists, measure
from models.fitting import Descent, Log, Plan, descend
from models.losses import all_heads
from models.sequence_net import NetShape, SequenceNet
from models.train_settings import Step, TrainSettings

# Of a list all purchases and clicks are kept, the candidates that the features rank first by any head, and a draw of the
# others that stands for all of them: without log(others / drawn) on their logits new items lose half of their accuracy.
FIRST, DRAWN = 40, 24


def fit_sequence(
    lists: Lists,
    base: NDArray[np.float32],
    vectors: NDArray[np.float32],
    settings: TrainSettings,
    step: Step,
    log: Log = lambda name, at, value: None,
    deadline_s: float = math.inf,
) -> tuple[SequenceNet, Descent]:
    """A tower for these lists. base: (N, H), the features' logits, by which the first candidates are chosen.

    2–4 minutes for 8,000 lists on one core.
    """
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    mean, std = measure(lists.features)
    shape = NetShape(
        features=len(mean),
        dim=vectors.shape[1],
        width=settings.tower_width,
        layers=settings.tower_layers,
        hidden=settings.hidden,
        outputs=lists.heads,
    )
    net = SequenceNet(shape, torch.from_numpy(mean), torch.from_numpy(std), settings.tower_dropout)
    table, spread = torch.from_numpy(vectors), torch.from_numpy(std)

    def loss_of(batch: NDArray[np.int64], moved: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        rows, weight = _draw(lists, base, batch, rng)
        there = torch.from_numpy(rows >= 0)
        at = rows.clip(min=0)
        inputs = torch.from_numpy(lists.features[at])
        if settings.adversarial:
            inputs = (inputs if moved is None else inputs + moved * spread).requires_grad_()
        trails = augment({name: of[batch] for name, of in lists.trails.items()}, settings, rng)
        scored = net(
            inputs,
            torch.from_numpy(np.where(rows >= 0, lists.rows[at], -1)),
            *(torch.from_numpy(trails[name]) for name in ("trail", "actions", "marks")),
            table,
        )
        logits = (scored + torch.from_numpy(weight[..., None]))[there]
        of_list = torch.arange(len(batch))[:, None].expand(there.shape)[there]
        bought, clicked, unseen = (torch.from_numpy(of[at])[there] for of in (lists.bought, lists.clicked, ~lists.seen))
        return all_heads(logits, bought, clicked, unseen, of_list) / len(batch), inputs

    plan = Plan(
        "fitting the sequence tower",
        settings.tower_epochs,
        settings.tower_batch,
        settings.tower_rate,
        deadline_s=deadline_s,
    )
    return net, descend(net, loss_of, len(lists.ends), plan, settings, None, step, log)


def augment(
    trails: dict[str, NDArray[Any]], settings: TrainSettings, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Trails as they might have been: cut to their newer part, items hidden. Left as they are where settings say nothing.

    trails: as of `pad_trails`, newest first, B of them. The third usual way, to shuffle what was bought together, is built
    into the tower: it reads a trail as a set, with ages (Xie et al. 2022 have all three).
    """
    if not (settings.tower_crop or settings.tower_mask):
        return trails
    trail = trails["trail"]
    count, length = trail.shape
    known = (trail >= 0).sum(axis=1)
    cropped = rng.random(count) < settings.tower_crop
    kept = np.where(cropped, np.ceil(known * rng.random(count)), known)
    hidden = (np.arange(length) >= kept[:, None]) | (rng.random(trail.shape) < settings.tower_mask)
    return {**trails, "trail": np.where(hidden, -1, trail)}


def _draw(
    lists: Lists, base: NDArray[np.float32], batch: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of each list that are looked at, -1 padded, and the log of how many each stands for: (B, R)."""
    starts = np.concatenate([[0], lists.ends[:-1]])
    chosen, weights = [], []
    for list_at in batch.tolist():
        start, end = int(starts[list_at]), int(lists.ends[list_at])
        own = base[start:end]
        keep = lists.bought[start:end] | lists.clicked[start:end]
        for head in range(own.shape[1]):
            keep[np.argsort(-own[:, head], kind="stable")[:FIRST]] = True
        others = np.flatnonzero(~keep)
        drawn = rng.permutation(others)[:DRAWN]
        chosen.append(start + np.concatenate([np.flatnonzero(keep), drawn]))
        stands = np.log(len(others) / len(drawn)) if len(drawn) else 0.0
        weights.append(np.concatenate([np.zeros(keep.sum()), np.full(len(drawn), stands)]))
    most = max(map(len, chosen))
    rows, weight = np.full((len(batch), most), -1, np.int64), np.zeros((len(batch), most), np.float32)
    for at, (some, heavy) in enumerate(zip(chosen, weights, strict=True)):
        rows[at, : len(some)], weight[at, : len(some)] = some, heavy
    return rows, weight


def score_lists(net: SequenceNet, lists: Lists, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The tower's logits of each row of some lists, (N, H); in torch, for judging before an export."""
    logits = np.zeros((len(lists.rows), net.shape.outputs), np.float32)
    table, start = torch.from_numpy(vectors), 0
    with torch.no_grad():
        for at, end in enumerate(lists.ends.tolist()):
            one = slice(start, end)
            trail = (torch.from_numpy(lists.trails[name][at : at + 1]) for name in ("trail", "actions", "marks"))
            inputs = (torch.from_numpy(lists.features[one][None]), torch.from_numpy(lists.rows[one][None]))
            logits[one] = net(*inputs, *trail, table)[0].numpy()
            start = end
    return logits
