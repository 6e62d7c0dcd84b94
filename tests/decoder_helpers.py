"""Decoders of two layers, of the GPT-2 and of the Llama kind, built from their configurations: nothing is fetched."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

TITLES = [
    "Red mug",
    "a folding chair for the garden, of oak",
    "x",
    "红色马克杯",
    "花园折叠椅，橡木",
    "Crème brûlée 日本",
]
PROMPT = "This shop item is: {}. In one word it is:"
END = "<|endoftext|>"
WIDTH, VOCABULARY = 32, 400


def gpt2(vocabulary: int, places: int) -> transformers.GPT2Config:
    """Two layers of the GPT-2 kind."""
    return transformers.GPT2Config(
        vocab_size=vocabulary,
        n_embd=WIDTH,
        n_layer=2,
        n_head=4,
        n_positions=places,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
    )


def llama(vocabulary: int) -> transformers.LlamaConfig:
    """Two layers of the Llama kind."""
    return transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
    )


def byte_tokenizer(texts: list[str], specials: list[str], vocabulary: int) -> Tokenizer:
    """A byte-level tokenizer, trained on some texts; the same for the same."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


SHAPES: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(gpt2(VOCABULARY, 96)),
    "llama": lambda: transformers.LlamaForCausalLM(llama(VOCABULARY)),
}


def write_decoders(folder_of: Callable[[str], Path]) -> dict[str, Path]:
    """Kept in bfloat16 as real ones are, with a byte-level tokenizer that has no token for padding."""
    tokenizer = byte_tokenizer([*TITLES, PROMPT] * 3, [END], VOCABULARY)
    torch.manual_seed(0)
    folders = {}
    for name, make in SHAPES.items():
        folders[name] = folder_of(name)
        make().to(torch.bfloat16).save_pretrained(folders[name])
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
        fast.save_pretrained(folders[name])
    return folders
