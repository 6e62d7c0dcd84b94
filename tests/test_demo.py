"""The demo's play on the session's broker: what it loads is what it sends, and its audit can fail."""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.history import History
from recsys.events import Click, Purchase
from recsys.simulate import is_simulated
from streams.demo import SHOPPER, DemoSettings, Play, Sender, history_of, perform, policy_of, stage
from streams.demo_report import audit, summarise
from streams.roles import ROLES, Supervisor
from streams.settings import Settings

SMALL = DemoSettings(households=15, warm_days=28, live_days=7, live_s=3.0)


@pytest.fixture(scope="module")
def history() -> History:
    return history_of(SMALL)


@pytest.fixture
def play(history: History) -> Play:
    return stage(history, SMALL, time.time_ns() // 1_000_000)


@pytest.fixture
def running(settings: Settings, tmp_path: Path) -> Iterator[Settings]:
    ours = msgspec.structs.replace(settings, policy=policy_of(SMALL))
    supervisor = Supervisor(ours, ROLES, tmp_path / "roles.log")
    yield ours
    supervisor.stop()


def test_a_play_is_the_same_for_a_seed_and_a_now_and_its_simulated_events_say_so(history: History) -> None:
    one, two = stage(history, SMALL, 1_790_000_000_000), stage(history, SMALL, 1_790_000_000_000)
    assert (one.warm, one.live) == (two.warm, two.live)
    real = [event for event in (*one.warm, *one.live) if not is_simulated(event)]
    assert all(isinstance(event, Purchase) for event in real)
    assert all(event.user != SHOPPER for event in one.live)
    assert max(event.ts_ms for event in one.live) <= one.now_ms


def test_the_demo_loses_nothing_doubles_nothing_and_a_click_changes_the_list(running: Settings, play: Play) -> None:
    sender, acts = Sender(running), list[str]()
    sent = perform(running, SMALL, play, sender, time.monotonic(), lambda act, _: acts.append(act))
    summary = summarise(running, play, sent, sender.events)
    assert (summary["events_lost"], summary["slates_duplicated"]) == (0, 0)
    assert summary["events"] == len(play.warm) + len(play.live) + 2  # a look and a click
    assert summary["slates"] > 10
    assert sent.shopper is not None
    assert sent.shopper.before is not None
    assert sent.shopper.after is not None
    assert [i.item for i in sent.shopper.before.items] != [i.item for i in sent.shopper.after.items]
    assert list(dict.fromkeys(acts))[-2:] == ["live", "finishing"]
    keys = ("first_slate_s", "click_to_slate_s", "freshness_p50_ms", "freshness_p99_ms", "ndcg_at_10")
    assert all(np.isfinite(summary[key]) for key in (*keys, "ndcg_at_10_popularity", "ndcg_at_10_own_frequency"))
    never_sent = Click(user="household-of-nobody", item="x", ts_ms=play.now_ms, id="lost")
    assert audit(running, [*sender.events, never_sent])["events_lost"] == 2  # its touch, and its place in the ring
