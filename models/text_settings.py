"""What may be turned in `slatecast tune-text`: one struct, each key with its unit and its reason.

How it is read from a file: settings_file.py. Called by the command line; read by whatever tunes.
"""

from typing import Annotated, Literal

import msgspec

from models.export import MAX_TOKENS
from models.settings_file import setting
from models.text_tower import Pooling, Reading

Loss = Literal["purchases", "views", "words"]
Aim = Literal[Loss, "teacher"]
Trains = Literal["all", "top", "head", "lora", "adalora", "ia3", "prefix", "bottleneck"]
Optimiser = Literal["adamw", "sgd", "adafactor"]
Parallel = Literal["ddp", "fsdp"]
# Of what trains: few weights that begin at nothing move far, all of a trained model's only a little.
USUAL_RATE: dict[Trains, float] = {
    "all": 5e-5,
    "top": 1e-4,
    "head": 1e-3,
    "lora": 5e-4,
    "adalora": 1e-3,
    "ia3": 5e-3,
    "prefix": 5e-3,
    "bottleneck": 1e-3,
}


class TuneSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be turned; `describe` prints it. Defaults are for two cores and ten minutes."""

    loss: Annotated[Aim, setting("", "purchases: texts bought together lie close; views: two views of one text do; words:"
        " further pre-training on the shop's texts, masked for an encoder, next token for a decoder; teacher: a pruned tower"
        " reads them as another does")] = "purchases"  # fmt: skip
    teacher: Annotated[
        str, setting("", "of loss = teacher: the model that was pruned, a folder or a name as of `--model`")
    ] = ""
    train: Annotated[Trains, setting("", "what learns: all; the top layers; head: the last normalisation alone; or an adapter."
        " lora, adalora and ia3 are merged at the end, prefix and bottleneck stay inside the tower")] = "all"  # fmt: skip
    layers: Annotated[int, setting("layers", "with train = top: so many, counted from the last", ge=1)] = 2
    rank: Annotated[
        int, setting("dimensions", "of lora, adalora and bottleneck: 8 trains 1.5 % of MiniLM", ge=1, le=512)
    ] = 8
    prefix_tokens: Annotated[int, setting("tokens", "of train = prefix, before every text", ge=1, le=64)] = 10
    pooling: Annotated[Pooling, setting("", "as `slatecast export --pooling` will have it: a tower is tuned as it is read")] = "mean"  # fmt: skip
    prompt: Annotated[str, setting("", "as `slatecast export --prompt` will have it; {} is the text")] = "{}"

    temperature: Annotated[float, setting("cosine", "of the softmax over a batch: .05 is what MiniLM was trained with", gt=0)] = 0.05  # fmt: skip
    log_q: Annotated[float, setting("share", "how much of log(how often drawn) is taken off a logit: without it items that"
        " sell well are pushed away from all others", ge=0, le=1)] = 1.0  # fmt: skip
    window_days: Annotated[float, setting("days", "0: bought together is in one basket; else by one user in the same so many"
        " days", ge=0)] = 0.0  # fmt: skip
    word_drop: Annotated[float, setting("share", "of words that a view leaves out, also before student and teacher; dropout"
        " alone says little to a decoder that has none", ge=0, lt=1)] = 0.2  # fmt: skip
    word_swap: Annotated[float, setting("share", "of words that change places with the next one, in texts bought together and in"
        " views; 0: as it is written", ge=0, lt=1)] = 0.0  # fmt: skip
    synonyms: Annotated[float, setting("share", "of words that one takes the place of which this shop uses alike (same neighbours, same"
        " baskets), in texts bought together and in views; many are another colour or size, so few: .1", ge=0, lt=1)] = 0.0  # fmt: skip
    adversarial: Annotated[float, setting("share", "of their length that a text's token embeddings are moved against it, learned beside"
        " the text itself (FGM); a step takes twice as long; 0: off", ge=0, lt=1)] = 0.0  # fmt: skip
    mask: Annotated[float, setting("share", "of tokens that an encoder has to guess with loss = words", gt=0, lt=1)] = (
        0.15
    )

    optimiser: Annotated[Optimiser, setting("", "adafactor keeps least: a row and a column for each matrix")] = "adamw"
    learning_rate: Annotated[float, setting("", "0: the usual of what trains, " + ", ".join(f"{k} {v:g}" for k, v in USUAL_RATE.items()), ge=0)] = 0.0  # fmt: skip
    schedule: Annotated[Literal["constant", "linear", "cosine"], setting("", "after the warm-up, down to nothing at the last step")] = "linear"  # fmt: skip
    warm_up: Annotated[float, setting("share", "of the steps in which the rate rises from nothing", ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, setting("a step", "times the learning rate", ge=0)] = 0.01
    clip: Annotated[float, setting("norm", "longest gradient", gt=0)] = 1.0
    dropout: Annotated[
        float, setting("share", "in every place where the base has dropout; -1: as it came", ge=-1, lt=1)
    ] = -1.0
    batch: Annotated[
        int, setting("texts or pairs", "each is told from all others of its batch: more is harder", ge=2)
    ] = 64
    accumulate: Annotated[int, setting("batches", "whose gradients make one step", ge=1)] = 1
    steps: Annotated[int, setting("steps", "0: as many as `epochs` come to", ge=0)] = 400
    epochs: Annotated[float, setting("passes", "over purchases or texts, with steps = 0", gt=0)] = 1.0
    minutes: Annotated[
        float, setting("minutes", "then it ends with the best so far; longer runs overfit warm items", gt=0)
    ] = 10.0

    average: Annotated[float, setting("share", "that a step leaves of the weights' running average, which is then what is validated"
        " and kept: .99 is of the last hundred steps; 0: off", ge=0, lt=1)] = 0.0  # fmt: skip
    soup: Annotated[int, setting("validations", "whose weights' mean is kept if it validates better than the best alone; 1: the best"
        " alone", ge=1, le=16)] = 1  # fmt: skip

    hold_out: Annotated[float, setting("share", "of the newest purchases (or texts), to stop early by; 0: none, the last step"
        " is kept", ge=0, le=0.5)] = 0.1  # fmt: skip
    validate_every: Annotated[int, setting("steps", "25 steps are about 20 s of MiniLM on two cores", ge=1)] = 25
    patience: Annotated[int, setting("validations", "without a better one, then it stops", ge=1)] = 3
    save_every: Annotated[int, setting("steps", "what a kill costs; MiniLM's state with AdamW is 270 MB", ge=1)] = 50

    precision: Annotated[Literal["auto", "float32", "bfloat16", "float16"], setting("", "auto: bfloat16 where the processor or GPU"
        " has it, measured 2.5 times faster, five times slower where it has not; float16 is for GPUs")] = "auto"  # fmt: skip
    checkpoint_activations: Annotated[
        bool, setting("", "a third more time for a layer's memory instead of all layers'")
    ] = False
    memory_mib: Annotated[int, setting("MiB", "of the process while it trains (on a GPU: of its memory): a batch that does not fit is"
        " computed call by call, with the same gradients and a forward pass more; 0: whatever it takes", ge=0)] = 0  # fmt: skip
    parallel: Annotated[Parallel, setting("", "under torchrun; ddp: each process holds a copy; fsdp: a share of weights, gradients and the"
        " optimiser's state, for a base that does not fit a device")] = "ddp"  # fmt: skip
    token_budget: Annotated[int, setting("tokens", "with padding, in one call of the model; texts are sorted by length", ge=16)] = 2048  # fmt: skip
    max_tokens: Annotated[int, setting("tokens", "a text is cut there, as in the exported tower", ge=8, le=MAX_TOKENS)] = MAX_TOKENS  # fmt: skip
    threads: Annotated[
        int,
        setting(
            "threads",
            "0: half of the cores: on two that others use too, two threads took three times as long as one, waiting for"
            " each other; all of them where nothing else runs",
            ge=0,
        ),
    ] = 0
    seed: Annotated[int, setting("", "of batches, masks and dropout: each step's are drawn from it and the step's number", ge=0)] = 0  # fmt: skip

    def __post_init__(self) -> None:
        """Raises ValueError for what no single key shows."""
        Reading(self.pooling, self.prompt)
        if (self.loss == "teacher") != bool(self.teacher):
            raise ValueError("loss = teacher and a teacher go together: name both, or neither")
        if self.train == "prefix" and self.checkpoint_activations:
            raise ValueError("checkpoint_activations leaves a prefix out (transformers drops its keys); turn one off")
        if self.train == "adalora" and (self.average or self.soup > 1):
            raise ValueError("a mean of weights has the ranks back that adalora took away; take average = 0, soup = 1")
        if self.parallel == "fsdp":
            whole = [self.train == "adalora", self.optimiser == "adafactor", self.precision == "float16"]
            if any(whole):
                raise ValueError(
                    "adalora, adafactor and float16 need whole weights or gradients; with fsdp take others"
                )

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return self.learning_rate or USUAL_RATE[self.train]

    @property
    def reading(self) -> Reading:
        """How the tower reads."""
        return Reading(self.pooling, self.prompt)
