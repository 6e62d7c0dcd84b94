"""The peers in `slatecast bench scorer`, on the weights that our text tower has; and what makes release and files.

Called by scorer.py, as processes. What torch is needed for is done by the process that has it anyway: loading torch
takes longer than most of what is measured. Weights of scorers are random: what scoring costs, not what it is worth.
"""

import importlib.metadata
import itertools
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.features import NAMES
from streams.bench.scorer_ours import SAMPLE
from streams.bench.scorer_work import CANDIDATES, HISTORY, Engine, Order, serve, timed

PAIR_TOKENS = 256  # 20 titles and a candidate's, cut to it
PAIR_BATCHES = (4, 8, 32)  # of which each cross-encoder has the one that suits it best
CROSS, FAST = "cross", "fastembed"  # folders beside the release


def pairs_of(order: Order) -> list[tuple[str, str]]:
    """What a cross-encoder reads for one request: the titles of the history beside each candidate's."""
    history = "; ".join(order.texts[CANDIDATES : CANDIDATES + HISTORY])
    return [(history, title) for title in order.texts[: order.pairs]]


def fastest(work: Callable[[int], Any]) -> int:
    """The batch size that needs the least processor time."""
    return min(PAIR_BATCHES, key=lambda size: timed(lambda: work(size))().cpu_s)


def run_onnx(order: Order) -> Engine:
    """The cross-encoder in ONNX Runtime, pairs in batches of the size that suits it best."""
    import onnxruntime
    from tokenizers import Tokenizer

    from models.devices import open_session

    folder, pairs = Path(order.folder) / CROSS, pairs_of(order)
    session, _ = open_session(folder / "cross.onnx")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(PAIR_TOKENS)
    tokenizer.enable_padding()

    def score(size: int) -> NDArray[np.float32]:
        found = []
        for at in range(0, len(pairs), size):
            encoded = tokenizer.encode_batch(pairs[at : at + size])
            arrays = [[getattr(one, name) for one in encoded] for name in ("ids", "attention_mask", "type_ids")]
            inputs = dict(zip(("ids", "mask", "types"), (np.array(a, np.int64) for a in arrays), strict=True))
            found.append(session.run(None, inputs)[0])
        return np.concatenate(found).ravel()

    size = fastest(score)
    tokens = statistics.mean(sum(one.attention_mask) for one in tokenizer.encode_batch(pairs))
    about = {"scores": score(size).tolist(), "batch": size, "tokens": tokens, "version": onnxruntime.__version__}
    return Engine(about, {"cross": timed(lambda: score(size))})


def run_sentence_transformers(order: Order) -> Engine:
    """Its cross-encoder, the fastest batch size of several; and its embedding, which sorts by length, as it comes.

    First it makes what the others open.
    """
    made = make(order)
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer

    torch.set_num_threads(1)
    offline: dict[str, Any] = {"device": "cpu", "local_files_only": True, "trust_remote_code": False}
    cross = CrossEncoder(
        str(Path(order.folder) / CROSS), max_length=PAIR_TOKENS, activation_fn=torch.nn.Identity(), **offline
    )
    text = SentenceTransformer(order.weights, **offline)
    pairs = pairs_of(order)

    def score(size: int) -> Any:
        return cross.predict(pairs, batch_size=size, show_progress_bar=False)

    def embed(texts: list[str]) -> Any:
        return text.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    size = fastest(score)
    return Engine(
        {
            **made,
            "scores": score(size).ravel().tolist(),
            "vectors": embed(order.texts[:SAMPLE]).ravel().tolist(),
            "batch": size,
            "version": f"{importlib.metadata.version('sentence-transformers')}, torch {torch.__version__}",
        },
        {"cross": timed(lambda: score(size)), "embed": timed(lambda: embed(order.texts))},
    )


def run_fastembed(order: Order) -> Engine:
    """A model of one's own on one thread, in batches of 32 and of its default, 256."""
    import fastembed
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    from models.text_tower import read_settings

    TextEmbedding.add_custom_model(
        model="slatecast/bench",
        pooling=PoolingType.DISABLED,  # the graph pools and normalises
        normalization=False,
        sources=ModelSource(hf="slatecast/bench"),
        dim=read_settings(Path(order.tower)).dim,
        model_file="model.onnx",
    )
    folder = str(Path(order.folder) / FAST)
    model = TextEmbedding("slatecast/bench", threads=1, providers=["CPUExecutionProvider"], specific_model_path=folder)

    def embed(size: int) -> Callable[[], list[Any]]:
        return lambda: list(model.embed(order.texts, batch_size=size))

    sample = np.concatenate(list(model.embed(order.texts[:SAMPLE])))
    about = {"vectors": sample.tolist(), "version": fastembed.__version__}
    return Engine(about, {"embed_32": timed(embed(32)), "embed_256": timed(embed(256))})


# --- what makes the release and the peers' files ------------------------------------------------------------------------


def make(order: Order) -> dict[str, Any]:
    """A release with scorers of the default sizes, a cross-encoder with a random head, and fastembed's folder."""
    from models.item_files import save_item_models
    from models.item_vectors import build_text
    from models.registry import Manifest, publish
    from recsys.item_models import ItemModels

    home, tower = Path(order.folder), Path(order.tower)
    draft = home / "draft"
    shutil.copytree(tower, home / "towers" / tower.name)  # there the export finds it, and embeds beside it
    side = build_text(home, order.texts, source=Path(order.weights))
    draft.mkdir()
    side.save(draft)
    save_item_models(ItemModels(), draft)
    parity = _save_scorers(draft, side.vectors.shape[1])
    manifest = Manifest(created_ts_ms=0, data="random weights", data_until_ts_ms=0, features=NAMES, metrics={})
    release = publish(home, draft, manifest, serve=False)
    _make_cross_encoder(order)
    _make_fastembed(order)
    return {"release": str(release.folder), "parity_max": parity}


def _save_scorers(draft: Path, dim: int) -> float:
    """Network, linear part and tower into a release's folder; the parity of the tower's graph."""
    import torch

    from models import sequence_export
    from models.scorer import Network
    from models.sequence_net import NetShape, SequenceNet
    from models.train_settings import TrainSettings
    from models.training import Fitted
    from recsys.scoring import HEADS

    settings, rng, width = TrainSettings(), np.random.default_rng(0), len(NAMES)
    torch.manual_seed(0)

    def layer(ins: int, outs: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return (rng.normal(size=(ins, outs)) / np.sqrt(ins)).astype(np.float32), np.zeros(outs, np.float32)

    sizes = (width, *settings.hidden, len(HEADS))
    mean, std = np.zeros(width, np.float32), np.ones(width, np.float32)
    deep = [layer(*shape) for shape in itertools.pairwise(sizes)]
    network = Network(*layer(width, len(HEADS)), mean, std, deep)
    Fitted(network, network, None).save(draft)
    net = SequenceNet(
        NetShape(features=width, dim=dim, outputs=len(HEADS)), torch.from_numpy(mean), torch.from_numpy(std)
    ).eval()
    for parameter in net.parameters():
        if not parameter.any():  # its last layers begin with nothing, and nothing is equal to nothing
            torch.nn.init.normal_(parameter, std=0.1)
    folder = draft / "sequence"
    sequence_export.save_net(net, folder)
    sequence_export.main(folder)  # in this process, which has torch already
    return sequence_export.check_parity(net, folder / "tower.onnx")


def _make_cross_encoder(order: Order) -> None:
    """The text tower's body under a random head of one score, for torch and as a graph."""
    import torch
    import transformers

    from models.export import export_graph

    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        order.weights, num_labels=1, local_files_only=True, use_safetensors=True, trust_remote_code=False
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        order.weights, local_files_only=True, trust_remote_code=False
    )
    folder = Path(order.folder) / CROSS
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
            return logits

    batch, width = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("width", min=2, max=PAIR_TOKENS)
    example = (
        torch.arange(14).reshape(2, 7),
        torch.ones(2, 7, dtype=torch.int64),
        torch.zeros(2, 7, dtype=torch.int64),
    )
    shapes = {name: {0: batch, 1: width} for name in ("ids", "mask", "types")}
    export_graph(Scores().eval(), folder / "cross.onnx", example, shapes, "scores")


def _make_fastembed(order: Order) -> None:
    """The very graph of our text tower, its inputs named as fastembed wants them."""
    import onnx

    folder = Path(order.folder) / FAST
    folder.mkdir()
    model = onnx.load(Path(order.tower) / "tower.onnx")
    names = {"ids": "input_ids", "mask": "attention_mask"}
    for node in model.graph.input:
        node.name = names[node.name]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save(model, folder / "model.onnx")
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(Path(order.weights) / name, folder)
    shutil.copy(Path(order.tower) / "tokenizer.json", folder)


if __name__ == "__main__":
    serve({"onnx": run_onnx, "sentence_transformers": run_sentence_transformers, "fastembed": run_fastembed})
