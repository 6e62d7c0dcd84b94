"""`slatecast tune-training`: settings of `train` that fit one shop better, found within a budget of time.

    lists are made once → each trial fits a scorer on all weeks but two → judged on the first of the two
    bad trials end early (median of those before at the same share) → a journal, so that a killed search goes on
    the best and the default are fitted once more and judged on the newest week, which no trial has seen

The search is Optuna's (TPE, Bergstra et al. 2011). Policies are tuned elsewhere: tuning.py. Called by the command line.
"""

import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optuna
from msgspec.structs import replace
from numpy.typing import NDArray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from models.examples import Lists
from models.fitting import Log
from models.history import History
from models.list_worth import mean_ndcg, ndcgs
from models.network_training import fit
from models.train_settings import Step, TrainSettings
from models.training import Learner
from recsys.errors import Misuse, ModelRejected
from recsys.metrics import interval, resample_means

Logits = NDArray[np.float32]
JOURNAL, STUDY = "journal.jsonl", "train"
TOP = 10  # reports a trial, by share of its steps: at equal shares the rate stands equally high


class Range(msgspec.Struct, frozen=True):
    """What a setting may be in a search: between two ends, or one of some."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()


# What a fit can feel. Left out: what costs serving time (the tower), what lists are made of (made once), and what gained
# nothing alone (docs/training.md).
SPACE: Mapping[str, Range] = {
    "learning_rate": Range(5e-4, 2e-2, log=True),
    "weight_decay": Range(1e-3, 0.5, log=True),
    "dropout": Range(0.0, 0.5),
    "drop_features": Range(0.0, 0.2),
    "epochs": Range(choices=(4, 6, 8, 12)),
    "batch": Range(choices=(32, 64, 128)),
    "hidden": Range(choices=("32", "64,32", "128,64", "128,64,32")),  # as `--set hidden=` takes it
    "average": Range(choices=(0.0, 0.99)),
}


class Found(msgspec.Struct, frozen=True):
    """Of the search: NDCG@10 (mean of all and new) of the default and the best on the week that trials were judged by.

    unseen_*: the same on the newest week, which no trial has seen; gain_95: of the best over the default there, paired over
    lists, in NDCG.
    """

    settings: TrainSettings
    trials: int
    pruned: int
    default: float
    best: float
    unseen_default: float
    unseen_best: float
    gain_95: tuple[float, float]


def search(
    history: History,
    vectors: NDArray[np.float32],
    base: TrainSettings,
    folder: Path,
    minutes: float,
    trials: int | None,
    step: Step,
    log: Log,
) -> Found:
    """The best settings within `minutes`, of which making lists and judging what is found are parts, or `trials`.

    The default is always tried to its end. base: where it begins, and what is not turned. folder: of the journal; what is in it already counts. Raises Misuse where
    history is too short for three weeks of lists.
    """
    ends_s = time.monotonic() + minutes * 60
    learner = Learner(history, vectors, base, step)
    learner.live_until(int(history.ts_s[-1]) + 1)
    if learner.weeks < 3:
        raise Misuse(
            "a search needs three weeks of lists: to learn from, to choose by, and to judge by; load more history"
        )
    study = _open(folder / JOURNAL, base.seed)
    space, start = space_around(base)
    if not _finished(study, start):
        study.enqueue_trial(start)
    done, longest_s = len(study.trials), 0.0

    def one(trial: optuna.Trial) -> float:
        nonlocal longest_s
        step("trials", trial.number - done, trials or 0)
        values = {name: _suggest(trial, name, of) for name, of in space.items()}
        began_s = time.monotonic()
        until_s = ends_s - 2 * longest_s if longest_s else math.inf  # two fits judge what is found
        try:
            worth = _try(learner, turn(base, values), trial, until_s)
        except (Misuse, ModelRejected):  # a loss or weights that are no numbers: so bold a rate is just no good
            if values == start:
                raise
            raise optuna.TrialPruned from None
        finally:
            longest_s = max(longest_s, time.monotonic() - began_s)
            if time.monotonic() >= ends_s - 2 * longest_s:
                study.stop()
        log("search/ndcg_at_10", trial.number + 1, worth)
        return worth

    study.optimize(one, n_trials=trials)
    return _conclude(learner, base, study)


def turn(base: TrainSettings, values: Mapping[str, Any]) -> TrainSettings:
    """The settings with some turned, as the space says them."""
    hidden = (
        {"hidden": tuple(int(width) for width in values["hidden"].split(",") if width)} if "hidden" in values else {}
    )
    return replace(base, **{**values, **hidden})


def _finished(study: optuna.Study, values: Mapping[str, Any]) -> list[optuna.trial.FrozenTrial]:
    """The trials of these values that came to their end."""
    whole = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    return [trial for trial in whole if trial.params == values]


def _open(journal: Path, seed: int) -> optuna.Study:
    """The study of a journal, or a new one. What a kill left is cleared: half a line, a trial that still runs."""
    if journal.exists():
        raw = journal.read_bytes()
        journal.write_bytes(raw[: raw.rfind(b"\n") + 1])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():  # the journal is called experimental; it is a file of JSON lines
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(
            storage=storage,
            study_name=STUDY,
            load_if_exists=True,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=TOP // 2),
        )
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    # By how many there were: a search that goes on would else draw what it drew before.
    study.sampler = optuna.samplers.TPESampler(seed=seed * 1_000_003 + len(study.trials), n_startup_trials=6)
    return study


def space_around(base: TrainSettings) -> tuple[dict[str, Range], dict[str, Any]]:
    """The space, widened to hold what is there; and what is there, as the first trial.

    >>> space, start = space_around(TrainSettings(epochs=2, dropout=0.7))
    >>> space["epochs"].choices, space["dropout"].high, start["hidden"]
    ((4, 6, 8, 12, 2), 0.7, '64,32')
    """
    start = {name: getattr(base, name) for name in SPACE} | {"hidden": ",".join(map(str, base.hidden))}
    space = {}
    for name, of in SPACE.items():
        if of.choices:
            space[name] = replace(of, choices=tuple(dict.fromkeys((*of.choices, start[name]))))
        else:
            low, high = min(of.low, start[name]), max(of.high, start[name])
            space[name] = replace(of, low=low, high=high, log=of.log and low > 0)
    return space, start


def _suggest(trial: optuna.Trial, name: str, of: Range) -> Any:
    if of.choices:
        return trial.suggest_categorical(name, of.choices)
    return trial.suggest_float(name, of.low, of.high, log=of.log)


def _try(learner: Learner, settings: TrainSettings, trial: optuna.Trial, until_s: float) -> float:
    """Fit on all weeks but two, judge on the first of the two; a bad trial ends early, as one for which there is no time.
    Ctrl-C ends the search.
    """
    told, share = set[int](), [0.0]

    def step(what: str, done: int, of: int) -> None:
        share[0] = done / of

    def log(name: str, at: int, value: float) -> None:
        if name.endswith("ndcg_at_10") and (rung := int(share[0] * TOP)) not in told:
            told.add(rung)
            trial.report(value, rung)
            if trial.should_prune():
                raise optuna.TrialPruned

    lists, held = learner.split(2)
    network, descent = fit(lists, settings, step, learner.vectors, held, deadline_s=until_s, log=log)
    if descent.ended == "stopped":
        raise KeyboardInterrupt
    if descent.ended == "minutes":
        raise optuna.TrialPruned
    return mean_ndcg(network.score(held.features), held)


def _conclude(learner: Learner, base: TrainSettings, study: optuna.Study) -> Found:
    """Judge the best beside the default on the week that no trial has seen."""
    before = _finished(study, space_around(base)[1])
    if not before:
        raise Misuse("the settings that are there did not come to their end; give it more --minutes")
    settings = turn(base, study.best_params)
    lists, held = learner.split(1)
    scores = []
    for chosen in (base, settings):
        network, descent = fit(lists, chosen, lambda what, done, of: None, learner.vectors)
        if descent.ended == "stopped":  # half a fit is not what is judged
            raise KeyboardInterrupt
        scores.append(network.score(held.features))
    return Found(
        settings=settings,
        trials=len(study.trials),
        pruned=sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials),
        default=before[0].value or 0.0,
        best=study.best_value,
        unseen_default=mean_ndcg(scores[0], held),
        unseen_best=mean_ndcg(scores[1], held),
        gain_95=gain_95(scores[0], scores[1], held),
    )


def gain_95(default: Logits, best: Logits, held: Lists) -> tuple[float, float]:
    """95 % of the gain in `mean_ndcg` of one scorer's logits over another's, (N, H) each, paired over lists.

    A draw has the same lists for both heads: what is new to a user counts in either, so they gain and lose together.
    """
    gains = np.stack([ndcgs(best, held, head) - ndcgs(default, held, head) for head in (0, 1)], axis=1)
    drawn = resample_means(np.hstack([np.nan_to_num(gains), np.isfinite(gains)]), np.random.default_rng(0))
    return interval((drawn[:, :2] / np.maximum(drawn[:, 2:], 1e-12)).mean(axis=1))
