"""What of a text tower learns: all, the top layers, the last normalisation, or an adapter; and how it ends in the folder.

Found by what modules do, not by their names, so that BERT, GPT-2, Llama and their kin are one case: the layers are the
list that is as long as the configuration says, the last normalisation is the one whose output is the model's. LoRA,
AdaLoRA and IA3 are peft's, merged at the end. A prefix and a bottleneck cannot be merged: they lie beside the weights
in one file and are put in by hooks, in training and in the export alike.
Called by text_tuning.py, and by text_export.py for a folder that holds such a file.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
from safetensors import safe_open
from safetensors.torch import save
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from models.export import INSIDE
from models.text_losses import orthogonality
from models.text_settings import TuneSettings
from recsys.errors import ModelRejected

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ORTHOGONAL = 0.5  # weight of AdaLoRA's own term, as in its paper


class Bottlenecks(torch.nn.Module):
    """Houlsby's adapter behind each layer: h + up(gelu(down(h))), nothing at first. peft has none."""

    def __init__(self, model: "PreTrainedModel", rank: int) -> None:
        super().__init__()
        width, layers = model.config.hidden_size, layers_of(model)
        self.down = torch.nn.ModuleList(torch.nn.Linear(width, rank) for _ in layers)
        self.up = torch.nn.ModuleList(torch.nn.Linear(rank, width) for _ in layers)
        for weight in self.up.parameters():
            torch.nn.init.zeros_(weight)
        for at, layer in enumerate(layers):
            layer.register_forward_hook(lambda _layer, _inputs, output, at=at: self._after(at, output))

    def _after(self, at: int, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden + self.up[at](torch.nn.functional.gelu(self.down[at](hidden)))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


class Prefix(torch.nn.Module):
    """Keys and values before each layer's own, peft's encoder; text keeps its places, so nothing moves but attention."""

    def __init__(self, model: "PreTrainedModel", tokens: int) -> None:
        super().__init__()
        config = model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.shape = (tokens, config.num_hidden_layers, 2, heads, size)
        self.encoder = peft.PrefixEncoder(
            peft.PrefixTuningConfig(
                num_virtual_tokens=tokens,
                token_dim=heads * size,
                num_transformer_submodules=1,
                num_attention_heads=heads,
                num_layers=config.num_hidden_layers,
            )
        )
        torch.nn.init.normal_(self.encoder.embedding.weight, std=0.02)  # peft's 1 drowns the text at first
        model.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, _model: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask, (tokens, layers, _, heads, size) = kwargs["attention_mask"], self.shape
        # shape, not len, which would freeze the number of texts in an export
        table = self.encoder.embedding.weight.view(self.shape).permute(1, 2, 3, 0, 4)
        cache = DynamicCache()
        for at in range(layers):
            both = table[at][:, None].expand(2, mask.shape[0], heads, tokens, size)
            cache.update(both[0], both[1], at)
        longer = torch.cat([mask.new_ones(mask.shape[0], tokens), mask], dim=1)
        return args, {**kwargs, "attention_mask": longer, "past_key_values": cache}


class Learner(torch.nn.Module):
    """A model and what of it learns. Makes everything else stand still."""

    def __init__(self, model: "PreTrainedModel", settings: TuneSettings, steps: int) -> None:
        """steps: all of a run, over which AdaLoRA shares out its ranks."""
        super().__init__()
        self.kind = settings.train
        self.model: Any = model
        self.adapter: peft.PeftModel | None = None
        self.inside: torch.nn.Module | None = None
        model.requires_grad_(settings.train == "all")
        if settings.train == "top":
            for layer in layers_of(model)[-settings.layers :]:
                layer.requires_grad_(True)
        if settings.train in ("top", "head"):
            last_norm(model).requires_grad_(True)
        if settings.train in ("lora", "adalora", "ia3"):
            self.adapter = peft.get_peft_model(model, _config(model, settings, steps))
        if settings.train == "prefix":
            self.inside = Prefix(model, settings.prefix_tokens)
        if settings.train == "bottleneck":
            self.inside = Bottlenecks(model, settings.rank)

    def extra_loss(self) -> torch.Tensor | float:
        """What the adapter itself asks for: AdaLoRA that its factors be orthogonal."""
        if self.kind != "adalora":
            return 0.0
        found: dict[str, torch.Tensor] = dict(self.model.named_parameters())
        pairs = [(found[n.replace("lora_A", "lora_B")], found[n]) for n in found if "lora_A" in n]
        return ORTHOGONAL * orthogonality(pairs)

    def stepped(self, step: int) -> None:
        """After each step, gradients still there: AdaLoRA takes ranks from where they bring least."""
        if self.adapter is not None and self.kind == "adalora":
            self.adapter.base_model.update_and_allocate(step)

    def state(self) -> dict[str, torch.Tensor]:
        """What AdaLoRA remembers from step to step, beside its weights."""
        return {f"{part}|{name}": value for part, held in self._held().items() for name, value in held.items()}

    def load_state(self, state: dict[str, torch.Tensor], pattern: dict[str, list[bool]] | None) -> None:
        """Go on with it. pattern: of `ranks`."""
        held = self._held()
        for key, value in state.items():
            part, _, name = key.partition("|")
            held[part][name] = value.clone()
        if self.adapter is not None and self.kind == "adalora":
            self.adapter.peft_config["default"].rank_pattern = pattern

    def ranks(self) -> dict[str, list[bool]] | None:
        """Which ranks AdaLoRA has left, for JSON."""
        return self.adapter.peft_config["default"].rank_pattern if self.adapter and self.kind == "adalora" else None

    def _held(self) -> dict[str, dict[str, torch.Tensor]]:
        if self.adapter is None or self.kind != "adalora":
            return {}
        ranks = self.adapter.base_model.rankallocator
        return {part: getattr(ranks, part) for part in ("ipt", "exp_avg_ipt", "exp_avg_unc")}

    def write(self, folder: Path) -> None:
        """The folder that `slatecast export` takes: adapters kept beside, merged where they can be. Ends its use."""
        model = self.model
        if self.adapter is not None:
            self.adapter.save_pretrained(str(folder / "adapters"), save_embedding_layers=False)
            model = self.adapter.merge_and_unload()
        if self.inside is not None:
            tensors = {name: value.contiguous() for name, value in self.inside.state_dict().items()}
            (folder / INSIDE).write_bytes(save(tensors, {"kind": self.kind}))
        if getattr(model.config, "quantization_config", None) is not None:  # of a GGUF; the weights are plain by now
            del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(folder)


def attach(model: "PreTrainedModel", file: Path) -> None:
    """Put a prefix or bottlenecks back into a model. Raises ModelRejected if the file is neither."""
    with safe_open(file, "pt") as held:
        kind = (held.metadata() or {}).get("kind")
        tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118  (no mapping)
    width = 2 * model.config.num_hidden_layers
    try:
        if kind == "prefix":
            inside: torch.nn.Module = Prefix(model, len(tensors["encoder.embedding.weight"]))
        elif kind == "bottleneck":
            inside = Bottlenecks(model, len(tensors["down.0.weight"]))
        else:
            raise ModelRejected(f"{file} is neither a prefix nor a bottleneck; tune the tower again")
        inside.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        raise ModelRejected(f"{file} does not fit the weights beside it ({width // 2} layers): {error}") from None
    inside.requires_grad_(False).eval()


def layers_of(model: "PreTrainedModel") -> torch.nn.ModuleList:
    """The stack of layers. Raises ModelRejected if there is none."""
    count = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise ModelRejected(f'no list of {count} layers in {type(model).__name__}: only train = "all" can tune it')


def last_norm(model: "PreTrainedModel") -> torch.nn.Module:
    """The normalisation whose output is the model's: all that stands between the layers and the pooling."""
    asked: Any = model
    outputs: list[tuple[torch.nn.Module, torch.Tensor]] = []
    weights = ((module, getattr(module, "weight", None)) for module in model.modules())
    norms = [module for module, weight in weights if isinstance(weight, torch.Tensor) and weight.dim() == 1]
    hooks = [m.register_forward_hook(lambda one, _inputs, output: outputs.append((one, output))) for m in norms]
    ids = torch.arange(4)[None]
    with torch.no_grad():
        final = asked(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    for hook in hooks:
        hook.remove()
    for module, output in reversed(outputs):
        if output.shape == final.shape and torch.equal(output, final):
            return module
    raise ModelRejected(f"{type(model).__name__} does not end in a normalisation: take another train than head or top")


def linears_of(model: "PreTrainedModel") -> tuple[list[str], list[str]]:
    """Names of all linear maps in the layers; and of those that bring a layer's wide middle back to its width."""
    layers, width = layers_of(model), model.config.hidden_size
    inside = {id(module) for module in layers.modules()}
    sizes = {
        name: tuple(module.weight.shape) if isinstance(module, Conv1D) else tuple(module.weight.shape)[::-1]
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, torch.nn.Linear | Conv1D)
    }
    return list(sizes), [name for name, (into, out) in sizes.items() if out == width < into]


def _config(model: "PreTrainedModel", settings: TuneSettings, steps: int) -> peft.PeftConfig:
    names, back = linears_of(model)
    conv = {"fan_in_fan_out": any(isinstance(module, Conv1D) for module in model.modules())}
    if settings.train == "ia3":
        return peft.IA3Config(target_modules=names, feedforward_modules=back, **conv)
    sizes: dict[str, Any] = {"lora_alpha": 2 * settings.rank, "lora_dropout": 0.0, "target_modules": names, **conv}
    if settings.train == "lora":
        return peft.LoraConfig(r=settings.rank, **sizes)
    # Half as many ranks again to begin with; they are taken away between a tenth and three quarters of the steps.
    shares = {"tinit": steps // 10, "tfinal": steps // 4, "deltaT": max(1, steps // 100), "total_step": steps}
    return peft.AdaLoraConfig(init_r=settings.rank * 3 // 2, target_r=settings.rank, **shares, **sizes)
