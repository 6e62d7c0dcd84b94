"""Fits the network of the features on training lists: a linear part, a small network beside it, two heads.

Called by training.py. The tower beside it: sequence_training.py.
"""

import math
import time

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from models.examples import Lists, measure
from models.fitting import Descent, Log, Plan, descend
from models.list_worth import mean_ndcg
from models.losses import all_heads, disperse
from models.scorer import CLIP, Network, mean_of
from models.sequence_net import features_network
from models.train_settings import Step, TrainSettings


def fit(
    lists: Lists,
    settings: TrainSettings,
    step: Step,
    vectors: NDArray[np.float32] | None = None,
    held: Lists | None = None,
    until: float = 1.0,
    deadline_s: float = math.inf,
    log: Log = lambda name, at, value: None,
) -> tuple[Network, Descent]:
    """List-wise softmax for each head: -mean over the bought of log softmax over the list (unseen rows for `new`; over the
    clicked for `click`, where there are some).

    vectors: of the catalogue, (M, D), for beta. held: lists on which it is looked at meanwhile. Several members are one
    network, their mean; each has an equal share of the time, Ctrl-C ends all, the descent is the last one's.
    """
    fitted: list[Network] = []
    for number in range(settings.members):
        now_s = time.monotonic()
        until_s = now_s + (deadline_s - now_s) / (settings.members - number)
        own = msgspec.structs.replace(settings, seed=settings.seed + number)
        network, descent = _fit_one(lists, own, step, vectors, held, until, until_s, log)
        fitted.append(network)
        if descent.ended == "stopped":
            break
    return mean_of(fitted), descent


def _fit_one(
    lists: Lists,
    settings: TrainSettings,
    step: Step,
    vectors: NDArray[np.float32] | None,
    held: Lists | None,
    until: float,
    deadline_s: float,
    log: Log,
) -> tuple[Network, Descent]:
    torch.manual_seed(settings.seed)
    torch.set_num_threads(1)  # a step is tiny: two threads wait for each other, 71–217 s for what one does in 28
    mean, std = measure(lists.features)
    scaled = torch.from_numpy(np.clip((lists.features - mean) / std, -CLIP, CLIP).astype(np.float32))
    bought, clicked, unseen = (torch.from_numpy(of) for of in (lists.bought, lists.clicked, ~lists.seen))
    at_row = torch.from_numpy(lists.rows)
    table = torch.from_numpy(vectors) if vectors is not None and settings.beta else None
    starts = np.concatenate([[0], lists.ends[:-1]])
    linear, deep = torch.nn.Linear(len(mean), lists.heads), torch.nn.Sequential()
    if settings.hidden:
        deep = features_network(len(mean), settings.hidden, lists.heads, settings.dropout)
    for last in (linear, *deep[-1:]):  # a list begins with all its candidates equal
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)

    def loss_of(batch: NDArray[np.int64], moved: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        spans = [(int(starts[at]), int(lists.ends[at])) for at in batch.tolist()]
        rows = torch.cat([torch.arange(*span) for span in spans])
        lengths = torch.tensor([end - start for start, end in spans])
        of_list = torch.repeat_interleave(torch.arange(len(spans)), lengths)
        inputs = scaled[rows]
        if settings.drop_features:
            seen = torch.rand(len(spans), inputs.shape[1]) >= settings.drop_features
            inputs = inputs * seen[of_list]
        if settings.adversarial:
            inputs = (inputs if moved is None else inputs + moved).requires_grad_()
        logits = linear(inputs)
        if len(deep):
            logits = logits + deep(inputs)
        loss = settings.alpha * all_heads(logits, bought[rows], clicked[rows], unseen[rows], of_list)
        if table is not None:
            loss = loss + settings.beta * disperse(logits[:, 0], at_row[rows], bought[rows], of_list, table)
        return loss / len(batch), inputs

    network = torch.nn.ModuleList([linear, deep])

    def weights() -> Network:
        return Network(*_arrays(linear), mean, std, [_arrays(at) for at in deep if isinstance(at, torch.nn.Linear)])

    judge = (lambda: mean_ndcg(weights().score(held.features), held)) if held is not None else None
    plan = Plan("fitting the scorer", settings.epochs, settings.batch, settings.learning_rate, until, deadline_s)
    descent = descend(network, loss_of, len(lists.ends), plan, settings, judge, step, log)
    return weights(), descent


def _arrays(layer: torch.nn.Linear) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy()
