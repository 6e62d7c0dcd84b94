"""Losses of ranking, in torch. Called by training.py and sequence_training.py."""

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def listwise(logits: torch.Tensor, bought: torch.Tensor, of_list: torch.Tensor) -> torch.Tensor:
    """Sum over lists of -mean over the bought of log softmax; lists without a purchase say nothing.

    logits: (N,); bought: (N,) bool; of_list: (N,) int64, the number of each row's list.
    """
    count = int(of_list[-1]) + 1 if len(of_list) else 0
    largest = torch.full((count,), -torch.inf).scatter_reduce(0, of_list, logits.detach(), "amax")
    total = torch.zeros(count).index_add(0, of_list, torch.exp(logits - largest[of_list]))
    share = logits - largest[of_list] - torch.log(total)[of_list]
    hits = torch.zeros(count).index_add(0, of_list[bought], torch.ones(int(bought.sum())))
    sums = torch.zeros(count).index_add(0, of_list[bought], share[bought])
    return -(sums / hits.clamp(min=1)).sum()


def both_heads(logits: torch.Tensor, bought: torch.Tensor, unseen: torch.Tensor, of_list: torch.Tensor) -> torch.Tensor:
    """`listwise` of head `all` over all rows, and of head `new` over those never bought. logits: (N, 2)."""
    return listwise(logits[:, 0], bought, of_list) + listwise(logits[unseen, 1], bought[unseen], of_list[unseen])


def descend(loss: torch.Tensor, network: torch.nn.Module, optimiser: Optimizer, schedule: LRScheduler) -> None:
    """One step, its gradient cut to a norm of 1."""
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()
    schedule.step()
