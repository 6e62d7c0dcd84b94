"""What the demo claims at its end, computed from what was sent and what stands on the topics.

Lost and doubled are audits: profiles are made again from the events sent and compared to the bit; slates are counted by
id. Quality is judged on purchases only: the last list of each visit against the household's next visit, whose simulated
clicks it cannot have seen. What the visit itself bought is taken out of the truth and of every list: nobody offers it
a minute after it was paid.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from recsys.catalogue import Catalogue
from recsys.crowd_metrics import inter_user_overlap
from recsys.events import Event, Purchase, encode_event, event_hash
from recsys.list_metrics import mean_distance, path_distances
from recsys.metrics import hit_at_k, ndcg_at_k
from recsys.profiles import EMPTY, ID_WIDTH, Profile, apply, decode_profile
from recsys.signals import DAY_S
from recsys.simulate import is_simulated
from recsys.slates import Slate, decode_slate
from streams import clients
from streams.demo import Play, Sent
from streams.records import Record
from streams.settings import Settings
from streams.state import end_offsets, read_to

K = 10
HALF_LIFE_S = 60 * DAY_S  # of own frequency: the best on this data (docs/decisions.md)


def audit(settings: Settings, events: Sequence[Event]) -> dict[str, int]:
    """events_lost: records missing in profiles; slates_duplicated: slates that stand twice on the topic."""
    expected: dict[str, Profile] = {}
    for event in events:
        before = expected.get(event.user, EMPTY)
        expected[event.user] = apply(before, event, event_hash(event, encode_event(event)))
    found = {
        (record.key or b"").decode(): decode_profile(record.value or b"") for record in _read(settings, "profiles")
    }
    lost = sum(_missing(profile, found.get(user, EMPTY)) for user, profile in expected.items())
    ids = Counter(decode_slate(record.value or b"").id for record in _read(settings, "slates"))
    return {"events_lost": lost, "slates_duplicated": sum(count - 1 for count in ids.values())}


def _missing(expected: Profile, found: Profile) -> int:
    """Records of `expected` that `found` lacks; 1 if they differ otherwise (something counted that was not sent)."""
    missing = 0
    for log, width in (("purchases", 10), ("touches", 11), ("shown", 10), ("ids", ID_WIDTH)):
        one, two = getattr(expected, log), getattr(found, log)
        records = [{packed[at : at + width] for at in range(0, len(packed), width)} for packed in (one, two)]
        missing += len(records[0] - records[1])
    return missing or int(expected != found)


def _read(settings: Settings, topic: str) -> list[Record]:
    """Everything committed on a topic, with one client."""
    name, records = settings.prefix + topic, list[Record]()
    admin, consumer = clients.admin(settings), clients.reader(settings)
    read_to(consumer, name, end_offsets(admin, name, clients.partitions_of(admin, name)), records.append)
    consumer.close()
    return records


def judge(play: Play, slates: Sequence[Slate]) -> dict[str, float]:
    """NDCG@10 and hit rate of our lists, popularity and own frequency, on the same visits; and the diversities."""
    last: dict[tuple[str, str], Slate] = {}
    visit_of = {event.ts_ms: event.session or "" for event in play.live}
    for slate in sorted(slates, key=lambda slate: (slate.cause.partition, slate.cause.offset)):
        if slate.cause.ts_ms in visit_of:
            last[slate.user, visit_of[slate.cause.ts_ms]] = slate
    figures: dict[str, list[float]] = defaultdict(list)
    lists: dict[str, list[str]] = {}
    bought, popular = _before(play)
    visits = _visits(play.live)
    for user, own_visits in visits.items():
        for (session, basket), (_, following) in zip(own_visits, own_visits[1:], strict=False):
            made = last.get((user, session))
            if made is None:
                continue
            just_bought = {event.item for event in basket}
            truth = {event.item for event in following} - just_bought
            if not truth:
                continue
            ours = [item.item for item in made.items]
            now_s = basket[-1].ts_ms / 1000
            known = [*bought[user], *(e for _, visit in own_visits for e in visit if e.ts_ms <= basket[-1].ts_ms)]
            _add(figures, "", ours, truth)
            _add(figures, "_own_frequency", [i for i in _own_frequency(known, now_s) if i not in just_bought], truth)
            _add(figures, "_popularity", [item for item in popular if item not in just_bought], truth)
            if user in lists:
                figures["temporal_diversity"].append(len(set(ours) - set(lists[user])) / max(len(ours), 1))
            lists[user] = ours
    means = {name: float(np.mean(values)) for name, values in figures.items()}
    return {**means, **_diversities(play, lists), "visits_judged": len(figures["ndcg_at_10"])}


def _visits(events: Sequence[Event]) -> dict[str, list[tuple[str, list[Purchase]]]]:
    """Per user, the baskets in the order of time, each under its session."""
    visits: dict[str, dict[str, list[Purchase]]] = defaultdict(dict)
    for event in events:
        if isinstance(event, Purchase):
            visits[event.user].setdefault(event.session or "", []).append(event)
    return {user: list(baskets.items()) for user, baskets in visits.items()}


def _before(play: Play) -> tuple[dict[str, list[Purchase]], list[str]]:
    """Each user's purchases before the live days, and the items by how many households bought them in the last 28 days."""
    bought: dict[str, list[Purchase]] = defaultdict(list)
    buyers: dict[str, set[str]] = defaultdict(set)
    since_ms = play.live[0].ts_ms - 28 * DAY_S * 1000
    for event in play.warm:
        if isinstance(event, Purchase):
            bought[event.user].append(event)
            if event.ts_ms >= since_ms:
                buyers[event.item].add(event.user)
    return bought, sorted(buyers, key=lambda item: (-len(buyers[item]), item))


def _own_frequency(purchases: Sequence[Purchase], now_s: float) -> list[str]:
    counts: dict[str, float] = defaultdict(float)
    for event in purchases:
        counts[event.item] += 0.5 ** ((now_s - event.ts_ms / 1000) / HALF_LIFE_S)
    return sorted(counts, key=lambda item: (-counts[item], item))


def _add(figures: dict[str, list[float]], name: str, ranked: list[str], truth: set[str]) -> None:
    ranked = ranked[:K]
    figures[f"ndcg_at_10{name}"].append(ndcg_at_k(ranked, truth, K))
    figures[f"hit_rate_at_10{name}"].append(hit_at_k(ranked, truth, K))


def _diversities(play: Play, lists: dict[str, list[str]]) -> dict[str, float]:
    """Within a list (distance of category paths) and across users (share of items that two lists have in common)."""
    catalogue = Catalogue(play.items)
    rows = np.array([[catalogue.row(item) for item in items] for items in lists.values() if len(items) == K])
    if len(rows) < 2:
        return {}
    within = np.mean([mean_distance(path_distances(catalogue.category[some])) for some in rows])
    return {"intra_list_distance": float(within), "inter_user_overlap": inter_user_overlap(rows)}


def summarise(settings: Settings, play: Play, sent: Sent, events: Sequence[Event]) -> dict[str, float | int]:
    """Everything that `--json` prints."""
    fresh = np.array([slate.freshness_ms for slate in sent.slates] or [0])
    return {
        "first_slate_s": sent.first_slate_s,
        "click_to_slate_s": sent.shopper.click_to_slate_s if sent.shopper else 0.0,
        "events": len(events),
        "events_simulated": sum(is_simulated(event) for event in events),
        "events_per_s": sent.live_events / max(sent.live_s, 1e-9),
        "slates": len(sent.slates),
        "slates_degraded": sum(slate.degraded_reason is not None for slate in sent.slates),
        **audit(settings, events),
        "freshness_p50_ms": int(np.percentile(fresh, 50)),
        "freshness_p99_ms": int(np.percentile(fresh, 99)),
        **judge(play, sent.slates),
    }
