"""`slatecast train`: history in, a release out. One readable recipe; the issue of fine-tuning on live traffic is another.

    texts → vectors → whitening      the text side, no labels
    world → lists at weekly cuts     the behaviour side, by the code that serves
    purchases → item models          what follows from what, in closed form, as of each cut
    lists → scorer                   list-wise softmax, two heads
    newest cut held out              what it is worth, on a time it has not seen

Called by the command line and by evaluation (which judges it at past moments).
"""

import math
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from models.examples import OPEN, WEEK_S, Lists, join, make_lists, make_strangers
from models.fitting import Descent, Ended, Log
from models.history import History
from models.item_files import save_item_models
from models.item_models import fit_item_models
from models.item_vectors import build_text
from models.list_worth import Worth, before, judge_scores, mean_ndcg
from models.network_training import fit
from models.registry import Manifest, Release, publish, releases_folder
from models.scorer import Network
from models.sequence_export import save_sequence
from models.sequence_net import SequenceNet
from models.sequence_training import fit_sequence, score_lists
from models.train_settings import Step, TrainSettings
from models.world import World
from recsys.candidates import default_sources
from recsys.catalogue import item_text
from recsys.errors import Misuse, Unavailable
from recsys.features import NAMES
from recsys.policy import Policy
from recsys.signals import DAY_S


class Trained(msgspec.Struct, frozen=True):
    """A release, and what it is worth on the newest week beside what ranked before anything was learned.

    ended: by what, where it was not by itself; then the release is of what had been learned so far.
    """

    release: Release
    worth: dict[str, Worth]
    ended: Ended
    curve: list[tuple[int, float]]


def train(
    history: History,
    home: Path,
    data: str,
    now_ms: int,
    settings: TrainSettings,
    tower: Path | None,
    step: Step,
    log: Log = lambda name, at, value: None,
) -> Trained:
    """Train on all of a history and make the release the champion. Raises Misuse where there is too little,
    Unavailable where the disk is full.

    Judged by a fit that has not seen the newest week; what serves is then fitted on all weeks. Where time or Ctrl-C ends
    either, what serves is the former, as far as it came. log: is told losses and worth as they come.
    """
    began_s = time.monotonic()
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
    learner = Learner(history, side.vectors, settings, step, log=log, began_s=began_s)
    learner.live_until(end_s)
    fitted = learner.fit(hold_out=1)
    worth = learner.judge(fitted)
    ended = fitted.descent.ended
    if ended in ("", "early"):
        try:
            whole = learner.fit()
            ended = whole.descent.ended
        except KeyboardInterrupt:  # before a first step
            ended = "stopped"
        fitted = fitted if ended in ("minutes", "stopped") else whole
    releases_folder(home).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="draft-", dir=releases_folder(home)) as scratch:
        draft = Path(scratch) / "release"
        draft.mkdir()
        try:
            side.save(draft)
            fitted.save(draft)
            save_item_models(learner.world.shop.item_models, draft)
        except SafetensorError as error:  # wraps what the system said
            raise Unavailable(
                f"{releases_folder(home)} cannot be written ({error}): make room and train again"
            ) from None
        manifest = Manifest(
            created_ts_ms=now_ms, data=data, data_until_ts_ms=end_s * 1000, features=NAMES, metrics=_figures(worth)
        )
        return Trained(publish(home, draft, manifest), worth, ended, learner.curve)


def _figures(worth: dict[str, Worth]) -> dict[str, float]:
    """The figures of a release by name: of what serves as they are called, of the others with their name behind."""
    return {
        name if scorer == OURS else f"{name}_{scorer.replace(' ', '_')}": value
        for scorer, of in worth.items()
        for name, value in msgspec.structs.asdict(of).items()
        if value is not None
    }


OURS = "scorer"


class Fitted(msgspec.Struct, frozen=True):
    """What was learned of ranking: the features' network, a linear one for when it fails, and the tower, or none."""

    network: Network
    linear: Network
    net: SequenceNet | None
    descent: Descent = Descent("", 1.0, [])

    def score(self, lists: Lists, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of lists, (N, H), by NumPy and torch: for judging before an export."""
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
        log: Log = lambda name, at, value: None,
        began_s: float | None = None,
    ) -> None:
        """policy: of how many candidates, from which sources, a list is made. began_s: when `minutes` began, else now."""
        self.world, self.vectors = World(history, vectors), vectors
        self.policy = policy
        self.sources = default_sources(self.policy)
        self._settings, self._step, self._log = settings, step, log
        self._began_s = time.monotonic() if began_s is None else began_s
        self.curve: list[tuple[int, float]] = []  # of the last fit with a week held out
        self._rng = np.random.default_rng(settings.seed)
        self._weeks, self._strangers = list[Lists](), list[Lists]()  # the latter beside the former
        self._cuts_s: list[int] = []  # their moments
        self._fitted_s = 0

    def live_until(self, until_s: int) -> None:
        """Replay to a moment, with lists at weekly cuts before it, their labels before it too. Raises Misuse."""
        settings, history = self._settings, self.world.history
        first_s = max(int(history.ts_s[0]) + settings.warm_up_days * DAY_S, self.world.now_s)
        cuts_s = [until_s - WEEK_S * back for back in range(settings.cuts, 0, -1)]
        cuts_s = [cut_s for cut_s in cuts_s if cut_s >= first_s]
        for done, cut_s in enumerate(cuts_s):
            if self._skips(len(cuts_s) - done):
                continue
            if cut_s - self._fitted_s >= settings.refit_days * DAY_S:
                self._fit_item_models(cut_s)
            self._step("lists of past weeks", done, len(cuts_s))
            lists = make_lists(self.world, cut_s, until_s, self.sources, self.policy, settings.per_cut, self._rng)
            if lists.bought.any():
                self._weeks.append(lists)
                self._strangers.append(make_strangers(self.world, lists, until_s, self.sources, self.policy, self._rng))
                self._cuts_s.append(cut_s)
        self._step("lists of past weeks", len(cuts_s), len(cuts_s))
        self._fit_item_models(until_s)
        self.world.advance(until_s)
        for kept in (self._weeks, self._strangers, self._cuts_s):
            del kept[: -settings.cuts]
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

    @property
    def weeks(self) -> int:
        """How many weeks of lists there are."""
        return len(self._weeks)

    def split(self, hold_out: int) -> tuple[Lists, Lists]:
        """The lists of all weeks but the newest `hold_out` (of all for 0), and those of the first week held out.

        What its users did next is in none of the former. Raises Misuse where nothing is left of them.
        """
        held = self._weeks[-max(hold_out, 1)]
        until = len(self._weeks) - hold_out
        lists = join([*self._weeks[:until], *self._strangers[:until]])
        if hold_out:
            lists = lists.before(self._cuts_s[-hold_out])
        if not len(lists.ends):
            raise Misuse(
                "no user came back before the week that is held out, so nothing can be judged; load more history"
            )
        return lists, held

    def _skips(self, left: int) -> bool:
        """Whether an older cut is left out, so that the newest, which say most, are made in time."""
        made, took_s = len(self._weeks), time.monotonic() - self._began_s
        if not self._settings.minutes or not made or left < 2:
            return False
        return took_s / made * left > LISTS * self._settings.minutes * 60 - took_s

    def fit(self, hold_out: int = 0, settings: TrainSettings | None = None) -> Fitted:
        """The scorers of all weeks but the newest `hold_out`. Deterministic for a seed.

        settings: of the fit, if others than those by which lists were made. With patience the newest week first says after
        which share of the steps to end. Raises Misuse.
        """
        settings = settings or self._settings
        until = 1.0
        if settings.patience and not hold_out:
            first = self._fit(1, settings, 1.0)
            if first.descent.ended == "stopped":
                return first
            until = first.descent.best
        return self._fit(hold_out, settings, until)

    def _fit(self, hold_out: int, settings: TrainSettings, until: float) -> Fitted:
        lists, held = self.split(hold_out)
        if lists.bought.all():
            raise Misuse("in every list everything was bought, so there is nothing to tell apart; load more history")
        left_s = settings.minutes * 60 - (time.monotonic() - self._began_s)
        # Of what is left, what is judged may take half, if another fit follows.
        deadline_s = time.monotonic() + left_s / (2 if hold_out else 1) if settings.minutes else math.inf
        linear, descent = fit(lists, msgspec.structs.replace(settings, hidden=(), members=1), self._step, until=until)
        network = linear
        if settings.hidden and descent.ended != "stopped":
            watched = held if hold_out else None
            network, descent = fit(lists, settings, self._step, self.vectors, watched, until, deadline_s, self._log)
            if watched and descent.ended in ("minutes", "stopped"):  # the linear one went through its whole schedule
                network = max(linear, network, key=lambda one: mean_ndcg(one.score(watched.features), watched))
        if hold_out:
            self.curve = descent.curve
        net = None
        if settings.tower_width and self.vectors.shape[1] and descent.ended != "stopped":
            base = network.score(lists.features)
            net, last = fit_sequence(lists, base, self.vectors, settings, self._step, self._log, deadline_s)
            if last.ended:
                descent = msgspec.structs.replace(descent, ended=last.ended)
        return Fitted(network, linear, net, descent)

    def judge(self, fitted: Fitted) -> dict[str, Worth]:
        """What was there before, and what was learned, on the newest week; fair if that was held out."""
        scores = {
            "own frequency": before(self.newest),
            "linear": fitted.linear.score(self.newest.features),
            OURS: fitted.score(self.newest, self.vectors),
        }
        if fitted.net is not None:
            scores["without tower"] = fitted.network.score(self.newest.features)
        return judge_scores(scores, self.newest, self.vectors, self.world.shop.catalogue)


LISTS = 0.6  # of the time, for lists
