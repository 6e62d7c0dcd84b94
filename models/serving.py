"""What a ranker needs of a release, behind one reference that can be swapped whole: tower, vectors, scorer.

`open_models` opens one; `follow_champion` makes the next one ready in a thread while the old one serves. Imports neither
torch nor transformers. Called by the roles, the ranker and the doctor.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from models.devices import Gpu
from models.item_files import load_item_models
from models.ladder import Ladder
from models.registry import (
    CHAMPION,
    WAY_BACK,
    Release,
    champion,
    last_served,
    open_release,
    releases_folder,
    remember,
)
from models.text_tower import TextTower
from models.vector_index import Approximate
from models.whitening import Whitening
from recsys import diversify
from recsys.candidates import Source, default_sources
from recsys.catalogue import Catalogue, item_text, text_hash
from recsys.context import Request, Shop
from recsys.errors import ModelRejected
from recsys.item_models import ItemModels
from recsys.pipeline import Draft, recommend
from recsys.policy import Policy
from recsys.profiles import EMPTY
from recsys.scoring import Ask, Scored
from recsys.signal_table import SignalTable

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between looks at which release is champion
EMBED_TEXTS = 32  # in one call, ≈ 80 ms of the core that lists leave
# Items that changed while a release was made ready are embedded in another round, so many times at most; the rest, and
# rounds as small as this, are embedded while it serves, as new items are.
ROUNDS, FEW = 10, 32


class Models(Protocol):
    """The models of one release."""

    release: str
    provider: str  # of ONNX Runtime, as the session really has it
    dim: int  # of text vectors; 0: there is no text tower
    item_models: ItemModels

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        """Logits of the lists' candidates; never raises, never NaN: what went wrong is in the answer."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Whitened unit vectors: (N, dim) float32."""
        ...

    def vector(self, text_hash: str) -> NDArray[np.float32] | None:
        """The cached vector of an item's text, if the release has it."""
        ...


class NoModels:
    """A shop that has no release yet, or none that can be opened: lists by rank fusion, each saying why."""

    release = "none"
    provider = "none"
    dim = 0
    item_models = ItemModels()

    def __init__(self, reason: str = "no release: run `slatecast train`") -> None:
        self._reason = reason

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        """No logits."""
        return Scored(None, "rank_fusion", self._reason)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """No vectors."""
        return np.zeros((len(texts), 0), np.float32)

    def vector(self, text_hash: str) -> NDArray[np.float32] | None:
        """No cache."""
        return None


class ReleaseModels:
    """A release at work."""

    def __init__(self, release: Release, gpu: Gpu = "auto") -> None:
        folder = release.folder
        self.release = release.id
        self._ladder = Ladder(folder, release.manifest.features, gpu=gpu)
        self.item_models = load_item_models(folder)
        self._tower = TextTower(folder / "text", gpu=gpu)
        self._vectors = _read_rows(folder / "vectors.safetensors", "vectors")
        hashes = _read_rows(folder / "vectors.safetensors", "text_hashes")
        self._row = {bytes(row).hex(): at for at, row in enumerate(hashes)}
        whitening = load_file(folder / "whitening.safetensors")
        self._whitening = Whitening(whitening["mean"], whitening["matrix"])
        self.dim = self._whitening.matrix.shape[1]
        self.provider = self._ladder.provider
        shapes = whitening["mean"].shape, whitening["matrix"].shape[:1], self._vectors.shape
        if shapes != ((self._tower.dim,), (self._tower.dim,), (len(hashes), self.dim)):
            raise ModelRejected("its tower, whitening and vectors are of different trainings; train again")

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        """By the best scorer that answers."""
        return self._ladder.score(asks, vectors)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The release's tower, then its whitening."""
        return self._whitening.apply(self._tower.encode(texts))

    def vector(self, text_hash: str) -> NDArray[np.float32] | None:
        """From the release's cache."""
        at = self._row.get(text_hash)
        return None if at is None else self._vectors[at]


def _read_rows(file: Path, name: str) -> NDArray[Any]:
    """An array, a piece at a time: at once, 150 MB hold the interpreter's lock, and with it lists, for .4 s."""
    with safe_open(file, framework="np") as opened:
        rows = opened.get_slice(name)
        count = rows.get_shape()[0]
        pieces = [rows[at : min(at + 4096, count)] for at in range(0, count, 4096)]
        return np.concatenate(pieces or [opened.get_tensor(name)])


def open_models(folder: Path, gpu: Gpu = "auto") -> Models:
    """The models of a release folder, verified file by file and warmed up.

    Raises ModelRejected, Unavailable if a GPU is required in vain.
    """
    release = open_release(folder)
    try:
        models = ReleaseModels(release, gpu)
    except ModelRejected as error:
        raise ModelRejected(f"{folder} cannot serve: {error}") from error
    except (OSError, KeyError, SafetensorError) as error:  # whole, but of an older kind, or closed to this account
        said = f"{type(error).__name__}: {error}; train again, or `slatecast releases promote` another"
        raise ModelRejected(f"{folder} cannot serve: {said}") from error
    # A first inference may take seconds: no event waits for it, and no watchdog takes it for a record that hangs.
    models.embed(["warm up"])
    return models


def open_best(home: Path, gpu: Gpu = "auto") -> Models:
    """The champion; if it is refused, which is logged, the release that served last; else none, saying why.

    Raises Unavailable if a GPU is required in vain.
    """
    reason = ""
    for which in (champion, last_served):
        try:
            if (folder := which(home)) is not None:
                models = open_models(folder, gpu)
                remember(home, models.release)
                return models
        except (ModelRejected, OSError) as error:
            log.error("a release is refused: %s; %s", error, WAY_BACK)
            # Slates go to strangers: what they need not know is where our files lie.
            reason = reason or f"release refused: {str(error).replace(f'{releases_folder(home)}/', '')}"
    return NoModels(reason) if reason else NoModels()


def pointer(home: Path) -> tuple[int, int] | None:
    """What changes whenever a champion is named, be it the same again; None before the first."""
    try:
        found = (releases_folder(home) / CHAMPION).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


class Serving(msgspec.Struct, frozen=True):
    """What makes lists under one release: swapped whole, by one reference, between two batches.

    sources: with their index of the catalogue's vectors; queries: vectors of the latest searches.
    """

    models: Models
    sources: tuple[Source, ...]
    shop: Shop
    queries: dict[str, NDArray[np.float32]]


class Successor(msgspec.Struct, frozen=True):
    """The next release, ready: warmed up, and every item has its vector under it.

    catalogue: the items as they were then, in the rows of the live one; sources: their index knows its vectors.
    """

    models: Models
    sources: tuple[Source, ...]
    catalogue: Catalogue


def follow_champion(
    home: Path,
    seen: tuple[int, int] | None,
    serving: str,
    live: Catalogue,
    policy: Policy,
    tell: Callable[[Successor | ModelRejected], None],
    stop: threading.Event,
    gpu: Gpu = "auto",
) -> None:
    """Whenever another release is champion, make it ready and tell. To be run in a thread, until `stop`.

    seen: the pointer as of the opening of `serving`. live: read only, while the caller goes on changing it. A release
    that is refused is told once; the pointer is looked at again when it changes.
    """
    while not stop.wait(LOOK_S):
        if (now := pointer(home)) == seen:
            continue
        seen = now
        try:
            folder = champion(home)
            if folder is not None and folder.name != serving:
                successor = _prepare(folder, live, policy, gpu)
                if champion(home) == folder:  # else it was taken back meanwhile, perhaps since it is no good
                    tell(successor)
                    serving = folder.name
                    remember(home, serving)
        except ModelRejected as error:
            tell(error)
        except Exception as error:  # a bug in what opens the next release must not end the lists of this one
            log.exception("a release cannot be opened")
            tell(ModelRejected(f"{type(error).__name__}: {error}; the log has the traceback"))


def _prepare(folder: Path, live: Catalogue, policy: Policy, gpu: Gpu) -> Successor:
    """Open, embed, make one list. Raises ModelRejected, also if its best scorer does not make that list."""
    models = open_models(folder, gpu)
    own, sources = Catalogue(dim=models.dim), default_sources(policy, Approximate(models.dim))
    for _ in range(ROUNDS):
        items = list(live.items)
        fresh = [item for row, item in enumerate(items) if row >= len(own) or own.items[row] is not item]
        missing = find_vectors(models, own, [own.upsert(item) for item in fresh])
        for start in range(0, len(missing), EMBED_TEXTS):
            rows, texts = zip(*missing[start : start + EMBED_TEXTS], strict=True)
            own.set_vectors(list(rows), models.embed(texts))
        if len(fresh) <= FEW:
            break
    shop = Shop(own, SignalTable(own), models.item_models)
    draft = warm_up(Serving(models, sources, shop, {}), policy)
    if draft.degraded_reason:
        raise ModelRejected(f"{folder} makes lists by {draft.scorer} only: {draft.degraded_reason}; train again")
    return Successor(models, sources, own)


def warm_up(now: Serving, policy: Policy) -> Draft:
    """A list for nobody, so that no real one waits for the index to take in all vectors, .3 ms each, or for a compiler."""
    diversify.warm_up()
    search = Request("", EMPTY, 0.0, "", now.shop.catalogue.vectors[0] if now.models.dim else None)
    return recommend([search], now.shop, now.sources, now.models.score, policy)[0]


def find_vectors(models: Models, catalogue: Catalogue, rows: Iterable[int]) -> list[tuple[int, str]]:
    """Give rows without a vector theirs from the release's cache; rows and texts of those that it lacks."""
    known: dict[int, NDArray[np.float32]] = {}
    missing = []
    for row in rows if models.dim else ():
        if not catalogue.vectors[row].any():
            text = item_text(catalogue.items[row])
            vector = models.vector(text_hash(text))
            if vector is None:
                missing.append((row, text))
            else:
                known[row] = vector
    if known:
        catalogue.set_vectors(list(known), np.stack(list(known.values())))
    return missing
