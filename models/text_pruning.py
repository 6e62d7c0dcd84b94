"""Takes whole layers and attention heads out of a text tower's model: those whose absence moves the vectors least.

Importance is measured, not guessed from weights: a layer or a head is left out, some of the shop's texts are read again,
and the whitened vectors are compared with the original's. Layers go one by one, each choice knowing the earlier ones;
heads all by one ranking, over all layers.
    a layer   leaves the list of layers, and the configuration says one fewer
    a head    its way out becomes zeros; the shapes of the weights stay, so that any configuration can hold it
Either way the folder remains an ordinary Hugging Face folder, which `slatecast tune-text` can heal. Zeroed heads cost
nothing where it serves: `shrink_heads` cuts them out before the graph is written.
Sanh et al. 2020 (layers left out), Michel et al. 2019 (heads). Called by compression.py and, for shrinking, by
text_export.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from transformers.pytorch_utils import Conv1D

from models.text_adapters import layers_of
from recsys.errors import Misuse, ModelRejected

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Likeness = Callable[[], float]  # of the model as it is now to the original: mean whitened cosine
Tell = Callable[[str, int, int], None]
# Where a layer keeps its attention's way in (one map, or query, key and value) and out, in the kinds that are known: BERT and
# RoBERTa, Llama with Qwen, Mistral and Gemma, GPT-2.
WAYS = (
    (("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense"),
    (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj"),
    (("attn.c_attn",), "attn.c_proj"),
)


class Attention(msgspec.Struct, frozen=True):
    """One layer's attention. A unit is a head, or the heads that share one's keys; width: of a unit in the way out."""

    ways_in: list[Any]
    way_out: Any
    owner: Any
    units: int
    width: int

    def columns(self, unit: int) -> slice:
        """What the way out reads of a unit."""
        return slice(unit * self.width, (unit + 1) * self.width)

    def alive(self) -> list[int]:
        """The units whose way out is not all zeros."""
        weight = _outward(self.way_out)
        return [unit for unit in range(self.units) if bool(weight[:, self.columns(unit)].any())]

    @torch.no_grad()
    def silence(self, unit: int) -> None:
        """Make a unit say nothing."""
        _outward(self.way_out)[:, self.columns(unit)] = 0


def attentions(model: "PreTrainedModel") -> list[Attention]:
    """The attention of each layer. Raises Misuse for a kind of model that is not known."""
    config = model.config
    units = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    found = []
    for layer in layers_of(model):
        parts = dict(layer.named_modules())
        ways = next(((ins, out) for ins, out in WAYS if {*ins, out} <= parts.keys()), None)
        if ways is None:
            raise Misuse(f"heads of {type(model).__name__} are not known to be prunable; set heads = 0 and drop layers")
        ins, out = ways
        owner = parts[ins[0].rpartition(".")[0]]
        width = _outward(parts[out]).shape[1] // units
        found.append(Attention([parts[name] for name in ins], parts[out], owner, units, width))
    return found


def drop_layers(model: "PreTrainedModel", keep: int, likeness: Likeness, tell: Tell) -> list[int]:
    """Leave `keep` layers. Returns those that stay, as numbers of the original. Raises Misuse if there are not so many.

    Each time all that are left are tried: for L layers O(L · dropped) readings of the texts.
    """
    kept = list(range(len(layers_of(model))))
    if not 0 < keep <= len(kept):
        raise Misuse(f"layers = {keep}: the model has {len(kept)}; name fewer, at least 1")
    total = len(kept)
    while len(kept) > keep:
        tell("choosing layers", total - len(kept), total - keep)
        likes = []
        for place in range(len(kept)):
            with _without(model, place):
                likes.append(likeness())
        place = max(range(len(kept)), key=likes.__getitem__)
        keep_layers(model, [at for at in range(len(kept)) if at != place])
        del kept[place]
    return kept


def keep_layers(model: "PreTrainedModel", places: list[int]) -> None:
    """Keep these layers only, in this order, and say so in the configuration."""
    layers, config = layers_of(model), model.config
    before = len(layers)
    held = [layers[place] for place in places]
    for name, value in list(vars(config).items()):  # what a configuration says of each layer: layer_types and its like
        if isinstance(value, list) and len(value) == before and name.startswith("layer"):
            setattr(config, name, [value[place] for place in places])
    layers._modules.clear()  # noqa: SLF001  (a ModuleList has no public way)
    layers.extend(held)
    config.num_hidden_layers = len(held)
    for number, layer in enumerate(held):  # a decoder's cache, and GPT-2's scale, know layers by number
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # type: ignore[assignment]


def drop_heads(model: "PreTrainedModel", share: float, likeness: Likeness, tell: Tell) -> list[list[int]]:
    """Silence a share of all heads, at least one of each layer staying. Returns the units that stay, by layer.

    Heads that share their keys (grouped queries) go together. O(heads) readings of the texts.
    """
    layers = attentions(model)
    places = [(at, unit) for at, one in enumerate(layers) for unit in one.alive()]
    likes: dict[tuple[int, int], float] = {}
    for done, (at, unit) in enumerate(places):
        tell("choosing heads", done, len(places))
        weight = _outward(layers[at].way_out)
        before = weight.detach().clone()
        layers[at].silence(unit)
        likes[at, unit] = likeness()
        with torch.no_grad():
            weight.copy_(before)
    left = {at: len(one.alive()) for at, one in enumerate(layers)}
    going = round(share * len(places))
    for at, unit in sorted(places, key=lambda place: -likes[place]):
        if going and left[at] > 1:
            layers[at].silence(unit)
            left[at] -= 1
            going -= 1
    return [one.alive() for one in layers]


def keep_silent(model: "PreTrainedModel") -> None:
    """Have silenced heads stay so while the rest learns: their way out gets no gradient, so that no optimiser moves it.

    Else the first step brings them back, each a little, and nothing can be cut. Not where weights are cut into shares,
    nor where adapters are merged into them. A model of an unknown kind is left as it is.
    """
    for one in _known(model):
        silent = set(range(one.units)) - set(one.alive())
        if silent and one.way_out.weight.requires_grad:
            learns = torch.ones_like(one.way_out.weight)
            for unit in silent:
                _outward(one.way_out, learns)[:, one.columns(unit)] = 0
            one.way_out.weight.register_hook(lambda gradient, learns=learns: gradient * learns.to(gradient.device))


@torch.no_grad()
def shrink_heads(model: "PreTrainedModel") -> int:
    """Cut silenced heads out of the weights, which change their shapes: for a graph, not for a folder. Returns how many.

    A model of an unknown kind is left as it is.
    """
    cut = 0
    for one in _known(model):
        alive = one.alive() or [0]  # one must stay, or there is nothing to reshape
        if len(alive) == one.units:
            continue
        cut += one.units - len(alive)
        for way in one.ways_in:
            outputs = _outward(way).shape[0]
            parts = 3 if len(one.ways_in) == 1 else 1  # GPT-2: query, key and value one behind the other
            each = outputs // parts // one.units
            rows = [part * outputs // parts + unit * each + at for part in range(parts) for unit in alive for at in range(each)]  # fmt: skip
            _take(way, rows, outward=True)
        _take(one.way_out, [at for unit in alive for at in range(one.columns(unit).start, one.columns(unit).stop)], outward=False)  # fmt: skip
        if hasattr(one.owner, "split_size"):
            one.owner.split_size = len(alive) * one.width
    return cut


def _known(model: "PreTrainedModel") -> list[Attention]:
    """The attention of each layer, none of a model of an unknown kind."""
    try:
        return attentions(model)
    except (Misuse, ModelRejected):
        return []


def _outward(way: Any, weight: torch.Tensor | None = None) -> torch.Tensor:
    """A linear map's weight, or one of its shape, as (outputs, inputs), a view: GPT-2 keeps it turned."""
    found: torch.Tensor = way.weight if weight is None else weight
    return found.T if isinstance(way, Conv1D) else found


def _take(way: Any, rows: list[int], outward: bool) -> None:
    """Keep some outputs of a linear map, or some of its inputs."""
    chosen, axis = torch.tensor(rows), int(outward == isinstance(way, Conv1D))
    way.weight = torch.nn.Parameter(way.weight.index_select(axis, chosen), requires_grad=False)
    if outward and way.bias is not None:
        way.bias = torch.nn.Parameter(way.bias.index_select(0, chosen), requires_grad=False)
    if isinstance(way, Conv1D):
        way.nf = way.weight.shape[1]
    elif outward:
        way.out_features = len(rows)
    else:
        way.in_features = len(rows)


class _Skipped(torch.nn.Module):
    """In the place of a layer that is left out for a moment: gives what it gets, as a layer would."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(layer, "attention_type", "full_attention")

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden


@contextmanager
def _without(model: "PreTrainedModel", place: int) -> Iterator[None]:
    layers = layers_of(model)
    layer = layers[place]
    layers[place] = _Skipped(layer)
    try:
        yield
    finally:
        layers[place] = layer
