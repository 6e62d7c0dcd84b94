"""The ranker: behaviour events in, profiles and slates out. A task of the transactional worker.

decode → profile → trigger → (all users of the batch at once) recommend → publish. A user with several events in one
batch gets one list, caused by the newest of them.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from models.ladder import SCORERS
from models.registry import WAY_BACK
from models.serving import Models, Serving, Successor, warm_up
from models.vector_index import Approximate
from recsys.candidates import Source, default_sources, follow_policy
from recsys.context import Request, Shop
from recsys.errors import BadEvent, ModelRejected
from recsys.events import Event, event_hash
from recsys.pipeline import recommend
from recsys.policy import Policy
from recsys.profiles import EMPTY, Profile, apply, decode_profile, encode_profile
from recsys.signals import Tally
from recsys.slates import SLATE_SCHEMA, Cause, Slate, Versions, encode_slate, slate_id
from recsys.triggers import should_recommend
from streams import telemetry
from streams.policies import PolicyReader
from streams.records import BACKFILL, Output, Record, event_of
from streams.rejects import put_aside
from streams.settings import Settings
from streams.shelf import Shelf
from streams.signals import encode_increment
from streams.state import State

log = logging.getLogger(__name__)

QUERY_S = 1800  # a search speaks for the next half hour
LIVE_BATCH = 32  # ≈ 60 ms of list-making at most: what a burst may add to the wait of its last event
BULK_BATCH = 2000  # without lists a transaction's 5 ms are best shared by many
LIVE_LIMIT = 100  # of them, where lists may come after all: half a second of list-making, once


class RankerTask:
    """Profiles, and a list whenever an event is worth one."""

    topic = "events"
    changelog = "profiles"

    def __init__(
        self,
        settings: Settings,
        models: Models,
        *,
        slates: bool = True,
        pairs: bool = True,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        tick: Callable[[str], None] = lambda stage: None,
    ) -> None:
        self.batch_limit = LIVE_BATCH  # the first batch may be one of lists, and 2,000 of them take seconds
        self.live_limit = LIVE_LIMIT if slates else BULK_BATCH
        self.counts: Counter[str] = Counter()  # of committed batches only
        self._pending: Counter[str] = Counter()
        self._clock_ms, self._tick = clock_ms, tick
        self._slates, self._pairs, self._rejects = (settings.prefix + t for t in ("slates", "pairs", "rejects"))
        self._make_slates, self._make_pairs = slates, pairs
        for scorer in SCORERS:
            telemetry.SLATES.labels(scorer, "true")  # an alarm needs the 0 before the first
        self._policy, self._digest = settings.policy, settings.policy.digest()
        self._policies = PolicyReader(settings) if slates else None
        self.shelf = Shelf(settings, models)
        self._deep = None
        if settings.deep:
            from models.deep import Deep  # torch and transformers come with it

            self._deep = Deep(settings.deep, self.shelf.catalogue, settings.deep_weight, settings.deep_deadline_s)
        self._made: list[tuple[Slate, int]] = []  # of the batch in hand, and when their events arrived
        self.successors: SimpleQueue[Successor | ModelRejected] = SimpleQueue()  # filled by `follow_champion`
        self._serve(models, default_sources(self._policy, Approximate(models.dim)))

    def warm_up(self) -> None:
        """Once, when the shelf has caught up: the policy that was published last, and a list by it for nobody."""
        if self._policies is not None:
            self._obey(self._policies.catch_up())
        warm_up(self._serving, self._policy)

    def refresh(self) -> None:
        """A new batch: nothing of it is made yet. Follow the catalogue and the crowd."""
        self._pending, self._made = Counter(), []
        if not self.successors.empty():
            self._succeed(self.successors.get())
        if self._policies is not None:
            self._obey(self._policies.follow())
        if self._make_slates or self._make_pairs:
            self.shelf.follow()

    def _succeed(self, successor: Successor | ModelRejected) -> None:
        """Between two batches. 20 ms for 100,000 items."""
        old = self._serving.models.release
        if isinstance(successor, ModelRejected):
            telemetry.RELEASES.labels("refused").inc()
            log.error("ranker: release refused, %s goes on serving: %s; %s", old, successor, WAY_BACK)
            return
        self.shelf.adopt(successor)
        self._serve(successor.models, successor.sources)
        telemetry.RELEASES.labels("swapped").inc()
        log.info("ranker: release %s serves, was %s", successor.models.release, old)

    def _obey(self, policy: Policy | None) -> None:
        """Another policy, if there is one. Between two batches: no list is made by two."""
        if policy is not None:
            self._policy, self._digest = policy, policy.digest()
            self._serve(self._serving.models, self._serving.sources)

    def _serve(self, models: Models, sources: tuple[Source, ...]) -> None:
        shop = Shop(self.shelf.catalogue, self.shelf.signals, models.item_models)
        # A release was made ready under the policy of the start, which may be another.
        self._serving: Serving = Serving(models, follow_policy(sources, self._policy), shop, {})
        telemetry.MODEL_INFO.clear()
        telemetry.MODEL_INFO.labels(models.release, models.provider).set(1)

    def process(self, records: Sequence[Record], state: State) -> list[Output]:
        """Events to profiles, pairs, slates and rejects."""
        self._tick("poll")
        outputs: list[Output] = []
        profiles: dict[tuple[int, str], Profile] = {}
        wanted: dict[tuple[int, str], tuple[Event, Record]] = {}
        tally = Tally()
        counts: Counter[str] = Counter()
        for record in records:
            try:
                event = event_of(record)
                key = (record.partition, event.user)
                before = profiles.get(key)
                if before is None:
                    stored = state.get(*key)
                    before = decode_profile(stored) if stored is not None else EMPTY
                after = apply(before, event, event_hash(event, record.value or b""))
            except BadEvent as error:
                outputs.append(put_aside(record, error, "ranker", self._rejects))
                counts["rejected"] += 1
                continue
            if after is before:
                counts["duplicates"] += 1
                continue
            profiles[key] = after
            if self._make_pairs:
                tally.add(event, before)
            if self._make_slates and should_recommend(
                event,
                self._policy,
                backfill=BACKFILL in record.headers,
                arrived_ms=record.arrived_ms,
            ):
                wanted[key] = (event, record)
        counts["events"] = len(records) - counts["rejected"] - counts["duplicates"]
        for key, profile in profiles.items():
            state.put(*key, encode_profile(profile))
        self._tick("profiles")
        outputs += self._pairs_of(tally)
        self._tick("pairs")
        if wanted:
            slates = self._slates_for(wanted, profiles)
            outputs += slates
            counts["slates"] = len(slates)
        self.batch_limit = LIVE_BATCH if wanted else BULK_BATCH
        self._pending += counts
        return outputs

    def committed(self) -> None:
        """Count what is durable."""
        self._tick("commit")
        self.counts += self._pending
        telemetry.DUPLICATES.inc(self._pending["duplicates"])
        now_ms = self._clock_ms()
        for slate, arrived_ms in self._made:
            telemetry.SLATES.labels(slate.scorer, str(bool(slate.degraded_reason)).lower()).inc()
            telemetry.EVENT_TO_SLATE_SECONDS.observe(max(0, now_ms - arrived_ms) / 1000)

    def _pairs_of(self, tally: Tally) -> list[Output]:
        outputs = []
        catalogue = self.shelf.catalogue
        for item, inc in tally.increments():
            if isinstance(item, int):  # a partner, known by its 48-bit name; out of the catalogue it needs no signal
                row = catalogue.row_of_ref.get(item, -1)
                if row < 0:
                    continue
                item = catalogue.items[row].item
            outputs.append(Output(self._pairs, item.encode(), encode_increment(inc)))
        return outputs

    def _slates_for(
        self, wanted: dict[tuple[int, str], tuple[Event, Record]], profiles: dict[tuple[int, str], Profile]
    ) -> list[Output]:
        now = self._serving
        causes = [
            Cause(r.topic, r.partition, r.offset, str(type(event).__struct_config__.tag), event.ts_ms)
            for event, r in wanted.values()
        ]
        requests = [
            self._request(event, profiles[key], slate_id(event.user, cause))
            for (key, (event, _)), cause in zip(wanted.items(), causes, strict=True)
        ]
        score = self._deep.around(now.models.score, self._policy) if self._deep else now.models.score
        drafts = recommend(requests, now.shop, now.sources, score, self._policy, self._tick)
        versions = Versions(now.models.release, self._digest, now.shop.catalogue.version, now.shop.signals.version)
        made_ms = self._clock_ms()
        outputs = []
        for (event, record), cause, request, draft in zip(wanted.values(), causes, requests, drafts, strict=True):
            if not draft.items:  # the catalogue has nothing that may be shown
                continue
            slate = Slate(
                id=request.slate,
                user=event.user,
                items=draft.items,
                cause=cause,
                versions=versions,
                scorer=draft.scorer,
                made_ts_ms=made_ms,
                freshness_ms=max(0, made_ms - record.arrived_ms),  # clocks differ; age is never negative
                degraded_reason=draft.degraded_reason,
                relaxed=draft.relaxed,
            )
            self._made.append((slate, record.arrived_ms))
            headers = (("schema", SLATE_SCHEMA.encode()), ("idempotency-key", slate.id.encode()))
            outputs.append(Output(self._slates, event.user.encode(), encode_slate(slate), headers))
        self._tick("publish")
        return outputs

    def _request(self, event: Event, profile: Profile, slate: str) -> Request:
        now_s = event.ts_ms / 1000
        query = next((text for ts_s, text in reversed(profile.queries) if 0 <= now_s - ts_s < QUERY_S), "")
        vector, models, known = None, self._serving.models, self._serving.queries
        if query and models.dim:
            vector = known.get(query)
            if vector is None:
                if len(known) >= 10_000:  # 15 MB of vectors; popular queries come again soon enough
                    known.clear()
                vector = known[query] = models.embed([query])[0]
        return Request(event.user, profile, now_s, query, vector, slate)
