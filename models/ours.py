"""Our own lists, as the evaluation protocol asks for them: the pipeline that serves, at moments in the past.

At each origin the scorer is fitted anew on the weeks before it, and lists are made from profiles and signals replayed
up to it. Nothing else differs from serving, except that only the origin's catalogue may be shown.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.deep import Deep
from models.history import History
from models.ladder import Ladder
from models.origins import Origin, Task
from models.train_settings import Step, TrainSettings
from models.training import Learner
from models.world import World
from recsys.candidates import Source
from recsys.errors import ModelRejected
from recsys.features import NAMES
from recsys.pipeline import recommend
from recsys.policy import Policy
from recsys.scoring import Ask, Score, Scored

BATCH = 64  # users a call, as a busy ranker would


class Scorers:
    """The scorers of the newest moment asked for, one a seed; fitted once for all who make lists with them.

    Moments must come in the order of time: history is replayed once.
    """

    def __init__(
        self,
        history: History,
        vectors: NDArray[np.float32],
        policy: Policy,
        settings: TrainSettings,
        step: Step,
        seeds: int = 1,
    ) -> None:
        """policy: of how many candidates, from which sources, training lists are made."""
        self.learner = Learner(history, vectors, settings, step, policy)
        self._settings, self._seeds = settings, range(settings.seed, settings.seed + seeds)
        self._at_s, self._scores = -1, list[Score]()

    def at(self, at_s: int) -> list[Score]:
        """The scorers as of a moment, to which the learner's world is advanced."""
        if at_s != self._at_s:
            self.learner.live_until(at_s)
            self._at_s = at_s
            self._scores = []
            for seed in self._seeds:
                fitted = self.learner.fit(settings=msgspec.structs.replace(self._settings, seed=seed))
                if fitted.descent.ended == "stopped":  # half a fit may serve, but is not what is judged
                    raise KeyboardInterrupt
                with tempfile.TemporaryDirectory() as folder:
                    fitted.save(Path(folder))
                    self._scores.append(_undegraded(Ladder(Path(folder), NAMES).score))
        return self._scores

    @property
    def newest(self) -> list[Score]:
        """Those fitted last; the world may have lived on since."""
        return self._scores


class Ours:
    """A Recommender: the lists of one policy, with a deep stage behind its scorer or without."""

    name = "slatecast"

    def __init__(self, scorers: Scorers, policy: Policy, deep: Deep | None = None) -> None:
        self._scorers, self._policy, self._deep = scorers, policy, deep

    def rank(self, origin: Origin, task: Task, k: int) -> NDArray[np.int64]:
        """(seeds, U, k) rows, -1 padded; see `models.origins.Recommender`."""
        scores, learner = self._scorers.at(origin.at_s), self._scorers.learner
        if self._deep:
            ranked = msgspec.structs.replace(self._policy, repeats=task)
            scores = [_undegraded(self._deep.around(score, ranked)) for score in scores]
        return np.stack(
            [show(learner.world, learner.sources, score, self._policy, origin, task, k) for score in scores]
        )


def _undegraded(best: Score) -> Score:
    """What the best scorer says, or an error: the figures must be of the scorer they name."""

    def score(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        scored = best(asks, vectors)
        if scored.degraded_reason:
            raise ModelRejected(f"a lesser scorer would be judged: {scored.degraded_reason}")
        return scored

    return score


def show(
    world: World, sources: Sequence[Source], score: Score, policy: Policy, origin: Origin, task: Task, k: int
) -> NDArray[np.int64]:
    """The lists that a ranker would make for an origin's users, from a world that stands at it: (U, k) rows, -1 padded.

    Only the origin's catalogue is shown. Where policy prices exposure, every list shown counts for those after it, and
    all users were shown a list before, as in a shop that runs. About 2 ms a list, or 4.
    """
    catalogue, signals = world.shop.catalogue, world.shop.signals
    allowed = np.zeros(len(catalogue.available), np.bool_)
    allowed[origin.rows] = True
    known, catalogue.available = catalogue.available, allowed
    policy = msgspec.structs.replace(policy, repeats=task, slate_size=k)
    shown_before, lists = signals.exposure, np.full((len(origin.users), k), -1, np.int64)
    for _ in range(2 if policy.exposure_penalty else 1):
        for start in range(0, len(origin.users), BATCH):
            places = np.arange(start, min(start + BATCH, len(origin.users)))
            requests = [world.request(user) for user in origin.users[places].tolist()]
            for place, draft in zip(places, recommend(requests, world.shop, sources, score, policy), strict=True):
                rows = [catalogue.row(item.item) for item in draft.items]
                lists[place, : len(rows)] = rows
            batch = lists[places]
            signals.count_shown(batch[batch >= 0], world.now_s)
    signals.restore_shown(shown_before)
    catalogue.available = known
    return lists
