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


class Ours:
    """A Recommender. Origins must come in the order of time: history is replayed once."""

    name = "slatecast"

    def __init__(
        self, history: History, vectors: NDArray[np.float32], policy: Policy, settings: TrainSettings, step: Step
    ) -> None:
        self._learner = Learner(history, vectors, settings, step, policy)
        self._policy, self._at_s = policy, -1

    def rank(self, origin: Origin, task: Task, k: int) -> NDArray[np.int64]:
        """(U, k) rows, -1 padded; see `models.origins.Recommender`."""
        world = self._learner.world
        if origin.at_s != self._at_s:
            self._learner.live_until(origin.at_s)
            self._at_s = origin.at_s
            with tempfile.TemporaryDirectory() as folder:
                self._learner.fit().save(Path(folder))
                self._ladder = Ladder(Path(folder), NAMES)
        return show(world, self._learner.sources, self._score, self._policy, origin, task, k)

    def _score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
        scored = self._ladder.score(asks, vectors)
        if scored.degraded_reason:
            raise ModelRejected(f"a lesser scorer would be judged: {scored.degraded_reason}")
        return scored


def show(
    world: World, sources: Sequence[Source], score: Score, policy: Policy, origin: Origin, task: Task, k: int
) -> NDArray[np.int64]:
    """The lists that a ranker would make for an origin's users, from a world that stands at it: (U, k) rows, -1 padded.

    Only the origin's catalogue is shown. About 2 ms a list.
    """
    catalogue = world.shop.catalogue
    allowed = np.zeros(len(catalogue.available), np.bool_)
    allowed[origin.rows] = True
    known, catalogue.available = catalogue.available, allowed
    # A longer list than asked: of `new` some places fall to purchases that the profile has forgotten. Greedy choice
    # makes the first k of a longer list the list of k.
    policy = msgspec.structs.replace(policy, repeats=task, slate_size=2 * k)
    lists = np.full((len(origin.users), k), -1, np.int64)
    for start in range(0, len(origin.users), BATCH):
        requests = [world.request(user) for user in origin.users[start : start + BATCH].tolist()]
        for place, draft in enumerate(recommend(requests, world.shop, sources, score, policy), start):
            rows = np.array([catalogue.row(item.item) for item in draft.items], np.int64)
            if task == "new":
                rows = rows[~origin.seen[place, np.searchsorted(origin.rows, rows)]]
            lists[place, : len(rows[:k])] = rows[:k]
    catalogue.available = known
    return lists
