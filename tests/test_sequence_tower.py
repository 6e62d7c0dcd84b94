"""The sequence tower: the graph is the module, candidates do not see each other, and it learns what features cannot say."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.examples import Lists
from models.scorer import PAD, Network
from models.sequence_export import (
    HALF_PARITY,
    PARITY,
    check_parity,
    draw_asks,
    export_sequence,
    load_net,
    save_sequence,
)
from models.sequence_net import NetShape, SequenceNet
from models.sequence_tower import GRAPH, HALF, TRAIL_PADDED, SequenceTower, pad_trails
from models.sequence_training import fit_sequence, score_lists
from models.train_settings import TrainSettings
from recsys.errors import ModelRejected, Unavailable
from recsys.features import NAMES
from recsys.scoring import TRAIL, Ask, Trail

SHAPE = NetShape(features=len(NAMES), dim=24, width=32, outputs=3)


def random_net(shape: NetShape = SHAPE) -> SequenceNet:
    """As if fitted: its last layer does not begin with nothing."""
    torch.manual_seed(0)
    net = SequenceNet(shape, torch.linspace(-1, 1, shape.features), torch.linspace(0.5, 2, shape.features)).eval()
    torch.nn.init.normal_(net.head.weight)
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "sequence"
    save_sequence(random_net(), folder)
    return folder


@pytest.fixture(scope="module")
def tower(folder: Path) -> SequenceTower:
    return SequenceTower(folder / "tower.onnx")


def some_of(ask: Ask, places: NDArray[np.int64]) -> Ask:
    return Ask(ask.rows[places], ask.features[places], ask.trail)


def test_the_graph_is_the_module_on_shapes_it_was_not_exported_for(folder: Path) -> None:
    assert check_parity(load_net(folder), folder / "tower.onnx") <= PARITY


@pytest.mark.parametrize("users", [1, 2, 3, 5, 8, 9])
def test_a_candidate_has_the_same_bits_whatever_else_is_asked(tower: SequenceTower, users: int) -> None:
    rng = np.random.default_rng(users)
    trails = (0, 1, 7, 20, 49, TRAIL, 3, 33, 50)
    drawn = [draw_asks(random_net(), np.random.default_rng(n), 1, 200, length) for n, length in enumerate(trails)]
    vectors = drawn[0][1]
    asks = [ask for (ask,), _ in drawn]
    alone = [tower.score([ask], vectors) for ask in asks]
    for count in (1, 2, 3, 7, 8, 9, 31, 33, 50, 64, 100, 199, 200):
        users_here = rng.permutation(len(asks))[:users]
        places = [rng.permutation(200)[:count] for _ in users_here]
        together = tower.score([some_of(asks[u], at) for u, at in zip(users_here, places, strict=True)], vectors)
        expected = np.concatenate([alone[u][at] for u, at in zip(users_here, places, strict=True)])
        np.testing.assert_array_equal(together, expected)


def test_lists_of_different_lengths_in_one_call_are_scored_as_alone(tower: SequenceTower) -> None:
    (one, two), vectors = draw_asks(random_net(), np.random.default_rng(0), 2, 40, 9)
    few = some_of(two, np.arange(11))
    both = tower.score([one, few], vectors)
    np.testing.assert_array_equal(both, np.concatenate([tower.score([one], vectors), tower.score([few], vectors)]))


def test_the_trail_counts_and_a_user_without_one_is_scored_too(tower: SequenceTower) -> None:
    (ask,), vectors = draw_asks(random_net(), np.random.default_rng(0), 1, 16, 5)
    nobody = Ask(
        ask.rows, ask.features, Trail(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 2), np.float32))
    )
    without = tower.score([nobody], vectors)
    assert np.isfinite(without).all()
    assert (without != tower.score([ask], vectors)).any()


def test_the_order_of_the_trail_does_not_matter_but_its_ages_do(tower: SequenceTower) -> None:
    (ask,), vectors = draw_asks(random_net(), np.random.default_rng(0), 1, 16, 5)
    t = ask.trail
    turned = Ask(ask.rows, ask.features, Trail(t.rows[::-1], t.actions[::-1], t.marks[::-1]))
    older = Ask(ask.rows, ask.features, Trail(t.rows, t.actions, t.marks + 1))
    scored = tower.score([ask], vectors)
    np.testing.assert_allclose(tower.score([turned], vectors), scored, atol=1e-5)
    assert np.abs(tower.score([older], vectors) - scored).max() > 1e-3


def test_buffers_that_stay_answer_as_a_plain_call_does_whatever_came_before(folder: Path, tower: SequenceTower) -> None:
    resident, (_, vectors) = (
        SequenceTower(folder / GRAPH, resident=True),
        draw_asks(random_net(), np.random.default_rng(0), 1, 8, 5),
    )
    for at, (lists, candidates, trail) in enumerate([(4, 200, 50), (1, 9, 0), (3, 200, 20), (8, 64, 3), (4, 130, 50)]):
        asks, _ = draw_asks(random_net(), np.random.default_rng(at), lists, candidates, trail)
        np.testing.assert_array_equal(resident.score(asks, vectors), tower.score(asks, vectors))


def test_buffers_that_stay_see_that_a_vector_changed_and_that_the_catalogue_grew(
    folder: Path, tower: SequenceTower
) -> None:
    asks, vectors = draw_asks(random_net(), np.random.default_rng(0), 2, 40, 9)
    resident = SequenceTower(folder / GRAPH, resident=True)
    before = resident.score(asks, vectors)
    vectors[asks[1].trail.rows[0]] *= -1  # in place, as a catalogue does when an item is described anew
    after = resident.score(asks, vectors)
    assert (after != before).any()
    np.testing.assert_array_equal(after, tower.score(asks, vectors))
    grown = np.concatenate([vectors, vectors])
    late = [Ask(ask.rows + len(vectors), ask.features, ask.trail) for ask in asks]
    np.testing.assert_array_equal(resident.score(late, grown), tower.score(late, grown))


def test_what_was_recorded_over_buffers_that_are_gone_is_never_replayed(folder: Path) -> None:
    """CUDA knows a recording by its number alone, and replays it over the addresses of then."""
    tower = SequenceTower(folder / GRAPH, resident=True)
    resident, numbers = tower._resident, []
    assert resident is not None
    asks, vectors = draw_asks(random_net(), np.random.default_rng(0), 2, 40, 9)
    for times in (1, 2, 4):  # as the catalogue grows
        for lists in (asks, asks[:1]):
            tower.score(lists, np.tile(vectors, (times, 1)))
        numbers += [place.options.get_run_config_entry("gpu_graph_id") for place in resident._places.values()]
    assert len(set(numbers)) == len(numbers) == 6


def test_who_hangs_in_buffers_that_stay_can_be_stopped(folder: Path) -> None:
    asks, vectors = draw_asks(random_net(), np.random.default_rng(0), 1, 8, 5)
    resident = SequenceTower(folder / GRAPH, resident=True)
    resident.score(asks, vectors)
    resident.stop()
    with pytest.raises(Exception, match="(?i)terminate"):
        resident.score(asks, vectors)


def test_the_graph_for_gpus_ranks_as_the_exact_one_does(folder: Path, tower: SequenceTower) -> None:
    half = SequenceTower(folder / HALF)
    assert check_parity(load_net(folder), folder / HALF, HALF_PARITY) > PARITY, "it does compute in float16"
    asks, vectors = draw_asks(random_net(), np.random.default_rng(0), 32, 200, 30)
    best = [np.argsort(-one.score(asks, vectors).reshape(32, 200, 3)[..., 0])[:, :10] for one in (half, tower)]
    assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(*best, strict=True)]) > 9.8


def test_no_candidates_are_no_logits(tower: SequenceTower) -> None:
    (ask,), vectors = draw_asks(random_net(), np.random.default_rng(0), 1, 8, 5)
    assert tower.score([], vectors).shape == (0, 3)
    assert tower.score([some_of(ask, np.empty(0, np.int64))], vectors).shape == (0, 3)


def test_logits_that_are_not_finite_never_leave_the_tower(tower: SequenceTower) -> None:
    asks, vectors = draw_asks(random_net(), np.random.default_rng(0), 1, 8, 5)
    with pytest.raises(ModelRejected, match="not finite"):
        tower.score(asks, vectors * np.float32(np.nan))


def test_a_graph_of_other_inputs_is_refused(tmp_path: Path) -> None:
    ones = np.ones(len(NAMES), np.float32)
    Network(np.zeros((len(NAMES), 2), np.float32), np.zeros(2, np.float32), 0 * ones, ones).save(tmp_path / "s.onnx")
    with pytest.raises(ModelRejected, match="no sequence tower"):
        SequenceTower(tmp_path / "s.onnx")


def test_an_export_that_fails_or_takes_too_long_leaves_the_old_graph(folder: Path, tmp_path: Path) -> None:
    graph = folder / "tower.onnx"
    before = graph.read_bytes()
    with pytest.raises(Unavailable, match=r"took over 0\.1 s"):
        export_sequence(folder, limit_s=0.1)
    assert graph.read_bytes() == before
    with pytest.raises(ModelRejected, match="makes no sequence tower"):
        export_sequence(tmp_path)


def test_padded_trails_say_where_there_is_nothing() -> None:
    trail = Trail(np.array([4, 2]), np.array([3, 1]), np.array([[0.5, 0], [1, 0.7]], np.float32))
    padded = pad_trails([trail])
    assert TRAIL_PADDED % PAD == 0
    assert padded["trail"][0, :4].tolist() == [4, 2, -1, -1]
    assert padded["actions"][0, :2].tolist() == [3, 1]
    assert {array.shape[:2] for array in padded.values()} == {(1, TRAIL_PADDED)}


def follow_ups(lists: int, vectors: NDArray[np.float32], seed: int) -> Lists:
    """Users buy the item after the one they had last, in an order that only the text knows; features say nothing."""
    rng = np.random.default_rng(seed)
    count = len(vectors)
    last = rng.integers(0, count, lists)
    rows = np.stack([rng.permutation(count) for _ in range(lists)])
    bought = rows == ((last + 1) % count)[:, None]
    trails = [Trail(np.array([row]), np.array([3]), np.zeros((1, 2), np.float32)) for row in last.tolist()]
    features, ends = np.zeros((rows.size, len(NAMES)), np.float32), np.arange(count, rows.size + 1, count)
    none = np.zeros(rows.size, bool)
    return Lists(rows.ravel(), features, bought.ravel(), none, none, ends, pad_trails(trails), 0 * ends)


def first_hits(logits: NDArray[np.float32], lists: Lists) -> float:
    """How often the bought item is first."""
    best = logits.reshape(len(lists.ends), -1, 2)[:, :, 0].argmax(axis=1)
    return float(np.take_along_axis(lists.bought.reshape(len(lists.ends), -1), best[:, None], axis=1).mean())


def test_it_learns_what_follows_from_the_text_of_what_came_before() -> None:
    torch.set_num_threads(1)
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    vectors = np.column_stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)]).astype(np.float32)
    settings = TrainSettings(tower_width=32, tower_epochs=10, tower_rate=1e-2, tower_dropout=0)
    known, unknown = follow_ups(300, vectors, 0), follow_ups(100, vectors, 1)
    net, _ = fit_sequence(known, np.zeros((len(known.rows), 2), np.float32), vectors, settings, ignore)
    assert first_hits(score_lists(net, unknown, vectors), unknown) > 0.8
    fresh = SequenceNet(net.shape, net.mean, net.std).eval()
    assert not score_lists(fresh, unknown, vectors).any(), "before training it adds nothing"


def ignore(what: str, done: int, of: int) -> None:
    """Progress that nobody watches."""


def test_a_draw_of_the_negatives_stands_for_all_of_them() -> None:
    from models.sequence_training import DRAWN, FIRST, _draw

    count = 300
    lists = Lists(
        np.arange(count),
        np.zeros((count, len(NAMES)), np.float32),
        np.arange(count) == 299,
        np.zeros(count, bool),
        np.zeros(count, bool),
        np.array([count]),
        pad_trails([Trail(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 2), np.float32))]),
        np.zeros(1, np.int64),
    )
    base = np.column_stack([-np.arange(count), -np.arange(count)]).astype(np.float32)
    rows, weight = _draw(lists, base, np.array([0]), np.random.default_rng(0))
    kept: Sequence[int] = rows[0].tolist()
    assert {*range(FIRST), 299} <= set(kept)
    assert len(set(kept)) == FIRST + 1 + DRAWN
    assert np.exp(weight[0]).sum() == pytest.approx(count)
