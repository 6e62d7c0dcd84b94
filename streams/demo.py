"""Real baskets played through the real thing: what the demo loads, sends and measures. No terminal here.

Complete Journey's purchases of some households: earlier weeks as history, the following days as live traffic, with
simulated clicks and searches around them (their ids say so). Times are shifted so that the last event is now.
Called by `slatecast demo` and its test.
"""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from models.history import JOURNEY, History, only_items, read_history, sold_items
from models.registry import champion
from recsys.catalogue import ITEM_SCHEMA, Catalogue, Item, encode_item
from recsys.errors import Unavailable
from recsys.events import EVENT_SCHEMA, Click, Event, Purchase, View, encode_event
from recsys.policy import Policy
from recsys.signals import DAY_S
from recsys.simulate import simulate_around
from recsys.slates import Slate
from streams import clients
from streams.lag import records_behind
from streams.records import BACKFILL
from streams.settings import Settings
from streams.watching import poll_slates

LIVE_FROM_S = 1_507_507_200  # 2017-10-09, one of the origins in docs/decisions.md; training ends here
TICK_S = 0.02
SHOPPER = "you"


class DemoSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How much is played. The defaults run for about three minutes, `FAST` for less than one."""

    households: int = 500
    warm_days: int = 56
    live_days: int = 14
    live_s: float = 120.0  # the live days are squeezed into so many seconds
    min_buyers: int = 30  # an item that fewer households bought has too little to say (docs/decisions.md)
    seed: int = 7


FAST = DemoSettings(households=250, live_s=25.0)


class Play(msgspec.Struct, frozen=True):
    """What is sent. live is in the order of time; shopper's events come from the demonstration itself."""

    items: list[Item]
    warm: list[Event]
    live: list[Event]
    now_ms: int


class Sent(msgspec.Struct):
    """What came of it, filled in while it runs."""

    events: int = 0
    live_events: int = 0
    first_slate_s: float = 0.0
    live_s: float = 0.0
    slates: list[Slate] = []
    shopper: "Shopper | None" = None


class Shopper(msgspec.Struct):
    """One shopper's story: a look, the list before, a click, the list after."""

    looked: str
    before: Slate | None = None
    clicked: str = ""
    clicked_s: float = 0.0
    after: Slate | None = None
    click_to_slate_s: float = 0.0


def history_of(settings: DemoSettings) -> History:
    """The purchases that the demo may use, of items sold well before the live days."""
    history = read_history(JOURNEY)
    sold = sold_items(history.before(LIVE_FROM_S), settings.min_buyers)
    return only_items(history, sold)


def needs_training(home: Path) -> bool:
    """Whether no release is there yet."""
    return champion(home) is None


def training_part(history: History) -> History:
    """The seventeen weeks before the live days, of 1,000 households: five minutes of training on two cores."""
    weeks = history.between(LIVE_FROM_S - 17 * 7 * DAY_S, LIVE_FROM_S)
    return weeks.take(np.isin(weeks.user, np.unique(weeks.user)[:1000]))


def stage(history: History, settings: DemoSettings, now_ms: int) -> Play:
    """Choose households, shift times, put simulated browsing around the baskets. Deterministic for a seed and a now."""
    rng = np.random.default_rng(settings.seed)
    part = history.between(LIVE_FROM_S - settings.warm_days * DAY_S, LIVE_FROM_S + settings.live_days * DAY_S)
    chosen = rng.permutation(np.unique(part.user))[: settings.households + 1]
    part = part.take(np.isin(part.user, chosen))
    shopper, shift_ms = int(chosen[0]), now_ms - int(part.ts_s[-1]) * 1000
    catalogue = Catalogue(history.items)
    warm: list[Event] = []
    live: list[Event] = []
    columns = (part.user, part.item, part.ts_s, part.session, part.price)
    for user, item, ts_s, session, price in zip(*(column.tolist() for column in columns), strict=True):
        purchase = Purchase(
            user=SHOPPER if user == shopper else f"household-{history.user_ids[user]}",
            item=history.items[item].item,
            ts_ms=ts_s * 1000 + shift_ms,
            id=f"cj-{session}-{item}",
            session=str(session),
            price=price,  # Complete Journey has one on every line
        )
        if ts_s < LIVE_FROM_S:
            warm.append(purchase)
        elif user != shopper:  # the shopper acts in the demonstration only
            live.append(purchase)
    for events in (warm, live):
        events.extend(simulate_around([event for event in events if isinstance(event, Purchase)], catalogue, rng))
        events.sort(key=lambda event: (event.ts_ms, event.id))
    return Play(history.items, warm, live, now_ms)


def policy_of(settings: DemoSettings) -> Policy:
    """The default policy, but that days squeezed into seconds are not late."""
    return Policy(late_h=24.0 * (settings.live_days + 1))


class Sender:
    """Produces events and items, counting; a full local queue waits."""

    def __init__(self, settings: Settings) -> None:
        self._prefix, self._producer = settings.prefix, clients.producer(settings)
        self.events: list[Event] = []

    def item(self, item: Item) -> None:
        """Onto the catalogue's topic."""
        self._send("items", item.item, encode_item(item), ("schema", ITEM_SCHEMA.encode()))

    def event(self, event: Event, *headers: tuple[str, bytes]) -> None:
        """Onto the events' topic."""
        self._send("events", event.user, encode_event(event), ("schema", EVENT_SCHEMA.encode()), *headers)
        self.events.append(event)

    def flush(self) -> None:
        """Wait until the broker has everything. Raises Unavailable."""
        left = self._producer.flush(60)
        if left:
            raise Unavailable(f"the broker did not take {left} records within a minute; is the disk full?")

    def _send(self, topic: str, key: str, data: bytes, *headers: tuple[str, bytes]) -> None:
        while True:
            try:
                self._producer.produce(self._prefix + topic, data, key.encode(), headers=list(headers))
                self._producer.poll(0)
            except BufferError:
                self._producer.poll(0.1)
            else:
                return


def perform(
    settings: Settings, demo: DemoSettings, play: Play, sender: Sender, up_s: float, tell: Callable[[str, Sent], None]
) -> Sent:
    """Load, wait until the history is learned, play the live days, and let one shopper click in the middle of them.

    up_s: monotonic time at which the services were up; tell: called often with the act's name and what there is.
    """
    sent, admin = Sent(), clients.admin(settings)
    watching = poll_slates(settings, TICK_S)

    def watch(act: str) -> bool:
        found = [slate for slate, _ in next(watching)]
        if found and not sent.slates:
            sent.first_slate_s = time.monotonic() - up_s
        sent.slates.extend(found)
        sent.events = len(sender.events)
        for slate in found:
            if slate.user == SHOPPER and sent.shopper is not None:
                _follow(sent.shopper, slate, play, sender)
        tell(act, sent)
        return bool(found)

    for item in play.items:
        sender.item(item)
    for at, event in enumerate(play.warm):
        sender.event(event, BACKFILL)
        if at % 5000 == 0:
            watch("loading weeks of history")
    sender.flush()
    while records_behind(admin, settings, "ranker", "events"):
        watch("learning from history")
    begin_s, first_ms, at = time.monotonic(), play.live[0].ts_ms, 0
    pace = (play.live[-1].ts_ms - first_ms) / demo.live_s  # shop milliseconds a second
    while at < len(play.live):
        due_ms = first_ms + (time.monotonic() - begin_s) * pace
        while at < len(play.live) and play.live[at].ts_ms <= due_ms:
            sender.event(play.live[at])
            at += 1
        sent.live_events, sent.live_s = at, time.monotonic() - begin_s
        watch("live")
        if sent.shopper is None and sent.live_s > demo.live_s / 3:
            sent.shopper = _look(play, sender)
    sender.flush()
    while records_behind(admin, settings, "ranker", "events") or watch("finishing"):
        watch("finishing")
    watching.close()
    return sent


def _look(play: Play, sender: Sender) -> Shopper:
    """The shopper comes back to what was bought last: the first list."""
    own = [event for event in play.warm if event.user == SHOPPER and isinstance(event, Purchase)]
    item = own[-1].item if own else play.items[0].item
    sender.event(View(user=SHOPPER, item=item, ts_ms=_now_ms(), id="sim-demo-look"))
    return Shopper(item)


def _follow(shopper: Shopper, slate: Slate, play: Play, sender: Sender) -> None:
    """The shopper's list came: click on something else that many like; the list after that click is the list after."""
    if shopper.before is None:
        shopper.before, shopper.clicked = slate, _something_new(play, slate)
        sender.event(Click(user=SHOPPER, item=shopper.clicked, ts_ms=_now_ms(), id="sim-demo-click"))
        shopper.clicked_s = time.monotonic()
    elif shopper.after is None and slate.cause.type == "click":
        shopper.after, shopper.click_to_slate_s = slate, time.monotonic() - shopper.clicked_s


def _something_new(play: Play, slate: Slate) -> str:
    """The most bought item outside the categories that the shopper knows and the list offers."""
    category = {item.item: item.category.split(" > ")[:2] for item in play.items}
    bought = [event for event in play.warm if isinstance(event, Purchase)]
    own = [event.item for event in bought if event.user == SHOPPER] + [item.item for item in slate.items]
    known = [category[item] for item in own]
    popular = Counter(event.item for event in bought if event.user != SHOPPER)
    return next((item for item, _ in popular.most_common() if category[item] not in known), slate.items[-1].item)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
