"""A memory budget, before training begins: what a run takes for sure, and how many tokens may have activations at once.

Activations are counted, not guessed: the bytes that autograd keeps for one and for two of the longest texts say what a
text takes and what there is once (as weights in bfloat16). A longer text takes more for each token, so what holds for the
longest holds for all. The rest is arithmetic over what learns. Called by text_tuning.py.
"""

import resource
import sys
from pathlib import Path

import msgspec
import torch

from models.text_batches import Batch, Batches
from models.text_objective import Objective
from models.text_settings import TuneSettings
from recsys.errors import Misuse

MIB = 2**20
# Beside what autograd keeps: gradients of activations on their way back, and what the allocator does not give back.
# A guess with room: a test holds a budget 100 MiB below what the same run takes without one.
SPARE = 1.5
# Of the bytes of what learns: an optimiser's state.
STATES = {"adamw": 2.0, "sgd": 1.0, "adafactor": 0.1}


class Need(msgspec.Struct, frozen=True):
    """Bytes of activations. once: whatever the batch; a_text: of the longest; tokens: that it has."""

    once: int
    a_text: int
    tokens: int


def measure(objective: Objective, batches: Batches, settings: TuneSettings) -> Need:
    """What the longest text takes: a forward pass of one, and of two. Before weights are cut into shares."""
    objective.train()
    one, two = batches.longest(1), batches.longest(2)
    found = [_kept(objective, batch, settings) for batch in (one, two)]
    rows = len(two.rows) - len(one.rows)
    a_text = max(0, found[1] - found[0]) // rows
    return Need(max(0, found[0] - a_text * len(one.rows)), a_text, max(map(len, one.rows)))


def _kept(objective: Objective, batch: Batch, settings: TuneSettings) -> int:
    """Bytes that autograd keeps of a batch. With checkpoints, one layer is there whole at a time."""
    model = objective.learner.model
    if not settings.checkpoint_activations:
        return _saved(objective, batch)
    few = _saved(objective, batch)
    model.gradient_checkpointing_disable()
    many = _saved(objective, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return few + many // int(model.config.num_hidden_layers)


def _saved(objective: Objective, batch: Batch) -> int:
    own = {weight.untyped_storage().data_ptr() for weight in (*objective.parameters(), *objective.buffers())}
    found: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        loss = objective(objective.whole(batch))
    del loss
    return sum(found.values())


def live_tokens(need: Need, learning: int, settings: TuneSettings, device: torch.device) -> int:
    """Tokens with padding that may have activations at once. learning: bytes of what learns, of this process.

    A power of two, so that it does not follow every page. Raises Misuse if not even the longest text fits.
    """
    now, state = resident(device), STATES[settings.optimiser] + bool(settings.average)
    # Gradients, state, the weights that an average stands in for; and the bytes of a state that is saved.
    fixed = learning * (1 + state + bool(settings.average)) + learning * (1 + state) + need.once
    room = settings.memory_mib * MIB - now - fixed
    a_token = SPARE * need.a_text / need.tokens
    if room < a_token * need.tokens:
        least = (now + fixed + a_token * need.tokens) / MIB
        raise Misuse(
            f"memory_mib = {settings.memory_mib}, and {least:.0f} MiB are needed: {now / MIB:.0f} are taken already, "
            f"{fixed / MIB:.0f} go to gradients, {settings.optimiser} and saving, {a_token * need.tokens / MIB:.0f} to a text of "
            f'{need.tokens} tokens; raise it, or lower max_tokens, or take train = "lora" or optimiser = "adafactor"'
        )
    return max(need.tokens, 1 << (int(room / max(a_token, 1e-9)).bit_length() - 1))


def resident(device: torch.device) -> int:
    """Bytes that this process holds now; where the system does not say, the most that it ever held."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    told = Path("/proc/self/statm")
    if told.is_file():
        return int(told.read_text().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
