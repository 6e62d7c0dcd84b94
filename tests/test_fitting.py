"""How a scorer is fitted: every setting learns, what goes wrong is said, what was learned so far is kept."""

import math
from itertools import pairwise

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shop_helpers import unit_rows

from models import losses
from models.examples import Lists
from models.fitting import Plan, descend
from models.list_worth import mean_ndcg
from models.losses import SHOWN, SOFT, SoftTop, disperse
from models.network_training import fit
from models.schedules import height, make_optimiser, set_rate
from models.scorer import Network, OnnxScorer, mean_of
from models.sequence_net import NetShape, SequenceNet
from models.sequence_tower import TRAIL_PADDED, pad_trails
from models.sequence_training import augment
from models.train_settings import TrainSettings
from recsys.errors import Misuse
from recsys.features import NAMES
from recsys.scoring import Trail

NOTHING = Trail(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 2), np.float32))
QUICK = TrainSettings(epochs=8, batch=8, hidden=(8,), learning_rate=2e-2, validate_every=10, dropout=0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def silent(what: str, done: int, of: int) -> None:
    """Progress that nobody watches."""


def drawn(seed: int, count: int = 80, long: int = 20) -> Lists:
    """Lists in which what is bought has the greatest sum of two features; half the items were bought before."""
    rng = np.random.default_rng(seed)
    features = np.zeros((count * long, len(NAMES)), np.float32)
    features[:, :4] = rng.normal(size=(count * long, 4))
    worth = (features[:, 0] + features[:, 1]).reshape(count, long)
    seen = np.tile([True, False], count * long // 2)
    best = [worth, np.where(seen.reshape(count, long), -np.inf, worth)]
    bought = np.any([at == at.max(axis=1, keepdims=True) for at in best], axis=0).ravel()
    rows = np.tile(np.arange(long), count)
    ends, clicked = np.arange(long, count * long + 1, long), np.zeros(len(rows), np.bool_)
    return Lists(rows, features, bought, clicked, seen, ends, pad_trails([NOTHING] * count), 0 * ends)


LISTS, HELD = drawn(0), drawn(1)


def worth(network: Network) -> float:
    return mean_ndcg(network.score(HELD.features), HELD)


# --- every setting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "linear", "constant"])
@pytest.mark.parametrize(("optimiser", "rate"), [("adamw", 2e-2), ("sgd", 0.1), ("adafactor", 5e-2)])
def test_every_optimiser_learns_with_every_schedule(optimiser: str, rate: float, schedule: str) -> None:
    chosen = msgspec.convert(
        {**msgspec.structs.asdict(QUICK), "optimiser": optimiser, "schedule": schedule, "learning_rate": rate},
        TrainSettings,
    )
    assert worth(fit(LISTS, chosen, silent)[0]) > 0.8  # by chance .35


@pytest.mark.parametrize(
    "change",
    [
        {"adversarial": 0.3},
        {"average": 0.9},
        {"drop_features": 0.2},
        {"members": 3},
        {"beta": 0.1},
        {"patience": 3},
        {"hidden": (16, 8)},
        {"average": 0.9, "members": 2, "adversarial": 0.1, "drop_features": 0.1, "patience": 5},
    ],
    ids=str,
)
def test_every_guard_against_over_fitting_still_learns_and_is_another_fit(change: dict[str, object]) -> None:
    vectors = unit_rows(20)
    plain, _ = fit(LISTS, QUICK, silent, vectors, HELD)
    network, descent = fit(LISTS, msgspec.structs.replace(QUICK, **change), silent, vectors, HELD)
    assert worth(network) > 0.9
    assert change.keys() == {"patience"} or any(
        a.shape != b.shape or (a != b).any() for (a, _), (b, _) in zip(network.deep, plain.deep, strict=True)
    )
    assert [at for at, _ in descent.curve] == sorted({at for at, _ in descent.curve})
    assert descent.curve[-1][1] > descent.curve[0][1] or descent.curve[0][1] > 0.95


@pytest.mark.parametrize("hidden", [(), (8,), (8, 4), (8, 4, 4)])
def test_several_networks_are_one_whose_logits_are_their_mean(hidden: tuple[int, ...], tmp_path: object) -> None:
    rng, width = np.random.default_rng(0), 5

    def layer(ins: int, outs: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return rng.normal(size=(ins, outs)).astype(np.float32), rng.normal(size=outs).astype(np.float32)

    mean, std = np.zeros(width, np.float32), np.ones(width, np.float32)
    sizes = (width, *hidden, 2)
    each = [
        Network(*layer(width, 2), mean, std, [layer(*s) for s in pairwise(sizes)] if hidden else []) for _ in range(3)
    ]
    x = rng.normal(size=(9, width)).astype(np.float32)
    expected = np.mean([network.score(x) for network in each], axis=0)
    one = mean_of(each)
    np.testing.assert_allclose(one.score(x), expected, rtol=1e-5, atol=1e-5)
    one.save(tmp_path / "scorer.onnx")  # type: ignore[operator] # checks the graph against the arrays
    np.testing.assert_allclose(OnnxScorer(tmp_path / "scorer.onnx", width).score(x), expected, rtol=1e-4, atol=1e-4)  # type: ignore[operator]


# --- what goes on meanwhile -------------------------------------------------------------------------------------------


def test_patience_keeps_the_best_and_says_when_that_was() -> None:
    """Judged by a worth that falls after its third look, the weights are those of the third."""
    network = torch.nn.Linear(1, 1)
    seen: list[torch.Tensor] = []

    def judge() -> float:
        seen.append(network.weight.detach().clone())
        return [0.1, 0.2, 0.5, 0.4, 0.3, 0.2][len(seen) - 1]

    def loss_of(batch: NDArray[np.int64], moved: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return network(torch.ones(1, 1)).sum(), torch.ones(1, 1)

    chosen = msgspec.structs.replace(QUICK, patience=2, validate_every=1)
    found = descend(network, loss_of, 10, Plan("fit", 1, 1, 0.1), chosen, judge, silent)
    assert found.ended == "early"
    assert found.best == 0.3
    assert len(seen) == 5
    assert torch.equal(network.weight, seen[2])


def test_a_loss_that_is_no_number_is_said_with_what_to_lower() -> None:
    network = torch.nn.Linear(1, 1)

    def loss_of(batch: NDArray[np.int64], moved: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return network(torch.full((1, 1), math.nan)).sum(), torch.ones(1, 1)

    with pytest.raises(Misuse, match=r"the loss is nan at step 1 of 5; lower learning_rate \(now 0.1\)"):
        descend(network, loss_of, 5, Plan("fit", 1, 1, 0.1), QUICK, None, silent)


def test_time_ends_a_fit_after_its_whole_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    passed, rates = iter(range(10**6)), []
    monkeypatch.setattr("models.fitting.time.monotonic", lambda: float(next(passed)))  # each look costs a second

    def watch(what: str, done: int, of: int) -> None:
        rates.append(optimisers[-1].param_groups[0]["lr"])

    optimisers: list[torch.optim.Optimizer] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "models.fitting.make_optimiser", lambda *a: optimisers.append(make_optimiser(*a)) or optimisers[-1]
        )
        chosen = msgspec.structs.replace(QUICK, epochs=1000)
        _, found = fit(drawn(0, 20), chosen, watch, deadline_s=100.0)
    assert found.ended == "minutes"
    assert 0 < found.best < 1
    assert max(rates) > 0.9 * QUICK.learning_rate > 10 * rates[-1]


def test_ctrl_c_ends_a_fit_with_what_it_has() -> None:
    def press(what: str, done: int, of: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    network, found = fit(LISTS, QUICK, press)
    assert found.ended == "stopped"
    assert found.best == 20 / 80
    assert worth(network) > 0.8


def test_ctrl_c_ends_all_members_of_a_scorer() -> None:
    steps = []

    def press(what: str, done: int, of: int) -> None:
        steps.append(done)
        if len(steps) == 100:  # in the second
            raise KeyboardInterrupt

    network, found = fit(LISTS, msgspec.structs.replace(QUICK, members=3), press)
    assert found.ended == "stopped"
    assert len(steps) == 100
    assert worth(network) > 0.8


def test_time_is_shared_by_all_members_of_a_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first has it all, and the others are of one step, which says nothing and takes two thirds of the mean."""
    passed, steps = iter(range(10**6)), []
    monkeypatch.setattr("models.fitting.time.monotonic", lambda: float(next(passed)))  # each look costs a second
    chosen = msgspec.structs.replace(QUICK, epochs=1000, members=3)
    _, found = fit(LISTS, chosen, lambda what, done, of: steps.append(done), deadline_s=90.0)
    assert found.ended == "minutes"
    assert [before for before, after in pairwise([*steps, 1]) if after == 1] == pytest.approx([28, 28, 28], abs=4)


@given(st.floats(0, 1), st.sampled_from(["one_cycle", "cosine", "linear", "constant"]), st.floats(0.01, 0.99))
def test_a_rate_stays_between_nothing_and_its_highest(share: float, schedule: str, warm_up: float) -> None:
    assert -1e-9 <= height(share, schedule, warm_up) <= 1 + 1e-9  # type: ignore[arg-type]
    optimiser = make_optimiser("adamw", [torch.nn.Parameter(torch.ones(1))], 1.0, 0.0)
    set_rate(optimiser, 2.0, share, schedule, warm_up)  # type: ignore[arg-type]
    assert -1e-9 <= optimiser.param_groups[0]["lr"] <= 2.0 + 1e-9


def test_the_rate_rises_and_falls_as_it_says() -> None:
    assert height(0.0, "linear", 0.1) == 0.0
    assert height(0.05, "linear", 0.1) == pytest.approx(0.5)
    assert height(0.1, "linear", 0.1) == 1.0
    assert height(0.55, "linear", 0.1) == pytest.approx(0.5)
    assert height(0.55, "cosine", 0.1) == pytest.approx(0.5)
    assert height(0.99, "constant", 0.1) == 1.0


def test_one_cycle_is_torchs() -> None:
    steps, weight = 1000, torch.nn.Parameter(torch.ones(1))
    ours, theirs = (make_optimiser("adamw", [weight], 1e-2, 0.0) for _ in range(2))
    schedule = torch.optim.lr_scheduler.OneCycleLR(theirs, 1e-2, total_steps=steps)
    for step in range(steps):
        set_rate(ours, 1e-2, step / (steps - 1), "one_cycle", 0.3)
        mine, other = ours.param_groups[0], theirs.param_groups[0]
        assert mine["lr"] == pytest.approx(other["lr"], abs=1e-4)
        assert mine["betas"][0] == pytest.approx(other["betas"][0], abs=1e-3)
        theirs.step()
        if step < steps - 1:
            schedule.step()


# --- dispersion -------------------------------------------------------------------------------------------------------


def test_chances_to_be_shown_sum_to_the_list_and_their_slope_is_right() -> None:
    logits = torch.randn(2, 25, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    there = torch.ones(2, 25, dtype=torch.bool)
    there[1, 14:] = False
    chance = SoftTop.apply(logits, there).detach()
    assert chance.sum(1).tolist() == pytest.approx([SHOWN, SHOWN])
    assert not chance[1, 14:].any()
    assert torch.autograd.gradcheck(lambda z: SoftTop.apply(z, there), logits)
    harder = SoftTop.apply(1000 * logits, there)
    assert set(harder[0].round().nonzero().ravel().tolist()) == set(logits[0].topk(SHOWN).indices.tolist())
    assert SOFT > 0


def top(logits: torch.Tensor) -> torch.Tensor:
    """The chances of one list."""
    return SoftTop.apply(logits[None], torch.ones(1, len(logits), dtype=torch.bool))[0].detach()


def test_dispersion_is_the_sum_that_is_written() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes, logits = [15, 8, 12], torch.randn(35, dtype=torch.float64, generator=generator)
    vectors = torch.nn.functional.normalize(torch.randn(40, 4, dtype=torch.float64, generator=generator))
    rows = torch.randperm(40, generator=generator)[:35]
    bought, of_list = torch.rand(35, generator=generator) < 0.2, torch.tensor([0] * 15 + [1] * 8 + [2] * 12)
    expected, start = 0.0, 0
    for size in sizes:
        if size <= SHOWN:  # shown whole
            start += size
            continue
        chance = top(logits[start : start + size]).tolist()
        for j in range(size):
            repeats = sum(
                chance[other] * max(0.0, float(vectors[rows[start + j]] @ vectors[rows[start + other]]))
                for other in range(size)
                if other != j
            )
            expected += chance[j] * (not bought[start + j]) * repeats / (SHOWN - 1)
        start += size
    assert float(disperse(logits, rows, bought, of_list, vectors)) == pytest.approx(expected)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: disperse(z, rows, bought, of_list, vectors), logits)


def test_dispersion_alone_spreads_a_list_and_does_not_fall_to_one_item() -> None:
    kinds = torch.arange(60) % 6
    vectors = torch.nn.functional.one_hot(kinds).float()
    logits = torch.where(kinds == 0, 1.0, 0.0).requires_grad_()  # all ten of one kind
    nothing, one = torch.zeros(60, dtype=torch.bool), torch.zeros(60, dtype=torch.int64)
    optimiser = torch.optim.Adam([logits], 0.05)
    for _ in range(200):
        optimiser.zero_grad()
        disperse(logits, torch.arange(60), nothing, one, vectors).backward()
        optimiser.step()
    chosen = kinds[logits.topk(SHOWN).indices]
    assert torch.bincount(chosen, minlength=6).max() <= 4
    assert float(top(logits).max()) < 0.99


def test_too_much_beta_ruins_accuracy_and_early_stopping_keeps_what_was_before() -> None:
    """What people want is alike; with so great a weight it is pushed off the lists while the loss still falls."""
    vectors = np.zeros((20, 3), np.float32)
    vectors[:, 0], vectors[10:] = 1, np.eye(3, dtype=np.float32)[np.arange(10) % 3]
    lists, held = (alike(seed) for seed in (2, 3))
    ruin = msgspec.structs.replace(QUICK, beta=30.0, validate_every=1)
    ruined, whole = fit(lists, ruin, silent, vectors, held)
    kept, _ = fit(lists, msgspec.structs.replace(ruin, patience=1000), silent, vectors, held)
    after, best = (mean_ndcg(network.score(held.features), held) for network in (ruined, kept))
    assert best == pytest.approx(max(worth for _, worth in whole.curve))
    plain, _ = fit(lists, msgspec.structs.replace(ruin, beta=0.0), silent)
    assert mean_ndcg(plain.score(held.features), held) > best + 0.1 > after + 0.1


def alike(seed: int) -> Lists:
    """As `drawn`; of the twenty items the first ten are wanted far more."""
    lists = drawn(seed)
    features = lists.features.copy()
    features[:, 2] = lists.rows < 10
    wanted = (features[:, 0] + 4 * features[:, 2]).reshape(-1, 20)
    return msgspec.structs.replace(
        lists, features=features, bought=(wanted == wanted.max(axis=1, keepdims=True)).ravel()
    )


# --- augmentation -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 50), st.floats(0, 1), st.floats(0, 0.9))
@settings(max_examples=30, deadline=None)
def test_augmented_trails_lose_items_and_nothing_else(length: int, crop: float, mask: float) -> None:
    trail = Trail(np.arange(length), np.full(length, 3), np.ones((length, 2), np.float32))
    before = pad_trails([trail] * 4)
    chosen = TrainSettings(tower_crop=crop, tower_mask=mask)
    after = augment(before, chosen, np.random.default_rng(0))
    assert ((after["trail"] == before["trail"]) | (after["trail"] == -1)).all()
    assert (after["marks"] == before["marks"]).all()
    assert before["trail"].shape == (4, TRAIL_PADDED)
    if not crop and not mask:
        assert after is before


def test_a_cut_trail_keeps_its_newer_part() -> None:
    trail = Trail(np.arange(50), np.full(50, 3), np.ones((50, 2), np.float32))
    after = augment(pad_trails([trail] * 20), TrainSettings(tower_crop=1), np.random.default_rng(0))["trail"]
    kept = (after >= 0).sum(axis=1)
    assert all((row[:many] == np.arange(many)).all() for row, many in zip(after, kept.tolist(), strict=True))
    assert len(set(kept.tolist())) > 5


def test_the_tower_reads_a_trail_as_a_set_so_shuffled_baskets_are_the_same() -> None:
    torch.manual_seed(0)
    net = SequenceNet(NetShape(features=3, dim=4, width=8, layers=2, heads=2), torch.zeros(3), torch.ones(3)).eval()
    torch.nn.init.normal_(net.head.weight)
    order = torch.randperm(10)
    trail, actions, marks = torch.arange(10)[None], torch.randint(0, 4, (1, 10)), torch.rand(1, 10, 2)
    rest = (torch.rand(1, 5, 3), torch.arange(10, 15)[None])
    table = torch.rand(20, 4)
    one = net(*rest, trail, actions, marks, table)
    other = net(*rest, trail[:, order], actions[:, order], marks[:, order], table)
    torch.testing.assert_close(one, other)
    assert losses.SHOWN == 10
