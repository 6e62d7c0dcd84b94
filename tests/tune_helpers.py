"""Two-layer bases of the kinds of BERT, GPT-2 and Llama, made from their configurations, and a shop whose baskets have a
colour in common."""

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
import transformers
from decoder_helpers import END, WIDTH, byte_tokenizer, gpt2, llama
from past_helpers import draw_past

from models.history import History
from models.text_settings import TuneSettings

SHORT = TuneSettings(
    batch=8, steps=1, validate_every=1, hold_out=0.2, precision="float32", learning_rate=0.01, threads=1
)

MASK = "[MASK]"
VOCABULARY = 300
COLOURS = ("red", "blue", "green", "yellow")
THINGS = ("mug", "lamp", "chair", "bowl", "towel of cotton", "box", "plate", "candle, scented", "vase", "rug")
SHAPES: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "bert": lambda: transformers.BertModel(
        transformers.BertConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        )
    ),
    "gpt2": lambda: transformers.GPT2Model(gpt2(VOCABULARY, 160)),
    "llama": lambda: transformers.LlamaModel(llama(VOCABULARY)),
}


def make_base(folder: Path, shape: str) -> Path:
    """A base of random weights with a byte-level tokenizer; the same for the same shape."""
    texts = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS] * 3
    tokenizer = byte_tokenizer(texts, [END, MASK], VOCABULARY)
    torch.manual_seed(0)
    SHAPES[shape]().save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, mask_token=MASK)
    fast.save_pretrained(folder)
    return folder


def coloured_past(seed: int = 0) -> History:
    """40 items, a colour each; users mostly buy theirs."""
    past = draw_past(seed, users=30)
    items = [
        msgspec.structs.replace(
            item, title=f"{COLOURS[at % 4]} {THINGS[at // 4]}", category=re.sub("> .*", "", item.category)
        )
        for at, item in enumerate(past.items)
    ]
    return msgspec.structs.replace(past, items=items)
