"""The ladder of scorers, on real graphs that fail when told to: no list is missing, and a mended rung is back."""

import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from release_helpers import DIM, moody_tower, network, write_scorers

from models.devices import CPU, CUDA, why_no_cuda
from models.ladder import CALL_CANDIDATES, PAUSE_MAX_S, PAUSE_S, TRIAL_S, Ladder, split
from models.scorer import Network
from models.sequence_export import save_sequence
from models.sequence_net import NetShape, SequenceNet
from models.sequence_tower import HALF
from recsys.errors import ModelRejected
from recsys.features import NAMES
from recsys.scoring import Ask, Scored, Trail

Wait = Callable[..., None]
WELL = np.zeros((3, DIM), np.float32)
TOWERED = "sequence"
DEADLINE_S = 0.3


class Clock:
    """A clock that is set by hand."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def mood(place: int, value: float) -> NDArray[np.float32]:
    """Vectors that make the tower do something; see `moody_tower`."""
    vectors = WELL.copy()
    vectors[0, place] = value
    return vectors


HANGS, RAISES, SAYS_NAN, SAYS_INF = mood(0, 1e15), mood(2, 5), mood(1, np.nan), mood(1, np.inf)


def some_asks(*lengths: int, seed: int = 0) -> list[Ask]:
    rng = np.random.default_rng(seed)
    return [
        Ask(
            rng.integers(0, len(WELL), length),
            rng.normal(size=(length, len(NAMES))).astype(np.float32),
            Trail(rng.integers(0, len(WELL), 5), rng.integers(0, 4, 5), rng.random((5, 2)).astype(np.float32)),
        )
        for length in lengths
    ]


ASKS = some_asks(20, 7)
FEATURES = np.concatenate([ask.features for ask in ASKS])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_scorers(tmp_path, moody_tower())
    return tmp_path


@pytest.fixture
def ladder(folder: Path, clock: Clock) -> Ladder:
    return Ladder(folder, NAMES, clock_s=clock, deadline_s=DEADLINE_S)


def timed(ladder: Ladder, vectors: NDArray[np.float32]) -> tuple[Scored, float]:
    start_s = time.monotonic()
    scored = ladder.score(ASKS, vectors)
    return scored, time.monotonic() - start_s


def said(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return len([record for record in caplog.records if words in record.getMessage()])


def test_the_best_rung_makes_the_list_while_all_is_well(ladder: Ladder) -> None:
    scored = ladder.score(ASKS, WELL)
    assert (scored.scorer, scored.degraded_reason) == (TOWERED, None)
    expected = (network().score(FEATURES) + FEATURES[:, :2]) / 2
    np.testing.assert_allclose(scored.logits, expected, rtol=1e-4, atol=1e-5)
    rungs = [rung.name for rung in ladder._rungs]
    assert rungs == (["sequence", "network"] if why_no_cuda() else ["sequence", "sequence_cpu", "network"])
    assert ladder.provider == (CPU if why_no_cuda() else CUDA)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (RAISES, "InvalidArgument"),
        (SAYS_NAN, "not finite"),
        (SAYS_INF, "not finite"),
        (HANGS, f"TimeoutError: no answer within {DEADLINE_S} s"),
    ],
    ids=["raises", "nan", "inf", "hangs"],
)
def test_a_rung_that_fails_is_named_replaced_at_once_and_taken_back_when_it_is_well(
    ladder: Ladder,
    clock: Clock,
    broken: NDArray[np.float32],
    reason: str,
    caplog: pytest.LogCaptureFixture,
    wait_for: Wait,
) -> None:
    caplog.set_level(logging.INFO, logger="models.ladder")
    for _ in range(3):
        scored, _ = timed(ladder, broken)
        assert scored.scorer == "network"
        assert (scored.degraded_reason or "").startswith("sequence: ")
        assert reason in (scored.degraded_reason or "")
        np.testing.assert_allclose(scored.logits, network().score(FEATURES), rtol=1e-4, atol=1e-5)
    assert ladder.score(ASKS, WELL).scorer == "network", "before its pause is over it is not asked"
    clock.now_s += PAUSE_S
    wait_for(lambda: ladder.score(ASKS, WELL).scorer == TOWERED)
    scored = ladder.score(ASKS, WELL)
    assert scored.degraded_reason is None
    assert (said(caplog, "a scorer failed"), said(caplog, "makes lists again")) == (1, 1)


def test_a_rung_that_hangs_costs_lists_one_deadline_and_its_trials_cost_them_nothing(
    ladder: Ladder, clock: Clock, wait_for: Wait
) -> None:
    scored, took_s = timed(ladder, HANGS)
    assert scored.scorer == "network"
    assert DEADLINE_S <= took_s < 3 * DEADLINE_S
    clock.now_s += PAUSE_S
    later = [timed(ladder, HANGS) for _ in range(20)]
    assert {scored.scorer for scored, _ in later} == {"network"}
    assert min(took_s for _, took_s in later) < DEADLINE_S / 10
    assert sum(took_s for _, took_s in later) < 3 * DEADLINE_S, "a trial is not waited for"
    rung = ladder._rungs[0]
    assert rung._trial is not None, "it hangs in its trial"
    clock.now_s += TRIAL_S + 1  # which is stopped in the end, and another begun when all is well
    wait_for(lambda: ladder.score(ASKS, HANGS) and rung._trial is None)
    clock.now_s += PAUSE_MAX_S
    wait_for(lambda: ladder.score(ASKS, WELL).scorer == TOWERED)


def test_an_operator_that_cannot_be_stopped_is_left_alone_until_it_ends(
    folder: Path, clock: Clock, wait_for: Wait
) -> None:
    ladder = Ladder(folder, NAMES, clock_s=clock, deadline_s=0.05)
    rung = ladder._rungs[0]
    before = rung._scorer
    assert timed(ladder, mood(3, 4000))[0].scorer == "network"
    clock.now_s += PAUSE_S
    assert ladder.score(ASKS, WELL).scorer == "network"
    assert rung._trial is not None
    assert rung._jobs.qsize() == 1, "its trial waits until the thread is free"
    assert rung._scorer is before
    assert [thread.name for thread in threading.enumerate()].count("scorer-sequence") >= 1
    wait_for(lambda: ladder.score(ASKS, WELL).scorer == TOWERED)
    assert rung._scorer is not before, "opened anew"


def test_pauses_grow_while_a_rung_fails_and_shrink_when_it_has_been_well(
    ladder: Ladder, clock: Clock, caplog: pytest.LogCaptureFixture, wait_for: Wait
) -> None:
    rung, pauses = ladder._rungs[0], []
    ladder.score(ASKS, RAISES)
    for _ in range(7):
        pauses.append(rung._again_s - clock.now_s)
        due_s = clock.now_s = rung._again_s

        def tried(due_s: float = due_s) -> bool:
            assert ladder.score(ASKS, RAISES).scorer == "network"
            return rung._again_s > due_s

        wait_for(tried)
    assert pauses == [1, 2, 4, 8, 16, 20, 20]
    assert said(caplog, "a scorer failed") == 1, "it is said once"
    clock.now_s = rung._again_s
    wait_for(lambda: ladder.score(ASKS, WELL).scorer == TOWERED)
    ladder.score(ASKS, RAISES)
    assert rung._again_s - clock.now_s == PAUSE_MAX_S, "one that comes and goes is not asked every second"
    clock.now_s = rung._again_s
    wait_for(lambda: ladder.score(ASKS, WELL).scorer == TOWERED)
    clock.now_s += PAUSE_MAX_S + 1
    ladder.score(ASKS, RAISES)
    assert rung._again_s - clock.now_s == PAUSE_S


def broken_network() -> Network:
    """Its logits overflow."""
    ones = np.ones(len(NAMES), np.float32)
    return Network(np.full((len(NAMES), 2), 3e38, np.float32), np.full(2, 3e38, np.float32), 0 * ones, ones)


def test_below_the_graphs_is_numpy_and_below_that_the_fusion_of_ranks(tmp_path: Path, clock: Clock) -> None:
    write_scorers(tmp_path, moody_tower(), broken_network())
    ladder = Ladder(tmp_path, NAMES, clock_s=clock)
    scored = ladder.score(ASKS, WELL)
    assert scored.scorer == "linear"
    np.testing.assert_array_equal(scored.logits, network().score(FEATURES))
    reasons = [reason.partition(":")[0] for reason in (scored.degraded_reason or "").split(" | ")]
    assert reasons == [rung.name for rung in ladder._rungs]
    ladder._linear = broken_network()
    with np.errstate(over="ignore", invalid="ignore"):
        scored = ladder.score(ASKS, WELL)
    assert (scored.logits, scored.scorer) == (None, "rank_fusion")
    assert all(f"{name}: " in (scored.degraded_reason or "") for name in ("sequence", "network", "linear"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_no_number_is_named_and_no_scorer_is_blamed(ladder: Ladder, value: float) -> None:
    asks = some_asks(5, 6)
    asks[1].features[2, 3] = value
    scored = ladder.score(asks, WELL)
    assert scored == Scored(None, "rank_fusion", f"features: {NAMES[3]} of candidate 7 is not a finite number")
    assert ladder.score(ASKS, WELL).scorer == TOWERED


def test_a_rung_is_opened_anew_from_what_was_verified_not_from_what_lies_there_now(
    folder: Path, ladder: Ladder, clock: Clock, wait_for: Wait
) -> None:
    ladder.score(ASKS, RAISES)
    (folder / "sequence" / "tower.onnx").write_bytes(b"something else")
    clock.now_s += PAUSE_S
    wait_for(lambda: ladder.score(ASKS, WELL).scorer == TOWERED)


@pytest.mark.parametrize("file", ["scorer.onnx", "sequence/tower.onnx"])
def test_a_graph_that_is_none_is_refused(folder: Path, file: str) -> None:
    (folder / file).write_bytes(b"no graph")
    with pytest.raises(ModelRejected, match="cannot be loaded"):
        Ladder(folder, NAMES)


def test_a_ladder_that_nobody_needs_any_more_takes_its_threads_with_it(folder: Path, wait_for: Wait) -> None:
    before = set(threading.enumerate())
    ladder = Ladder(folder, NAMES)
    ladder.score(ASKS, RAISES)
    own = set(threading.enumerate()) - before
    assert len(own) == len(ladder._rungs)
    del ladder
    gc.collect()
    wait_for(lambda: not own & set(threading.enumerate()))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 2000))
def test_a_call_is_bounded_and_no_list_is_lost_or_moved(lengths: Sequence[int], limit: int) -> None:
    asks = some_asks(*lengths)
    calls = list(split(asks, limit))
    assert [id(ask) for call in calls for ask in call] == [id(ask) for ask in asks]
    for call in calls:
        assert len(call) == 1 or len(call) * max(len(ask.rows) for ask in call) <= limit


def test_a_list_has_the_same_bits_however_many_users_are_in_the_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = SequenceNet(NetShape(len(NAMES), DIM, 16), torch.zeros(len(NAMES)), torch.ones(len(NAMES))).eval()
    torch.nn.init.normal_(net.head.weight)
    write_scorers(tmp_path, None)
    save_sequence(net, tmp_path / "sequence")
    ladder = Ladder(tmp_path, NAMES)
    rng = np.random.default_rng(0)
    asks, vectors = some_asks(*rng.integers(1, 250, 50).tolist()), rng.normal(size=(3, DIM)).astype(np.float32)
    assert len(list(split(asks, CALL_CANDIDATES[CPU]))) > 3
    together = ladder.score(asks, vectors)
    assert together.scorer == TOWERED
    alone = [ladder.score([ask], vectors).logits for ask in asks]
    np.testing.assert_array_equal(together.logits, np.concatenate(alone))  # type: ignore[arg-type]
    fast = Ladder(tmp_path, NAMES, gpu="fast").score(asks, vectors)
    assert fast.scorer == TOWERED
    # Without a GPU it is the same ladder; with one half precision keeps three digits.
    np.testing.assert_allclose(fast.logits, together.logits, atol=0 if why_no_cuda() else 1e-2)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:  # as if there were one: the fast graph and its buffers, on CPU
        patch.setattr("models.ladder.why_no_cuda", lambda: "")
        fast = Ladder(tmp_path, NAMES, gpu="fast").score(asks, vectors)
        assert (fast.scorer, fast.degraded_reason) == (TOWERED, None)
        np.testing.assert_allclose(fast.logits, together.logits, atol=1e-2)  # type: ignore[arg-type]
        assert (fast.logits != together.logits).any()
        for refuse in (
            lambda: (tmp_path / "sequence" / HALF).write_bytes(b"no graph"),
            (tmp_path / "sequence" / HALF).unlink,
        ):
            refuse()
            fast = Ladder(tmp_path, NAMES, gpu="fast").score(asks, vectors)
            np.testing.assert_array_equal(fast.logits, together.logits)
