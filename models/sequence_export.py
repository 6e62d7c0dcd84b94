"""The sequence tower as a folder that a ranker opens: its weights, its sizes, its graph, checked against torch.

    sequence/net.safetensors  net.json  tower.onnx  tower.fp16.onnx

The second graph is for GPUs (`gpu = "fast"`): weights and sums of tokens in float16, what is scaled, exponentiated or
normalised in float32. Both are made in a process of its own with a time limit, as the text tower's is. Called by
training, and by the benchmark of the scorer.
"""

import copy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from safetensors.numpy import load_file, save_file

from models.export import EXPORT_LIMIT_S, export_graph, run_export
from models.sequence_tower import GRAPH, HALF, SequenceTower, pad_trails
from recsys.errors import ModelRejected
from recsys.scoring import Ask, Trail

if TYPE_CHECKING:
    from models.sequence_net import SequenceNet

PARITY = 1e-5  # of the largest logit or 1: float32 sums, in torch's order and in the graph's
# The same of float16, which keeps 11 bits: 1e-3 seen. It moves no more than near ties: of the best ten 9.9 are the same.
HALF_PARITY = 1e-2
# (lists, candidates, items of the trail); the example has two lists of 8 candidates.
PARITY_SHAPES = ((1, 1, 0), (1, 200, 20), (3, 24, 50), (5, 9, 7), (8, 64, 50))


def save_sequence(net: "SequenceNet", folder: Path, limit_s: float = EXPORT_LIMIT_S) -> None:
    """Write weights, sizes and graph. Raises ModelRejected if the graph differs, Unavailable if it takes too long."""
    save_net(net, folder)
    export_sequence(folder, limit_s)


def save_net(net: "SequenceNet", folder: Path) -> None:
    """Weights and sizes only, into a new folder."""
    from models.sequence_net import arrays_of

    folder.mkdir()
    save_file(arrays_of(net), folder / "net.safetensors")
    (folder / "net.json").write_bytes(msgspec.json.encode(net.shape))


def export_sequence(folder: Path, limit_s: float = EXPORT_LIMIT_S) -> None:
    """Make the graph of the weights in a folder, 10 s in a process of its own."""
    run_export("models.sequence_export", folder, "sequence tower", limit_s)


def load_net(folder: Path) -> "SequenceNet":
    """The module with its weights, to train on or to export."""
    import torch

    from models.sequence_net import NetShape, SequenceNet

    arrays = {name: torch.from_numpy(array) for name, array in load_file(folder / "net.safetensors").items()}
    shape = msgspec.json.decode((folder / "net.json").read_bytes(), type=NetShape)
    net = SequenceNet(shape, arrays["mean"], arrays["std"])
    net.load_state_dict(arrays)
    return net.eval()


def main(folder: Path) -> None:
    """In the process of its own: export, compare, and only then put the graphs in their place."""
    net, part, half = load_net(folder), folder / "tower.part", folder / "tower.fp16.part"
    write_graph(net, part)
    check_parity(net, part)
    write_graph(halve(net), half)
    check_parity(net, half, HALF_PARITY)
    half.replace(folder / HALF)
    part.replace(folder / GRAPH)


def halve(net: "SequenceNet") -> "SequenceNet":
    """A copy with float16 weights. Features are still scaled in float32: a mean of them may be beyond what float16 holds."""
    half = copy.deepcopy(net).half()
    half.mean, half.std = net.mean, net.std
    return half


def write_graph(net: "SequenceNet", path: Path) -> None:
    """Number of lists, of candidates, of the catalogue's items left open."""
    import torch

    lists = torch.export.Dim("lists", min=1, max=4096)
    candidates = torch.export.Dim("candidates", min=2, max=4096)
    items = torch.export.Dim("items", min=2, max=2**31 - 1)
    shapes: dict[str, Any] = {
        "features": {0: lists, 1: candidates},
        "candidates": {0: lists, 1: candidates},
        "trail": {0: lists},
        "actions": {0: lists},
        "marks": {0: lists},
        "vectors": {0: items},
    }
    rng = np.random.default_rng(0)
    asks, vectors = draw_asks(net, rng, 2, 8, 5)
    example = tuple(torch.from_numpy(array) for array in _inputs(asks, vectors).values())
    export_graph(net, path, example, shapes, "logits")


def check_parity(net: "SequenceNet", graph: Path, allowed: float = PARITY) -> float:
    """The largest difference between torch and the graph, on shapes that the exporter has not seen."""
    import torch

    tower, rng, worst = SequenceTower(graph.read_bytes()), np.random.default_rng(1), 0.0
    for lists, candidates, trail in PARITY_SHAPES:
        asks, vectors = draw_asks(net, rng, lists, candidates, trail)
        with torch.no_grad():
            expected = net(*(torch.from_numpy(array) for array in _inputs(asks, vectors).values())).numpy()
        difference = np.abs(tower.score(asks, vectors) - expected.reshape(-1, net.shape.outputs)).max()
        worst = max(worst, float(difference / max(1.0, np.abs(expected).max())))
    if not worst <= allowed:  # NaN is refused too
        raise ModelRejected(f"the exported graph differs from the tower by {worst:.2g} (allowed {allowed:.0e})")
    return worst


def draw_asks(
    net: "SequenceNet", rng: np.random.Generator, lists: int, candidates: int, trail: int
) -> tuple[list[Ask], Any]:
    """Lists with features as wide as those that the tower was fitted on, over a catalogue of 300 items."""
    vectors = rng.normal(size=(300, net.shape.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    mean, std = net.mean.numpy(), net.std.numpy()
    asks = [
        Ask(
            rng.integers(0, 300, candidates),
            rng.normal(mean, 2 * std, (candidates, net.shape.features)).astype(np.float32),
            Trail(
                rng.permutation(300)[:trail], rng.integers(0, 4, trail), rng.random((trail, 2)).astype(np.float32) * 5
            ),
        )
        for _ in range(lists)
    ]
    return asks, vectors


def _inputs(asks: list[Ask], vectors: Any) -> dict[str, Any]:
    """The module's inputs in their order; lists of one length, unpadded."""
    features, rows = np.stack([ask.features for ask in asks]), np.stack([ask.rows for ask in asks])
    return {"features": features, "candidates": rows, **pad_trails([ask.trail for ask in asks]), "vectors": vectors}


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Exception as error:  # the parent tells it in one line
        sys.exit(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
