"""What `evaluate` judges is what shops get: real baskets through real Kafka, and the past replayed, end in one list."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from stream_helpers import read_slates, send_events, send_items

from models.export import default_weights, export_tower
from models.history import JOURNEY, History, only_items, read_history, sold_items
from models.origins import make_origin
from models.ours import show
from models.serving import open_models
from models.train_settings import TrainSettings
from models.training import train
from models.world import World
from recsys.candidates import default_sources
from recsys.catalogue import item_text, text_hash
from recsys.events import Purchase, View
from recsys.policy import Policy
from recsys.signals import DAY_S, KEEP_NEIGHBOURS
from streams import clients, topics
from streams.lag import records_behind
from streams.records import BACKFILL
from streams.roles import run_role
from streams.settings import Settings

Wait = Callable[..., None]
T = 1_502_150_400  # 2017-08-08
# What happened in 2017 is late today; and here nobody sees a list before another is made.
POLICY = Policy(late_h=1e6, exposure_penalty=0)
QUICK = TrainSettings(cuts=3, epochs=2, warm_up_days=56, items=600)


@pytest.fixture(scope="module")
def history() -> History:
    """84.51° Complete Journey, from its package: fifteen weeks of 100 households, and what two of them bought."""
    weeks = read_history(JOURNEY).between(T - 13 * 7 * DAY_S, T + 14 * DAY_S)
    few = weeks.take(np.isin(weeks.user, np.unique(weeks.user)[:100]))
    return only_items(few, sold_items(few.before(T), 2))


@contextmanager
def running(settings: Settings, *roles: str) -> Iterator[None]:
    """Roles at work, each in a thread, ended after the block."""
    stop = threading.Event()
    threads = [threading.Thread(target=run_role, args=(settings, role, "0", stop)) for role in roles]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()


def test_a_live_ranker_makes_the_lists_that_evaluate_judges(
    services: Settings, tmp_path: Path, home: Path, wait_for: Wait, history: History
) -> None:
    # One partition: equal scores go by row of the catalogue, so both must hear of the items in one order.
    settings = msgspec.structs.replace(
        services, prefix=f"{tmp_path.name}.", home=str(tmp_path), partitions=1, policy=POLICY
    )
    topics.apply(clients.check_broker(settings), settings)
    tower = export_tower(default_weights(), home / "towers")
    shutil.copytree(tower, tmp_path / "towers" / tower.name)
    past = history.before(T)
    models = open_models(train(past, tmp_path, JOURNEY, 0, QUICK, None, lambda what, done, of: None).release.folder)

    origin, _ = make_origin(history, T)
    world = World(history, np.stack([models.vector(text_hash(item_text(item))) for item in history.items]))
    world.shop = msgspec.structs.replace(world.shop, item_models=models.item_models)
    world.advance(T)
    neighbours = world.shop.signals.neighbours
    assert np.sum(neighbours[:, KEEP_NEIGHBOURS - 1] >= 0) > 100  # many have had to forget some
    judged = show(world, default_sources(POLICY), models.score, POLICY, origin, "all", 10)

    sold = set(origin.rows.tolist())  # neither prices nor dates: those are the events' to tell
    send_items(
        settings, [msgspec.structs.replace(item, available=row in sold) for row, item in enumerate(history.items)]
    )
    columns = zip(*(column.tolist() for column in (past.user, past.item, past.ts_s, past.price)), strict=True)
    baskets = [
        Purchase(user=history.user_ids[user], item=history.items[item].item, ts_ms=ts_s * 1000, price=price)
        for user, item, ts_s, price in columns
    ]
    send_events(settings, baskets, [BACKFILL])
    admin = clients.admin(settings)
    with running(settings, "ranker", "signals"):
        wait_for(lambda: not records_behind(admin, settings, "ranker", "events"), 60)
        wait_for(lambda: not records_behind(admin, settings, "signals", "pairs"), 60)
    with running(settings, "ranker"):  # nobody aggregates: what is asked last knows as much of the crowd as the first
        users = [history.user_ids[user] for user in origin.users.tolist()]
        # A look at what the shop does not have: reason enough for a list, and nothing that could change it.
        send_events(settings, [View(user=user, item="elsewhere", ts_ms=T * 1000) for user in users])
        wait_for(lambda: len(read_slates(settings)) == len(users), 60)
    slates = {slate.user: slate for slate in read_slates(settings)}
    assert {(slate.scorer, slate.degraded_reason) for slate in slates.values()} == {("network", None)}
    live = [[item.item for item in slates[user].items] for user in users]
    assert live == [[history.items[row].item for row in rows if row >= 0] for rows in judged.tolist()]
    assert len(users) > 40
    assert len({item for items in live for item in items}) > 40
