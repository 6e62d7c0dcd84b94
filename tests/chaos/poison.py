"""Everything that strangers may send (tests/corpus), many times over, among good events, through a real ranker.

Each bad record gets one verdict, with its bytes; each good one is used; the process does not even notice.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

import msgspec
from chaos.arena import Arena, Row, arena, attempt, make_events, rss_mib, wait_for
from confluent_kafka import KafkaError, Message
from corpus_helpers import REJECTED, Kind, expected_profiles, read_corpus

from recsys.events import encode_event
from streams import clients
from streams.embedded import Embedded
from streams.records import Record
from streams.rejects import reason_class

TIMES = 20
LARGE, TWICE = 300_000, 2  # bytes of a kind that is sent twice only
MIB = 2**20
SEED = 13
Place = tuple[int, int]


def rows(services: Embedded, folder: Path, quick: bool) -> list[Row]:
    """One row."""
    times, good, users = (2, 600, 60) if quick else (TIMES, 10_000, 500)
    return [attempt("poison", lambda: run(services, folder, times, good, users))]


def run(services: Embedded, folder: Path, times: int, good: int, users: int) -> Row:
    """The corpus, `times` over, shuffled into good events."""
    with arena(services, folder, "poison") as ring:
        process = ring.start("ranker")
        wait_for(lambda: "changelog records" in ring.log("ranker").read_text(), 60, "a ranker that owns partitions")
        before_mib = rss_mib(process.pid)
        events = make_events(good, users, SEED)
        places = _send(ring, _mix([(e.user.encode(), encode_event(e)) for e in events], times))
        wait_for(lambda: not ring.behind() or process.poll() is not None, 600, "all is processed")

        sent = [kind for _, kind in sorted(places.items())]
        bad = {place: kind for place, kind in places.items() if kind.verdict in REJECTED}
        verdicts = Counter[Place]()
        wrong = 0
        for reject in ring.read("rejects"):
            said = dict(reject.headers)
            place = int(said["__connect.errors.partition"]), int(said["__connect.errors.offset"])
            verdicts[place] += 1
            wrong += place not in bad or not _is_exact(bad[place], reject)
        judged = ring.judge(events)
        found = {(r.key or b"").decode(): r.value for r in sorted(ring.read("profiles"), key=lambda r: r.offset)}
        expected = expected_profiles(sent)
        differ = sum(found.get(user) != expected.get(user) for user in found.keys() | expected.keys())
        missing, twice = len(bad.keys() - verdicts.keys()), sum(n - 1 for n in verdicts.values())
        ends = (process.poll() is not None) + ring.log("ranker").read_text().count("one at a time")
        return Row(
            "poison",
            len(bad),
            judged.lost + missing,
            judged.duplicated + twice,
            differ,
            passed=len(bad) > 100 * times
            and not (judged.lost or judged.duplicated or missing or twice or differ or wrong or ends),
            said={
                "kinds": len({kind.name for kind in bad.values()}),
                "good": good,
                "wrong_verdicts": wrong,
                "worker_exits": ends,
                "rss_growth_mib": round(rss_mib(process.pid, peak=True) - before_mib),
            },
        )


def _mix(good: Sequence[tuple[bytes, bytes]], times: int) -> list[Kind]:
    """All in a random order; what a kind needs to come first comes first."""
    kinds = [kind for kind in read_corpus() if kind.topic == "events"]
    needed = {name for kind in kinds for name in kind.after}
    mixed = [kind for kind in kinds for _ in range(TWICE if kind.size > LARGE else times)]
    mixed += [Kind("good", "used", "", "events", key, value) for key, value in good]
    # Good events keep their order, which is that of their time, so that the newest is also the last.
    in_order = iter(mixed[-len(good) :])
    Random(SEED).shuffle(mixed)
    shuffled = [next(in_order) if kind.name == "good" else kind for kind in mixed]
    return [*(kind for kind in kinds if kind.name in needed), *shuffled]


def _send(ring: Arena, kinds: Sequence[Kind]) -> dict[Place, Kind]:
    """Where each came to lie. By a stranger's client: it sends larger records than ours."""
    producer = clients.producer(
        msgspec.structs.replace(
            ring.settings, kafka={"message.max.bytes": 64 * MIB, "queue.buffering.max.kbytes": 2**20}
        )
    )
    places = dict[Place, Kind]()

    def delivered(kind: Kind, error: KafkaError | None, message: Message) -> None:
        assert error is None, f"{kind.name}: {error}"
        places[message.partition() or 0, message.offset() or 0] = kind

    for kind in kinds:
        while True:
            try:
                producer.produce(
                    f"{ring.settings.prefix}events",
                    kind.value,
                    kind.key,
                    headers=list(kind.headers),
                    on_delivery=partial(delivered, kind),
                )
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0
    return places


def _is_exact(kind: Kind, reject: Record) -> bool:
    """The class of the corpus and the bytes of the record; of what is larger than any topic takes, their digest."""
    value = kind.value or b""
    cut = dict(reject.headers).get("slatecast.error.cut")
    if cut is not None:
        whole = cut == f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()}".encode()
        same = whole and kind.size > MIB
    else:
        same = (reject.key, reject.value) == (kind.key, kind.value)
    return same and reason_class(reject.headers) == kind.verdict
