"""What moves the weights of a tuning run: optimiser, dropout, and in what precision. Called by text_tuning.py."""

import torch

from models import schedules
from models.text_settings import TuneSettings


def make_optimiser(settings: TuneSettings, weights: list[torch.Tensor]) -> torch.optim.Optimizer:
    """The optimiser of the settings, over what learns; biases and norms do not decay."""
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return schedules.make_optimiser(settings.optimiser, groups, settings.rate, settings.weight_decay)


def choose_precision(asked: str, device: torch.device) -> torch.dtype:
    """In what the products are computed; weights stay float32. auto: what the device has, by what it says of itself."""
    if asked != "auto":
        found: torch.dtype = getattr(torch, asked)
        return found
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has = torch.cpu.get_capabilities()
    return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else torch.float32


def set_dropout(model: torch.nn.Module, share: float) -> None:
    """Dropout wherever the model has it, in modules and in attention."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        if isinstance(getattr(module, "attention_dropout", None), float):  # a number in Llama, a module in others
            vars(module)["attention_dropout"] = share
