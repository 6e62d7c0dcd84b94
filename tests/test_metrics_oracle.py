"""The same figures as ranx and ir_measures (with pyndeval) give, on drawn lists and truths.

Skipped where the extra `dev` was installed before it had them.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from recsys.metrics import (
    alpha_ndcg,
    average_precision_at_k,
    f1_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank_at_k,
    subtopic_recall,
)

K = 10
USERS = 60
FIGURES = {
    "precision": precision_at_k,
    "recall": recall_at_k,
    "f1": f1_at_k,
    "mrr": reciprocal_rank_at_k,
    "map": average_precision_at_k,
    "ndcg": ndcg_at_k,
}


def drawn() -> tuple[dict[str, list[str]], dict[str, set[str]]]:
    """Lists of ten and truths of one to ten: where |truth| ≤ k the libraries' MAP and ours have one divisor."""
    rng = np.random.default_rng(0)
    items = np.array([f"i{n:02}" for n in range(40)])
    lists = {f"u{user}": rng.permutation(items)[:K].tolist() for user in range(USERS)}
    return lists, {user: set(rng.permutation(items)[: rng.integers(1, K + 1)].tolist()) for user in lists}


def as_scores(lists: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    return {user: {item: float(K - place) for place, item in enumerate(ranked)} for user, ranked in lists.items()}


# In a process of its own, as numba is told at its import to compile nothing: what it takes a minute or three to compile
# here, Python computes at once.
RANX = """
import json, sys, warnings
warnings.simplefilter("ignore")  # invalid escapes in its docstrings
import ranx
lists, truths, metrics = json.load(sys.stdin)
print(json.dumps(ranx.evaluate(ranx.Qrels(truths), ranx.Run(lists), metrics)))
"""


@pytest.mark.skipif(find_spec("ranx") is None, reason="ranx is not installed: `make setup` brings it")
def test_accuracy_is_that_of_ranx() -> None:
    lists, truths = drawn()
    asked = (
        as_scores(lists),
        {user: dict.fromkeys(truth, 1) for user, truth in truths.items()},
        [f"{n}@{K}" for n in FIGURES],
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", RANX],
        input=json.dumps(asked),
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = json.loads(done.stdout)
    for name, figure in FIGURES.items():
        ours = np.mean([figure(lists[user], truths[user], K) for user in lists])
        assert ours == pytest.approx(theirs[f"{name}@{K}"], abs=1e-9), name


def test_accuracy_is_that_of_ir_measures() -> None:
    ir = pytest.importorskip("ir_measures")
    lists, truths = drawn()
    theirs = {"precision": ir.P, "recall": ir.R, "mrr": ir.RR, "map": ir.AP, "ndcg": ir.nDCG}
    qrels = [ir.Qrel(user, item, 1) for user, truth in truths.items() for item in truth]
    docs = [ir.ScoredDoc(user, *pair) for user, scored in as_scores(lists).items() for pair in scored.items()]
    found = {
        (one.query_id, str(one.measure)): one.value
        for one in ir.iter_calc([m @ K for m in theirs.values()], qrels, docs)
    }
    for name, measure in theirs.items():
        for user, ranked in lists.items():
            assert FIGURES[name](ranked, truths[user], K) == pytest.approx(found[user, str(measure @ K)], abs=1e-9)


# Exact in binary: at .9 sums that are equal differ in their last bits, and the ideal's ties go by rounding.
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_several_wishes_are_judged_as_pyndeval_does(alpha: float) -> None:
    ir = pytest.importorskip("ir_measures")
    pytest.importorskip("pyndeval")
    lists, truths = drawn()
    rng = np.random.default_rng(1)
    # Few topics and many items: the greedy ideal has ties at every step.
    about = {
        user: {item: {f"t{t}" for t in np.flatnonzero(rng.random(5) < 0.4)} for item in truth}
        for user, truth in truths.items()
    }
    about = {user: of for user, of in about.items() if any(of.values())}
    qrels = [ir.Qrel(user, item, 1, topic) for user, of in about.items() for item, ts in of.items() for topic in ts]
    docs = [ir.ScoredDoc(user, *pair) for user in about for pair in as_scores(lists)[user].items()]
    measures = [ir.alpha_nDCG(alpha=alpha) @ K, ir.StRecall @ K]
    # One at a time: asked together with another α than .5, pyndeval's recall of subtopics comes back as 0.
    answers = [one for measure in measures for one in ir.iter_calc([measure], qrels, docs)]
    found = {(one.query_id, str(one.measure)): one.value for one in answers}
    assert len(found) == 2 * len(about)
    for user, of in about.items():
        assert alpha_ndcg(lists[user], of, K, alpha) == pytest.approx(found[user, str(measures[0])], abs=1e-9)
        assert subtopic_recall(lists[user], of, K) == pytest.approx(found[user, str(measures[1])], abs=1e-9)
