"""From one release to the next while everything runs, on the real broker: no list missing, none of two towers."""

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import REGISTRY
from release_helpers import make_release, telling_tower
from stream_helpers import read_slates, send_events, send_items
from test_ladder import broken_network

from models import serving
from models.registry import CHAMPION, Release, promote, releases_folder
from models.serving import NoModels, Successor, open_best, pointer
from recsys.catalogue import Catalogue, Item, item_text
from recsys.errors import ModelRejected, Unavailable
from recsys.events import Click, Search, encode_event
from recsys.features import NAMES
from recsys.policy import Policy
from recsys.slates import Slate
from streams import clients
from streams.ranker import RankerTask
from streams.roles import run_role
from streams.settings import Settings

Wait = Callable[..., None]
ITEMS = [Item(item=f"i{n}", title=f"Thing {n}", category=f"a > b{n % 3}", price=1.0 + n) for n in range(120)]
TEXTS = [item_text(item) for item in ITEMS]
PLAIN = Policy(intent=0, exposure_penalty=0, diversity="none")  # an item's score is its logit
# Whose scores tell which tower read whose vectors: base + first number of the vector, ≈ -1 in the old release and ≈ 1 in
# the new one; an item that has no vector yet adds nothing.
OLD, NEW = (10.0, -1.0), (20.0, 1.0)


@contextmanager
def ranking(settings: Settings, wait_for: Wait) -> Iterator[None]:
    """A ranker at work in a thread, ended after the block."""
    stop, ended = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            run_role(settings, "ranker", "0", stop)
        except BaseException as error:  # shown below
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()
        assert not ended


def click(number: int) -> Click | Search:
    """Of another user each, now; now and then a search, so that queries are embedded too."""
    now_ms, user = time.time_ns() // 1_000_000, f"u{number}"
    if number % 5 == 4:
        return Search(user=user, query=f"Thing {number % 7}", ts_ms=now_ms)
    return Click(user=user, item=f"i{number % 50}", ts_ms=now_ms)


@contextmanager
def visitors(settings: Settings) -> Iterator[list[str]]:
    """One after another, without a pause, while the block runs; who was there."""
    sent, over, producer = list[str](), threading.Event(), clients.producer(settings)

    def come() -> None:
        while not over.wait(0.01):
            event = click(len(sent))
            producer.produce(settings.prefix + "events", encode_event(event), event.user.encode())
            producer.poll(0)
            sent.append(event.user)

    thread = threading.Thread(target=come)
    thread.start()
    try:
        yield sent
    finally:
        over.set()
        thread.join(30)
        assert producer.flush(30) == 0


def models_shown() -> dict[str, float]:
    """The releases that MODEL_INFO shows."""
    samples = next(metric for metric in REGISTRY.collect() if metric.name == "slatecast_model_info").samples
    return {sample.labels["release"]: sample.value for sample in samples}


def releases_counted(result: str) -> float:
    return REGISTRY.get_sample_value("slatecast_releases_total", {"result": result}) or 0.0


def old_and_new(home: Path) -> tuple[Release, Release]:
    """The old one knows every text; the new one must embed all but a few itself."""
    old = make_release(home, OLD[1], telling_tower(OLD[0]), TEXTS)
    return old, make_release(home, NEW[1], telling_tower(NEW[0]), TEXTS[:20], serve=False)


def scores_of(slate: Slate) -> set[float]:
    return {round(item.score, 1) for item in slate.items}


def expected(side: tuple[float, float]) -> set[float]:
    """Of an item with a vector, and of one that came a moment ago."""
    return {sum(side) / 2, side[0] / 2}  # the mean of what the tower says and of the network's 0


def test_lists_go_on_while_a_release_is_swapped_and_none_is_of_two_towers(settings: Settings, wait_for: Wait) -> None:
    own, home = msgspec.structs.replace(settings, policy=PLAIN), Path(settings.home)
    old, new = old_and_new(home)
    send_items(own, ITEMS)
    swaps = releases_counted("swapped")
    with ranking(own, wait_for):
        with visitors(own) as sent:
            wait_for(lambda: len(read_slates(own)) > max(100, len(sent) - 30))  # it has caught up with its start
            before = set(sent)
            assert models_shown() == {old.id: 1}
            promote(home, new.id)
            fresh = iter(range(200, 400))

            def swapped() -> bool:
                n = next(fresh)  # items come and change meanwhile
                send_items(own, [Item(item=f"i{n}", title=f"Thing {n}"), Item(item=f"i{n % 40}", title=f"Thing {n}")])
                return models_shown() == {new.id: 1}

            wait_for(swapped)
            many = len(sent) + 100
            wait_for(lambda: len(sent) > many)
        wait_for(lambda: len(read_slates(own)) == len(sent))
    assert releases_counted("swapped") == swaps + 1
    slates = sorted(read_slates(own), key=lambda slate: slate.made_ts_ms)
    assert {slate.user for slate in slates} == set(sent), "every event has its list"
    releases = [slate.versions.release for slate in slates]
    assert [a != b for a, b in zip(releases, releases[1:], strict=False)].count(True) == 1
    for slate in slates:
        assert slate.scorer == "sequence"
        assert slate.degraded_reason is None
        assert len(slate.items) == PLAIN.slate_size
        assert scores_of(slate) <= expected(OLD if slate.versions.release == old.id else NEW), slate
    assert all(sum(NEW) / 2 in scores_of(slate) for slate in slates[-10:])
    assert max(slate.freshness_ms for slate in slates if slate.user not in before) < 1000, "no list waited for the swap"


def test_a_release_that_is_refused_leaves_the_old_one_serving_and_is_said_once(
    settings: Settings, caplog: pytest.LogCaptureFixture, wait_for: Wait
) -> None:
    own, home = msgspec.structs.replace(settings, policy=PLAIN), Path(settings.home)
    old, good = old_and_new(home)
    other_features = make_release(home, 1, telling_tower(1), TEXTS, serve=False, features=("other", *NAMES[1:]))
    mute = make_release(home, 1, telling_tower(1), TEXTS, serve=False, deep=broken_network())
    corrupt = make_release(home, 1, telling_tower(2), TEXTS, serve=False)
    graph = corrupt.folder / "sequence" / "tower.onnx"
    whole = graph.read_bytes()
    send_items(own, ITEMS)

    def complaints(*words: str) -> int:
        lines = [record.getMessage() for record in caplog.records if "release refused" in record.getMessage()]
        return len([line for line in lines if all(word in line for word in words)])

    with ranking(own, wait_for):
        wait_for(lambda: models_shown() == {old.id: 1})
        for refused, word in ((other_features, "other features"), (mute, "not finite"), (corrupt, "sha256")):
            before = releases_counted("refused")
            promote(home, refused.id)
            if refused is corrupt:
                graph.write_bytes(whole[:-1] + b"?")
            wait_for(lambda before=before: releases_counted("refused") == before + 1)
            assert complaints(refused.id, word, old.id) == 1
            send_events(own, [click(int(before))])
        wait_for(lambda: len(read_slates(own)) == 3)
        assert {slate.versions.release for slate in read_slates(own)} == {old.id}
        graph.write_bytes(whole)  # mended, and named once more
        promote(home, corrupt.id)
        wait_for(lambda: models_shown() == {corrupt.id: 1})
        (releases_folder(home) / CHAMPION).write_bytes(b"{")
        wait_for(lambda: complaints("names no release") == 1)
        promote(home, good.id)
        wait_for(lambda: models_shown() == {good.id: 1})
    assert complaints() == 4


def test_a_release_that_is_taken_back_while_it_is_made_ready_never_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Wait
) -> None:
    old, new = old_and_new(tmp_path)
    third = make_release(tmp_path, NEW[1], telling_tower(5), TEXTS, serve=False)
    monkeypatch.setattr("models.serving.LOOK_S", 0.01)
    told: list[Any] = []
    prepare, taken_back = serving._prepare, threading.Event()

    def take_back(folder: Path, *given: Any) -> Successor:
        if folder == new.folder:
            promote(tmp_path, old.id)
            taken_back.set()
        return prepare(folder, *given)

    monkeypatch.setattr("models.serving._prepare", take_back)
    stop, told_of = threading.Event(), (tmp_path, pointer(tmp_path), old.id, Catalogue(ITEMS, dim=8), PLAIN)
    promote(tmp_path, new.id)
    following = threading.Thread(target=serving.follow_champion, args=(*told_of, told.append, stop))
    following.start()
    assert taken_back.wait(30)
    promote(tmp_path, third.id)
    wait_for(lambda: bool(told))
    stop.set()
    following.join(30)
    assert [one.models.release for one in told] == [third.id]


def test_a_shop_that_trains_for_the_first_time_needs_no_restart(settings: Settings, wait_for: Wait) -> None:
    own, home = msgspec.structs.replace(settings, policy=PLAIN), Path(settings.home)
    send_items(own, ITEMS)
    with ranking(own, wait_for):
        send_events(own, [click(0)])
        wait_for(lambda: len(read_slates(own)) == 1)
        first = make_release(home, NEW[1], telling_tower(NEW[0]))
        wait_for(lambda: models_shown() == {first.id: 1})
        send_events(own, [click(1)])
        wait_for(lambda: len(read_slates(own)) == 2)
    before, after = sorted(read_slates(own), key=lambda slate: slate.made_ts_ms)
    assert (before.versions.release, before.scorer) == ("none", "rank_fusion")
    assert (after.versions.release, after.scorer, scores_of(after)) == (first.id, "sequence", {sum(NEW) / 2})


def damage(release: Release) -> None:
    (release.folder / "scorer.onnx").write_bytes(b"damaged")


def test_a_ranker_whose_champion_is_corrupt_starts_with_the_release_that_served_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = old_and_new(tmp_path)
    assert open_best(tmp_path).release == old.id
    make_release(tmp_path, 1, telling_tower(3), serve=False)  # never served: nobody knows whether it is any good
    promote(tmp_path, new.id)
    damage(new)
    assert open_best(tmp_path).release == old.id
    assert f"{new.id}/scorer.onnx is not the file that was released" in caplog.text
    assert "`slatecast releases list` has the others" in caplog.text


def test_a_ranker_that_must_have_a_gpu_does_not_start_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.devices.why_no_cuda", lambda: "no CUDA device")  # whatever this machine has
    make_release(tmp_path, 1, telling_tower(3))
    with pytest.raises(Unavailable, match='a GPU was required, but there is no.*set gpu = "auto"'):
        open_best(tmp_path, "require")


def test_a_ranker_without_any_whole_release_makes_lists_and_they_say_why(settings: Settings, wait_for: Wait) -> None:
    home = Path(settings.home)
    old, _ = old_and_new(home)
    damage(old)
    send_items(settings, ITEMS)
    with ranking(settings, wait_for):
        send_events(settings, [click(0)])
        wait_for(lambda: len(read_slates(settings)) == 1)
    (slate,) = read_slates(settings)
    assert len(slate.items) == PLAIN.slate_size
    assert (slate.scorer, slate.versions.release) == ("rank_fusion", "none")
    size = len(b"damaged")
    was = old.manifest.files["scorer.onnx"].size
    assert slate.degraded_reason == (
        f"release refused: {old.id}/scorer.onnx is not the file that was released ({size} bytes, not {was})"
    )


def test_the_pointer_changes_when_the_same_release_is_named_again(tmp_path: Path) -> None:
    assert pointer(tmp_path) is None
    release = make_release(tmp_path, 1, telling_tower(1))
    before = pointer(tmp_path)
    promote(tmp_path, release.id)
    assert before != pointer(tmp_path) is not None


# --- the swap itself ---------------------------------------------------------------------------------------------------


def successor_of(release: Release, live: Catalogue) -> Successor:
    from models.serving import _prepare

    return _prepare(release.folder, live, PLAIN, "auto")


@pytest.fixture
def task(settings: Settings) -> RankerTask:
    """A ranker that has read the catalogue, under the old release."""
    old_and_new(Path(settings.home))
    send_items(settings, ITEMS)
    made = RankerTask(settings, open_best(Path(settings.home)))
    made.shelf.catch_up()
    made.warm_up()
    return made


def test_what_changed_while_the_next_release_was_made_ready_gets_its_vector_too(
    task: RankerTask, settings: Settings, wait_for: Wait
) -> None:
    _, new = old_and_new(Path(settings.home))
    live = task.shelf.catalogue
    successor = successor_of(new, live)
    late = [Item(item=f"late{n}", title=f"Thing {n}") for n in range(1000)]  # the arrays grow over it
    send_items(settings, [*late, Item(item="i3", title="Thing 399"), Item(item="i4", title="Thing 4", price=9.0)])
    wait_for(lambda: task.shelf.follow() or len(live) == 1120 and live.items[live.row("i3")].title == "Thing 399")
    wait_for(lambda: task.shelf.follow() or live.items[live.row("i4")].price == 9.0)
    task.successors.put(successor)
    task.refresh()
    assert not live.vectors[live.row("i3")].any() or live.vectors[live.row("i3"), 0] > 0
    wait_for(lambda: task.refresh() or not task.shelf._waiting)
    assert (live.vectors[: len(live), 0] > 0.9).all(), "no vector of the old tower is left"
    np.testing.assert_allclose(
        live.vectors[live.row("i3")], successor.models.embed([item_text(live.items[live.row("i3")])])[0], atol=1e-5
    )
    assert set(live.embedded) == set(range(len(live))), "the index will follow"


def test_the_old_release_is_freed(task: RankerTask, settings: Settings, wait_for: Wait) -> None:
    _, new = old_and_new(Path(settings.home))
    old: Any = task._serving.models
    gone, threads = weakref.ref(old), set(threading.enumerate())
    del old
    task.successors.put(successor_of(new, task.shelf.catalogue))
    task.refresh()
    gc.collect()
    assert gone() is None
    wait_for(lambda: len({t for t in threads if t.name.startswith("scorer") and t.is_alive()}) == 0)


def test_a_refusal_changes_nothing(task: RankerTask, caplog: pytest.LogCaptureFixture) -> None:
    before = task._serving
    with caplog.at_level(logging.ERROR):
        task.successors.put(ModelRejected("because"))
        task.refresh()
    assert task._serving is before
    assert f"{before.models.release} goes on serving: because" in caplog.text
    assert "`slatecast releases list` has the others" in caplog.text


def test_without_a_release_the_reason_is_the_callers(tmp_path: Path) -> None:
    assert NoModels("because").score([], np.zeros((0, 0), np.float32)).degraded_reason == "because"
    assert open_best(tmp_path).score([], np.zeros((0, 0), np.float32)).degraded_reason == (
        "no release: run `slatecast train`"
    )
