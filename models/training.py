"""`slatecast train`: history in, a release out. One readable recipe; the issue of fine-tuning on live traffic is another.

    texts → vectors → whitening      the text side, no labels
    world → lists at weekly cuts     the behaviour side, by the code that serves
    purchases → item models          what follows from what, in closed form, as of each cut
    lists → scorer                   list-wise softmax, two heads
    newest cut held out              what it is worth, on a time it has not seen

Called by the command line and by evaluation (which judges it at past moments).
"""

import tempfile
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from models.examples import OPEN, WEEK_S, Lists, join, make_lists, measure
from models.history import History
from models.item_files import save_item_models
from models.item_models import fit_item_models
from models.item_vectors import build_text
from models.losses import both_heads, descend
from models.registry import Manifest, Release, publish, releases_folder
from models.scorer import HEADS, Network
from models.sequence_export import save_sequence
from models.sequence_net import SequenceNet, features_network
from models.sequence_training import fit_sequence, score_lists
from models.train_settings import Step, TrainSettings
from models.world import World
from recsys.candidates import default_sources
from recsys.catalogue import item_text
from recsys.errors import Misuse
from recsys.features import NAMES
from recsys.metrics import ndcg_at_k
from recsys.policy import Policy
from recsys.signals import DAY_S


def train(
    history: History, home: Path, data: str, now_ms: int, settings: TrainSettings, tower: Path | None, step: Step
) -> Release:
    """Train on all of a history and make the release the champion. Raises Misuse where there is too little."""
    texts = [item_text(item) for item in history.items]
    side = build_text(
        home,
        texts,
        source=tower,
        dim=settings.dim,
        whiten=settings.whiten,
        progress=lambda done, of: step("embedding items", done, of),
    )
    end_s = int(history.ts_s[-1]) + 1
    learner = Learner(history, side.vectors, settings, step)
    learner.live_until(end_s)
    metrics = judge(learner.fit(hold_out=1), learner.newest, side.vectors)
    releases_folder(home).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="draft-", dir=releases_folder(home)) as scratch:
        draft = Path(scratch) / "release"
        draft.mkdir()
        side.save(draft)
        learner.fit().save(draft)
        save_item_models(learner.world.shop.item_models, draft)
        manifest = Manifest(
            created_ts_ms=now_ms, data=data, data_until_ts_ms=end_s * 1000, features=NAMES, metrics=metrics, files={}
        )
        return publish(home, draft, manifest)


class Fitted(msgspec.Struct, frozen=True):
    """What was learned of ranking: the features' network, a linear one for when it fails, and the tower, or none."""

    network: Network
    linear: Network
    net: SequenceNet | None

    def score(self, lists: Lists, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of lists, (N, 2), by NumPy and torch: for judging before an export."""
        logits = self.network.score(lists.features)
        if self.net is None:
            return logits
        return np.asarray((logits + score_lists(self.net, lists, vectors)) / 2, np.float32)

    def save(self, draft: Path) -> None:
        """Write the scorers of a release into a folder; see `ladder.py`."""
        self.network.save(draft / "scorer.onnx")
        save_file(self.linear.arrays(), draft / "linear.safetensors")
        if self.net is not None:
            save_sequence(self.net, draft / "sequence")


class Learner:
    """Lives through a history and makes lists on the way; fits on the newest weeks of them.

    Called moment after moment (as evaluation does), it replays every event once.
    """

    def __init__(
        self,
        history: History,
        vectors: NDArray[np.float32],
        settings: TrainSettings,
        step: Step,
        policy: Policy = OPEN,
    ) -> None:
        """policy: of how many candidates, from which sources, a list is made."""
        self.world, self.vectors = World(history, vectors), vectors
        self.policy = policy
        self.sources = default_sources(self.policy)
        self._settings, self._step = settings, step
        self._rng = np.random.default_rng(settings.seed)
        self._weeks: list[Lists] = []
        self._fitted_s = 0

    def live_until(self, until_s: int) -> None:
        """Replay to a moment, with lists at weekly cuts before it, their labels before it too. Raises Misuse."""
        settings, history = self._settings, self.world.history
        first_s = max(int(history.ts_s[0]) + settings.warm_up_days * DAY_S, self.world.now_s)
        cuts_s = [until_s - WEEK_S * back for back in range(settings.cuts, 0, -1)]
        cuts_s = [cut_s for cut_s in cuts_s if cut_s >= first_s]
        for done, cut_s in enumerate(cuts_s):
            if cut_s - self._fitted_s >= settings.refit_days * DAY_S:
                self._fit_item_models(cut_s)
            self._step("lists of past weeks", done, len(cuts_s))
            lists = make_lists(self.world, cut_s, until_s, self.sources, self.policy, settings.per_cut, self._rng)
            if len(lists.ends):
                self._weeks.append(lists)
        self._step("lists of past weeks", len(cuts_s), len(cuts_s))
        self._fit_item_models(until_s)
        self.world.advance(until_s)
        self._weeks = self._weeks[-settings.cuts :]
        if len(self._weeks) < 2:
            days = (until_s - int(history.ts_s[0])) // DAY_S
            raise Misuse(
                f"{days} days of history gave {len(self._weeks)} weeks of lists to learn from, two are needed: lists "
                f"are made weekly after {settings.warm_up_days} days of warm-up, for users who buy within four "
                "weeks; load more history, or lower warm_up_days"
            )

    def _fit_item_models(self, at_s: int) -> None:
        """What is known of items at a moment. Lists are made with models up to `refit_days` old, as in serving."""
        settings = self._settings
        models = fit_item_models(self.world.history, at_s, settings.items, settings.penalty)
        self.world.shop = msgspec.structs.replace(self.world.shop, item_models=models)
        self._fitted_s = at_s

    @property
    def newest(self) -> Lists:
        """The lists of the last cut."""
        return self._weeks[-1]

    def fit(self, hold_out: int = 0, seed: int | None = None) -> Fitted:
        """The scorers of all weeks but the newest `hold_out`. Deterministic for a seed, by default that of settings."""
        lists, settings = join(self._weeks[: len(self._weeks) - hold_out]), self._settings
        if seed is not None:
            settings = msgspec.structs.replace(settings, seed=seed)
        linear = fit(lists, msgspec.structs.replace(settings, hidden=()), self._step)
        network = fit(lists, settings, self._step) if settings.hidden else linear
        net = None
        if settings.tower_width and self.vectors.shape[1]:
            net = fit_sequence(lists, network.score(lists.features), self.vectors, settings, self._step)
        return Fitted(network, linear, net)


def fit(lists: Lists, settings: TrainSettings, step: Step) -> Network:
    """List-wise softmax for both heads: -mean over the bought of log softmax over the list (unseen rows for `new`)."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(1)  # a step is tiny: two threads wait for each other, 71–217 s for what one does in 28
    mean, std = measure(lists.features)
    scaled = torch.from_numpy(np.clip((lists.features - mean) / std, -5, 5).astype(np.float32))
    bought, unseen = torch.from_numpy(lists.bought), torch.from_numpy(~lists.seen)
    starts = np.concatenate([[0], lists.ends[:-1]])
    linear, deep = torch.nn.Linear(len(mean), len(HEADS)), torch.nn.Sequential()
    if settings.hidden:
        deep = features_network(len(mean), settings.hidden, len(HEADS), settings.dropout)
    for last in (linear, *deep[-1:]):  # a list begins with all its candidates equal
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    network = torch.nn.ModuleList([linear, deep])
    count = len(lists.ends)
    batches = [b for _ in range(settings.epochs) for b in torch.randperm(count).split(settings.batch)]
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, total_steps=len(batches))
    for done, batch in enumerate(batches):
        spans = [(int(starts[at]), int(lists.ends[at])) for at in batch.tolist()]
        rows = torch.cat([torch.arange(*span) for span in spans])
        lengths = torch.tensor([end - start for start, end in spans])
        of_list = torch.repeat_interleave(torch.arange(len(spans)), lengths)
        logits = linear(scaled[rows])
        if len(deep):
            logits = logits + deep(scaled[rows])
        loss = both_heads(logits, bought[rows], unseen[rows], of_list)
        descend(loss / len(batch), network, optimiser, schedule)
        step("fitting the scorer", done + 1, len(batches))
    layers = [_arrays(layer) for layer in deep if isinstance(layer, torch.nn.Linear)]
    return Network(*_arrays(linear), mean, std, layers)


def _arrays(layer: torch.nn.Linear) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy()


def judge(fitted: Fitted, lists: Lists, vectors: NDArray[np.float32]) -> dict[str, float]:
    """NDCG@10 within each list's candidates, ours and by own frequency: whether it is worth serving."""
    scores = {
        "ndcg_at_10": fitted.score(lists, vectors)[:, HEADS.index("all")],
        "ndcg_at_10_without_tower": fitted.network.score(lists.features)[:, HEADS.index("all")],
        "ndcg_at_10_own_frequency": lists.features[:, NAMES.index("own_120d")],
    }
    found: dict[str, list[float]] = {name: [] for name in scores}
    for start, end in zip([0, *lists.ends[:-1].tolist()], lists.ends.tolist(), strict=True):
        truth = set(np.flatnonzero(lists.bought[start:end]).tolist())
        for name, score in scores.items():
            order = np.argsort(-score[start:end], kind="stable")[:10].tolist()
            found[name].append(ndcg_at_k(order, truth, 10))
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()}
