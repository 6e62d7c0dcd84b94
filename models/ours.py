"""Our own lists, as the evaluation protocol asks for them: the pipeline that serves, at moments in the past.

At each origin the scorer is fitted anew on the weeks before it, and lists are made from profiles and signals replayed
up to it. Nothing else differs from serving, except that only the origin's catalogue may be shown, and that task `new`
also leaves out purchases older than a profile remembers.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

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
        self._seeds = range(settings.seed, settings.seed + seeds)
        self._at_s, self._scores = -1, list[Score]()

    def at(self, at_s: int) -> list[Score]:
        """The scorers as of a moment, to which the learner's world is advanced."""
        if at_s != self._at_s:
            self.learner.live_until(at_s)
            self._at_s = at_s
            self._scores = []
            for seed in self._seeds:
                with tempfile.TemporaryDirectory() as folder:
                    self.learner.fit(seed=seed).save(Path(folder))
                    self._scores.append(_undegraded(Ladder(Path(folder), NAMES)))
        return self._scores

    @property
    def newest(self) -> list[Score]:
        """Those fitted last; the world may have lived on since."""
        return self._scores


class Ours:
    """A Recommender: the lists of one policy."""

    name = "slatecast"

    def __init__(self, scorers: Scorers, policy: Policy) -> None:
        self._scorers, self._policy = scorers, policy

    def rank(self, origin: Origin, task: Task, k: int) -> NDArray[np.int64]:
        """(seeds, U, k) rows, -1 padded; see `models.origins.Recommender`."""
        scores, learner = self._scorers.at(origin.at_s), self._scorers.learner
        return np.stack(
            [show(learner.world, learner.sources, score, self._policy, origin, task, k) for score in scores]
        )


def _undegraded(ladder: Ladder) -> Score:
    """The ladder's first step, or an error: the figures must be of the scorer they name."""

    def score(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        scored = ladder.score(asks, vectors)
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
    # A longer list than asked: of `new` some places fall to purchases that the profile has forgotten. Greedy choice
    # makes the first k of a longer list the list of k.
    policy = msgspec.structs.replace(policy, repeats=task, slate_size=2 * k)
    shown_before = signals.exposure
    for _ in range(2 if policy.exposure_penalty else 1):
        lists = np.full((len(origin.users), k), -1, np.int64)
        for start in range(0, len(origin.users), BATCH):
            requests = [world.request(user) for user in origin.users[start : start + BATCH].tolist()]
            for place, draft in enumerate(recommend(requests, world.shop, sources, score, policy), start):
                rows = np.array([catalogue.row(item.item) for item in draft.items], np.int64)
                if task == "new":
                    rows = rows[~origin.seen[place, np.searchsorted(origin.rows, rows)]]
                lists[place, : len(rows[:k])] = rows[:k]
            batch = lists[start : start + BATCH]
            signals.count_shown(batch[batch >= 0], world.now_s)
    signals.restore_shown(shown_before)
    catalogue.available = known
    return lists
