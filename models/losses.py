"""Losses of ranking, in torch. Called by training.py and sequence_training.py."""

from typing import Any

import torch

SHOWN = 10  # items of a list
SOFT = 0.5  # logits: how soft the border between shown and not shown is


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


def all_heads(
    logits: torch.Tensor, bought: torch.Tensor, clicked: torch.Tensor, unseen: torch.Tensor, of_list: torch.Tensor
) -> torch.Tensor:
    """`listwise` of head `all` over all rows, of `new` over those never bought, of `click`, if there, over all.

    logits: (N, 2 or 3), columns as HEADS.
    """
    loss = listwise(logits[:, 0], bought, of_list) + listwise(logits[unseen, 1], bought[unseen], of_list[unseen])
    return loss + listwise(logits[:, 2], clicked, of_list) if logits.shape[1] > 2 else loss


def disperse(
    logits: torch.Tensor, rows: torch.Tensor, bought: torch.Tensor, of_list: torch.Tensor, vectors: torch.Tensor
) -> torch.Tensor:
    """Sum over lists of Σ_j p_j (1 - y_j) M_j: what is likely to be shown, is not wanted, and repeats the rest of its list.

    p: `soft_top` of a list's logits, its chance to be among SHOWN; y: bought; M_j = Σ_(l≠j) p_l K_jl / (SHOWN - 1), the
    redundancy of j, with K the cosine of text vectors in [0, 1]. Vectors do not learn, or they would spread instead of the
    lists. The differentiable form of the article's L_disp; its literal one is `recsys.list_metrics.literal_losses`.
    Both it and L_acc lie in [0, SHOWN] a list. logits: (N,), N > 0; rows: (N,) int64 of vectors (M, D) unit rows; of_list:
    (N,) int64, ascending. Lists of more than SHOWN count.
    """
    counts = torch.bincount(of_list)
    place = torch.arange(len(of_list)) - (counts.cumsum(0) - counts)[of_list]
    shape = (len(counts), int(counts.max()))
    there = torch.zeros(shape, dtype=torch.bool).index_put((of_list, place), torch.tensor(True))
    padded = torch.zeros(shape, dtype=logits.dtype).index_put((of_list, place), logits)
    unwanted = torch.zeros(shape, dtype=torch.bool).index_put((of_list, place), ~bought)
    near = vectors[torch.zeros(shape, dtype=rows.dtype).index_put((of_list, place), rows)]
    alike = (near @ near.transpose(1, 2)).clamp(0, 1)
    alike = alike * ~torch.eye(shape[1], dtype=torch.bool)
    chance: torch.Tensor = SoftTop.apply(padded, there)
    each = (chance * unwanted * (alike @ chance[..., None])[..., 0]).sum(1)
    return (each * (counts > SHOWN)).sum() / (SHOWN - 1)  # a shorter list will be shown whole, in whatever order


class SoftTop(torch.autograd.Function):
    """The chance of each of a list's logits to be among its SHOWN best: σ((z - t) / SOFT), t such that they sum to SHOWN.

    A softmax will not do: without its diagonal the quadratic form above would fall to one single item. t is found by
    bisection; the gradient goes through it: w ⊙ (g - <w, g> / Σw), w = p (1 - p) / SOFT.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """logits: (B, N), a row a list; there: (B, N) bool, more than SHOWN in a row. (B, N) in (0, 1), 0 elsewhere."""
        low = logits.masked_fill(~there, torch.inf).amin(1, keepdim=True) - 20 * SOFT
        high = logits.masked_fill(~there, -torch.inf).amax(1, keepdim=True) + 20 * SOFT
        for _ in range(60):
            middle = (low + high) / 2
            many = (torch.sigmoid((logits - middle) / SOFT) * there).sum(1, keepdim=True) > SHOWN
            low, high = torch.where(many, middle, low), torch.where(many, high, middle)
        chance = torch.sigmoid((logits - (low + high) / 2) / SOFT) * there
        ctx.save_for_backward(chance)
        return chance

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None]:
        """By the implicit function theorem."""
        (chance,) = ctx.saved_tensors
        weight = chance * (1 - chance) / SOFT
        mean = (weight * slope).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1e-12)
        return weight * (slope - mean), None
