"""Losses that tune a text tower, in torch: plain functions of tensors, each checked against a loop and its gradient.

Called by text_tuning.py. What is in a batch is for text_pairs.py and text_batches.py to say.
"""

import torch
from torch.nn import functional


def contrastive(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    log_q: torch.Tensor,
    same: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Mean over anchors of -log softmax of the own positive among all of the batch.

    anchors, positives: (N, D) unit rows. log_q: (N,), the log of how often a positive is drawn: taken off its logit, or
    what sells well would be a negative more often than it deserves. same: (N, N) bool, pairs that are no negatives though
    they are in the batch: bought together, the same item, the same text; the diagonal does not count.
    """
    own = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    logits = anchors @ positives.T / temperature - log_q
    logits = logits.masked_fill(same & ~own, -torch.inf)
    return functional.cross_entropy(logits, torch.arange(len(anchors), device=anchors.device))


def guessed(hidden: torch.Tensor, targets: torch.Tensor, words: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens to be guessed of -log softmax over the vocabulary.

    hidden: (N, T, D). targets: (N, T) int64, -1 where nothing is guessed. words: (V, D), the input's own embeddings;
    bias: (V,). Only the guessed places meet the vocabulary: it is 50 times a model's width.
    """
    chosen = targets >= 0
    return functional.cross_entropy(hidden[chosen] @ words.T + bias, targets[chosen])


def orthogonality(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """AdaLoRA's own term: mean over its factors P (d, r) and Q (r, d) of |PᵀP - I| and |QQᵀ - I|, Frobenius.

    Zhang et al. 2023, eq. 4. peft adds it only where a model makes its loss itself.
    """
    found = [torch.linalg.matrix_norm(m @ m.T - torch.eye(len(m)).to(m)) for p, q in pairs for m in (p.T, q)]
    return torch.stack(found).mean()
