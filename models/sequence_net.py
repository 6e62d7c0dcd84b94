"""The sequence tower as a torch module: a small transformer over what a user did last, and candidates kept apart.

Every token of the trail sees the trail; a candidate sees the trail and itself, never another candidate, so its score
does not depend on what else is asked (the mask of X's Phoenix ranker). Written in block form: scores of all tokens
against the trail's keys in one product, and each candidate's own q·k beside it; the dense (H+N)² mask costs as much and
is not bit-exact (measured). Called by sequence_training.py and, in a process of its own, by sequence_export.py.
"""

from typing import Any

import msgspec
import torch
from torch import nn

from recsys.profiles import PURCHASE

MASKED = -1e4  # of a logit of attention: e^-1e4 is 0, and float16 can hold it


class NetShape(msgspec.Struct, frozen=True):
    """Sizes of the tower. features: F; dim: D of text vectors; width: of tokens, divisible by heads."""

    features: int
    dim: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    hidden: tuple[int, ...] = (64, 32)  # of the network of the features alone, beside the tower
    outputs: int = 2


class SequenceNet(nn.Module):
    """Logits (B, N, outputs): a linear part and a small network of the features, and what the trail adds.

    features: (B, N, F) float32; candidates: (B, N) int64 and trail: (B, H) int64, rows of vectors, -1 where there is
    none; actions: (B, H) int64 in 0..3; marks: (B, H, 2) float32; vectors: (M, D) float32.
    """

    def __init__(self, shape: NetShape, mean: torch.Tensor, std: torch.Tensor, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)
        self.text = nn.Linear(shape.dim, shape.width)
        self.behaviour = nn.Linear(shape.features, shape.width)
        self.action = nn.Embedding(PURCHASE + 1, shape.width)
        self.marks = nn.Linear(2, shape.width)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(shape, dropout) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.skip = nn.Linear(shape.features, shape.outputs)
        self.deep = features_network(shape.features, shape.hidden, shape.outputs, dropout)
        self.head = nn.Linear(shape.width, shape.outputs)
        for last in (self.skip, self.deep[-1], self.head):  # a list begins with all its candidates equal
            assert isinstance(last, nn.Linear)  # noqa: S101 - for the type checker
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self,
        features: torch.Tensor,
        candidates: torch.Tensor,
        trail: torch.Tensor,
        actions: torch.Tensor,
        marks: torch.Tensor,
        vectors: torch.Tensor,
    ) -> torch.Tensor:
        """See the class."""
        h = trail.shape[1]
        rows = torch.cat([trail, candidates], 1)
        half = self.text.weight.dtype  # the graph for GPUs computes in float16 what follows, see sequence_export.py
        text = self.text(vectors[rows.clamp(min=0)].to(half))
        scaled = ((features - self.mean) / self.std).clamp(-5, 5).to(half)
        about = torch.cat([self.action(actions) + self.marks(marks.to(half)), self.behaviour(scaled)], 1)
        tokens = self.drop(text + about)
        hidden = torch.where(trail < 0, MASKED, 0.0)[:, None, None, :].to(half)
        for layer in self.layers:
            tokens = layer(tokens, hidden, h)
        logits: torch.Tensor = self.skip(scaled) + self.deep(scaled) + self.head(self.norm(tokens[:, h:]))
        return logits.float()


def features_network(width: int, hidden: tuple[int, ...], outputs: int, dropout: float) -> nn.Sequential:
    """The network of the features alone: what `Network` has beside its linear part, and this tower beside its own."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.SiLU(), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class Layer(nn.Module):
    """One pre-norm layer: attention to the trail (a candidate: and to itself), then a network of each token alone."""

    def __init__(self, shape: NetShape, dropout: float) -> None:
        super().__init__()
        width = shape.width
        self.heads, self.size = shape.heads, width // shape.heads
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.alone = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor, hidden: torch.Tensor, h: int) -> torch.Tensor:
        """tokens: (B, H+N, width), the trail first; hidden: (B, 1, 1, H), MASKED where there is no item; h: H."""
        b, n, width = tokens.shape
        mixed = self.mix(self.norm(tokens)).view(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        q, k, v = mixed[0] * self.size**-0.5, mixed[1], mixed[2]  # (B, heads, H+N, size)
        to_trail = q @ k[:, :, :h].transpose(2, 3) + hidden
        itself = (q * k).sum(3, keepdim=True)
        itself = torch.cat([torch.full_like(itself[:, :, :h], MASKED), itself[:, :, h:]], 2)
        weights = self.drop(torch.softmax(torch.cat([to_trail, itself], 3).float(), 3).to(tokens.dtype))
        seen = weights[..., :h] @ v[:, :, :h] + weights[..., h:] * v
        tokens = tokens + self.drop(self.out(seen.transpose(1, 2).reshape(b, n, width)))
        out: torch.Tensor = tokens + self.drop(self.alone(tokens))
        return out


def arrays_of(net: SequenceNet) -> dict[str, Any]:
    """Its weights by name, as safetensors keeps them."""
    return {name: value.detach().cpu().numpy() for name, value in net.state_dict().items()}
