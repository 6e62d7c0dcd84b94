"""`slatecast tune`: the most varied policy that loses no more than is allowed, found on history.

One scorer, fitted once at a moment in the past; lists of a grid of policies; the best by the objective below. The policy
found is then judged at a later moment that took no part in the choice, by a scorer fitted there: only those figures say
what it is worth, for the best of many tried flatters itself where it was chosen.

Objective: among policies with NDCG@10 ≥ (1 - lose) × that of relevance alone,
    gain = log(overlap of relevance alone / overlap) + log(min(category distance, that of real baskets) / that of relevance alone)
is largest: halving the overlap between users counts as much as doubling the distance within lists, and lists more mixed
than what people buy gain nothing. Called by the command line.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from math import log

import msgspec
from msgspec.structs import replace

from models.comparing import TOP_K, Compared, Comparison, compare
from models.judging import BASKETS, Shop
from models.origins import DAY_S, WINDOW_S, Task
from models.ours import Scorers
from models.train_settings import Step
from recsys.errors import Misuse
from recsys.policy import Policy

OBJECTIVE = "log(overlap of relevance alone / overlap) + log(min(distance, of baskets) / distance of relevance alone)"
STRENGTHS = (0.0, 0.05, 0.15, 0.3)
PRICES = (0.0, 5.0, 10.0, 20.0)  # exposure_penalty
COVERAGES = ("none", "calibration")
SINGLE = {
    "strength": (0.0, 0.05, 0.1, 0.15, 0.3, 0.5),
    "exposure_penalty": (2.0, 5.0, 10.0, 20.0, 40.0),
    "coverage": ("root", "log", "xquad", "calibration"),
}  # one knob at a time, the others off: the sliders
LEAST = 1e-6  # overlap that is none at all would be worth everything


class Tried(msgspec.Struct, frozen=True):
    """One policy at the moment of tuning. knobs: those of it that were turned; gain: see OBJECTIVE."""

    name: str
    knobs: dict[str, float | str]
    ratio: float
    category_distance: float
    closest: float
    overlap: float
    overlap_of_ease: float | None
    homogenisation: float
    within: bool
    gain: float


class Tuned(msgspec.Struct, frozen=True):
    """What was tried and chosen, and what the choice is worth later. chosen: the knobs that differ from the default.

    tuned: every figure of every policy tried; judged: relevance alone, the default and the chosen policy, later.
    """

    source: str
    task: Task
    lose: float
    objective: str
    chosen: str
    policy: Policy
    tried: list[Tried]
    tuned: Comparison
    judged: Comparison


def grid(policy: Policy) -> dict[str, Policy]:
    """Relevance alone first, then every combination of strength, price and coverage, by name.

    >>> policies = grid(Policy())
    >>> next(iter(policies)), len(policies)
    ('top-k', 32)
    """
    policies = {}
    for strength, price, coverage in product(STRENGTHS, PRICES, COVERAGES):
        knobs: dict[str, float | str] = {"strength": strength, "exposure_penalty": price, "coverage": coverage}
        policies[_name(knobs)] = turn(policy, knobs)
    return {TOP_K: policies.pop(_name({"strength": 0.0, "exposure_penalty": 0.0, "coverage": "none"}))} | policies


def sliders(policy: Policy) -> dict[str, Policy]:
    """Relevance alone first, then each knob by itself, the others off."""
    off: dict[str, float | str] = {"strength": 0.0, "exposure_penalty": 0.0, "coverage": "none"}
    policies = {TOP_K: turn(policy, off)}
    for knob, values in SINGLE.items():
        for value in values:
            if value:
                policies[_name({knob: value})] = turn(policy, off | {knob: value})
    return policies


def turn(policy: Policy, knobs: Mapping[str, float | str]) -> Policy:
    """The policy with knobs turned. Strength 0 needs no method; any other keeps the policy's, or takes the default's."""
    method = policy.diversity if policy.diversity != "none" else Policy().diversity
    turned = msgspec.convert(msgspec.to_builtins(policy) | dict(knobs), Policy)
    return replace(turned, diversity=method if turned.strength else "none")


def tune(
    scorers: Scorers,
    policy: Policy,
    tune_s: int,
    judge_s: Sequence[int],
    lose: float,
    shop: Shop,
    source: str,
    min_buyers: int,
    seed: int = 0,
    step: Step = lambda what, done, of: None,
) -> Tuned:
    """Choose at one moment, judge at later ones, for what the policy's `repeats` says.

    policy: what is not turned (caps, sizes, sources) stays as it is. lose: of NDCG@10 of relevance alone, in [0, 1).
    judge_s: unix seconds, ascending. Raises Misuse where relevance alone finds nothing, and where the first is less than
    four weeks after tune_s, so that the choice would know what judges it.
    """
    if judge_s[0] - tune_s < WINDOW_S:
        raise Misuse(
            f"judged {(judge_s[0] - tune_s) / DAY_S:g} days after the moment of tuning, the choice would know purchases that "
            f"judge it; name moments {WINDOW_S // DAY_S} days or more apart"
        )
    task = policy.repeats
    policies = grid(policy)
    tuned = compare(scorers, policies, [tune_s], task, shop, source, min_buyers, seed, False, step)
    tried = rate(tuned, policies, lose)
    best = max((one for one in tried if one.within), key=lambda one: one.gain)  # relevance alone is always within
    later = {TOP_K: policies[TOP_K], "as it was": policy, "tuned": policies[best.name]}
    judged = compare(scorers, later, judge_s, task, shop, source, min_buyers, seed, False, step)
    return Tuned(source, task, lose, OBJECTIVE, best.name, policies[best.name], tried, tuned, judged)


def rate(found: Comparison, policies: Mapping[str, Policy], lose: float) -> list[Tried]:
    """Each policy's gain and whether it is within what may be lost. Raises Misuse where nothing can be lost."""
    alone = found.of(TOP_K)
    baskets = next((row for row in found.table if row.name == BASKETS), None)
    cap = baskets.variety.category_distance if baskets else None
    tried = []
    for name, policy in policies.items():
        row = found.of(name)
        if row.ratio is None:
            raise Misuse("relevance alone found nothing of what was bought, so nothing can be weighed against it")
        knobs: dict[str, float | str] = {
            "strength": policy.strength if policy.diversity != "none" else 0.0,
            "exposure_penalty": policy.exposure_penalty,
            "coverage": policy.coverage,
        }
        v = row.variety
        tried.append(
            Tried(
                name,
                knobs,
                row.ratio,
                v.category_distance,
                v.category_minimum,
                v.overlap,
                row.overlap_of_ease,
                v.homogenisation,
                row.ratio >= 1 - lose,
                _gain(row, alone, cap),
            )
        )
    return tried


def _gain(row: Compared, alone: Compared, cap: float | None) -> float:
    """See OBJECTIVE."""
    distance, before = row.variety.category_distance, alone.variety.category_distance
    if cap is not None:  # where relevance alone is above it, less is no loss down to it
        distance, before = min(distance, cap), min(before, cap)
    apart = log(max(distance, LEAST) / max(before, LEAST))
    return log(max(alone.variety.overlap, LEAST) / max(row.variety.overlap, LEAST)) + apart


def as_toml(policy: Policy, about: str) -> str:
    """What differs from the default policy, as a settings file that `--config` reads. about: its first lines, a comment.

    >>> print(as_toml(Policy(strength=0.3, coverage="root"), "tuned"), end="")
    # tuned
    [policy]
    strength = 0.3
    coverage = "root"
    """
    lines = [f"# {line}" for line in about.splitlines()] + ["[policy]"]
    default = msgspec.to_builtins(Policy())
    for name, value in msgspec.to_builtins(policy).items():
        if value != default[name]:
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """A value of builtins; strings and numbers are written as in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(of)}" for key, of in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return msgspec.json.encode(value).decode()


def _name(knobs: Mapping[str, float | str]) -> str:
    """As in 'strength .3, price 1, calibration'."""
    words = [f"strength {knobs['strength']:g}"] if "strength" in knobs else []
    words += [f"price {knobs['exposure_penalty']:g}"] if "exposure_penalty" in knobs else []
    return ", ".join([*words, str(knobs["coverage"])] if "coverage" in knobs else words)
