"""Each term of a text tower's loss is what a loop over its definition says, and its gradient is its own."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from models.text_losses import contrastive, guessed, orthogonality

COUNT, WIDTH, WORDS = 5, 4, 7


def unit(seed: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(COUNT, WIDTH, generator=made, dtype=torch.float64), dim=1)


@pytest.fixture
def log_q() -> torch.Tensor:
    return torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64).log()


@pytest.fixture
def same() -> torch.Tensor:
    same = torch.eye(COUNT, dtype=torch.bool)
    same[0, 3] = same[2, 1] = True
    return same


def test_contrastive_is_each_anchors_softmax_over_the_positives_that_may_be_told_apart(
    log_q: torch.Tensor, same: torch.Tensor
) -> None:
    anchors, positives = unit(0), unit(1)
    total = 0.0
    for at in range(COUNT):
        shares = {}
        for other in range(COUNT):
            if other == at or not same[at, other]:
                cosine = sum(float(a * p) for a, p in zip(anchors[at], positives[other], strict=True))
                shares[other] = math.exp(cosine / 0.1) / math.exp(float(log_q[other]))
        total -= math.log(shares[at] / sum(shares.values())) / COUNT
    assert float(contrastive(anchors, positives, log_q, same, 0.1)) == pytest.approx(total, rel=1e-12)


def test_what_was_bought_with_an_anchor_does_not_push_it(log_q: torch.Tensor) -> None:
    anchors = unit(0)
    alone = unit(1).requires_grad_()
    same_for_first = torch.zeros(COUNT, COUNT, dtype=torch.bool)
    same_for_first[0, 3] = True
    logits = contrastive(anchors, alone, log_q, same_for_first, 0.1)
    (gradient,) = torch.autograd.grad(logits, alone)
    expected = unit(1).requires_grad_()
    rows = anchors @ expected.T / 0.1 - log_q
    first = rows[0, [0, 1, 2, 4]].log_softmax(0)[0]
    rest = torch.stack([rows[at].log_softmax(0)[at] for at in range(1, COUNT)]).sum()
    (by_hand,) = torch.autograd.grad(-(first + rest) / COUNT, expected)
    torch.testing.assert_close(gradient, by_hand)


def test_an_item_that_sells_twice_as_often_as_another_is_corrected_for_it() -> None:
    anchors = positives = torch.eye(2, dtype=torch.float64)
    none = torch.zeros(2, 2, dtype=torch.bool)
    even = contrastive(anchors, positives, torch.zeros(2, dtype=torch.float64), none, 1.0)
    skewed = contrastive(anchors, positives, torch.tensor([2 / 3, 1 / 3], dtype=torch.float64).log(), none, 1.0)
    own, other = math.e, 1.0
    assert float(even) == pytest.approx(-math.log(own / (own + other)))
    by_hand = [own / 2 / (own / 2 + other), own / (own + other / 2)]
    assert float(skewed) == pytest.approx(-sum(map(math.log, by_hand)) / 2)


def test_guessed_words_are_a_softmax_over_the_vocabulary_at_the_hidden_places_only() -> None:
    made = torch.Generator().manual_seed(0)
    hidden, words = (
        torch.randn(*shape, generator=made, dtype=torch.float64) for shape in ((2, 3, WIDTH), (WORDS, WIDTH))
    )
    bias, targets = torch.randn(WORDS, generator=made, dtype=torch.float64), torch.tensor([[-1, 4, -1], [0, -1, 6]])
    logs = []
    for row, place, target in ((0, 1, 4), (1, 0, 0), (1, 2, 6)):
        scores = [float(hidden[row, place] @ words[word] + bias[word]) for word in range(WORDS)]
        logs.append(scores[target] - math.log(sum(map(math.exp, scores))))
    assert float(guessed(hidden, targets, words, bias)) == pytest.approx(-sum(logs) / 3, rel=1e-12)


def test_orthogonality_is_nothing_for_orthonormal_factors_and_the_distance_to_them_else() -> None:
    rotation = torch.linalg.qr(torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    assert float(orthogonality([(rotation, rotation.T)])) == pytest.approx(0, abs=1e-12)
    p, q = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0]])
    by_p = math.sqrt((1 - 1) ** 2 + 2**2 + 2**2 + (5 - 1) ** 2)
    assert float(orthogonality([(p, q)])) == pytest.approx((by_p + 3) / 2)


def test_every_term_passes_the_gradient_check(log_q: torch.Tensor, same: torch.Tensor) -> None:
    made = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made, dtype=torch.float64, requires_grad=True)

    targets = torch.tensor([[1, -1], [3, 6]])
    assert gradcheck(lambda a, p: contrastive(a, p, log_q, same, 0.5), (drawn(COUNT, WIDTH), drawn(COUNT, WIDTH)))
    assert gradcheck(lambda h, w, b: guessed(h, targets, w, b), (drawn(2, 2, WIDTH), drawn(WORDS, WIDTH), drawn(WORDS)))
    assert gradcheck(lambda p, q: orthogonality([(p, q)]), (drawn(4, 2), drawn(2, 3)))
