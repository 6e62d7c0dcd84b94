"""What strangers send gets the verdict of the corpus: used, known, or put aside once with its bytes.

Each kind alone, through the ranker's own code; test_corpus_stream.py sends all of them at once through a broker.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from corpus_helpers import FOLDER, REJECTED, Kind
from verdict_helpers import BY_NAME, CORPUS, EVENTS, NOW_MS, QUERIES, assert_kept

from models.serving import NoModels
from recsys.events import Click, decode_event, encode_event
from recsys.profiles import EMPTY, PROFILE_MAX_BYTES, Profile, apply, decode_profile, encode_profile
from streams.ranker import RankerTask
from streams.records import Record
from streams.rejects import WHOLE_BYTES, reason_class
from streams.settings import Settings
from streams.state import Held, State

ITEMS = [kind for kind in CORPUS if kind.topic == "items"]


def names(kinds: Sequence[Kind]) -> list[str]:
    return [kind.name for kind in kinds]


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_file_has_a_verdict_and_every_verdict_a_file() -> None:
    files = {f"{path.parent.name}/{path.stem}" for path in FOLDER.glob("*/*")}
    assert files <= BY_NAME.keys()
    assert len(BY_NAME) == len(CORPUS) >= 300
    assert {kind.group for kind in CORPUS} == {path.name for path in FOLDER.iterdir() if path.is_dir()} | {"headers"}
    assert {kind.verdict for kind in CORPUS} == {*REJECTED, "used", "duplicate", "ignored"}


def test_what_must_come_before_a_kind_stands_before_it() -> None:
    seen = set[str]()
    for kind in CORPUS:
        assert seen.issuperset(kind.after), kind.name
        assert {BY_NAME[name].key for name in kind.after} <= {kind.key}
        seen.add(kind.name)


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 300_000


# --- each kind alone, no broker ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task() -> Iterator[RankerTask]:
    """A ranker that makes profiles and rejects only."""
    nobody = Settings(bootstrap="127.0.0.1:1", prefix="c.", kafka={"log_level": 0})
    made = RankerTask(nobody, NoModels(), slates=False, pairs=False)
    yield made
    made.shelf._items.close()
    made.shelf._signals.close()


def fresh() -> State:
    state = State()
    state.adopt(0, Held(None, in_memory=True))
    return state


def records_of(kinds: Sequence[Kind]) -> list[Record]:
    return [
        Record("c.events", 0, 100 + at, NOW_MS, kind.key, kind.value, kind.headers) for at, kind in enumerate(kinds)
    ]


def profile_of(state: State, kind: Kind) -> Profile:
    stored = state.get(0, (kind.key or b"").decode(errors="replace"))
    return decode_profile(stored) if stored is not None else EMPTY


@pytest.mark.parametrize("kind", EVENTS, ids=names(EVENTS))
def test_a_kind_gets_its_verdict(kind: Kind, task: RankerTask) -> None:
    state = fresh()
    task.process(records_of([BY_NAME[name] for name in kind.after]), state)
    before = profile_of(state, kind)
    [record] = records_of([kind])
    task.refresh()
    outputs = task.process([record], state)
    after = profile_of(state, kind)
    assert (after != before) == (kind.verdict == "used")
    if kind.verdict in REJECTED:
        [output] = outputs
        assert output.topic == "c.rejects"
        assert reason_class(output.headers) == kind.verdict
        assert_kept(output, record)
    else:
        assert outputs == []
        assert task._pending["duplicates"] == (kind.verdict == "duplicate")


@pytest.mark.parametrize("kind", EVENTS, ids=names(EVENTS))
def test_a_kind_that_comes_again_changes_nothing(kind: Kind, task: RankerTask) -> None:
    state = fresh()
    first = task.process(records_of([*(BY_NAME[name] for name in kind.after), kind]), state)
    settled = profile_of(state, kind)
    again = task.process(records_of([kind, kind]), state)
    assert profile_of(state, kind) == settled
    assert len(again) == 2 * (kind.verdict in REJECTED) >= len(first) - len(kind.after)


def test_only_what_no_topic_must_take_is_cut(task: RankerTask) -> None:
    """By the size before compression: a record beyond it is larger than the limit of its topic."""
    for size, cut in ((WHOLE_BYTES, False), (WHOLE_BYTES + 1, True)):
        [record] = records_of([Kind("x", "oversize", "", "events", b"k", bytes(size - 1))])
        [output] = task.process([record], fresh())
        assert ("slatecast.error.cut" in dict(output.headers)) == cut
        assert len(output.value or b"") == (1024 if cut else size - 1)
        assert output.key == b"k"


def test_a_batch_of_all_kinds_has_a_reject_for_each_bad_record_and_no_other(task: RankerTask) -> None:
    kinds = EVENTS[:]
    state, records = fresh(), records_of(kinds)
    task.refresh()
    outputs = task.process(records, state)
    bad = [record.offset for record, kind in zip(records, kinds, strict=True) if kind.verdict in REJECTED]
    assert [int(dict(output.headers)["__connect.errors.offset"]) for output in outputs] == bad
    verdicts = Counter(kind.verdict for kind in kinds)
    assert task._pending == {
        "events": verdicts["used"],
        "duplicates": verdicts["duplicate"],
        "rejected": len(bad),
    }
    profiles = [decode_profile(value) for _, _, value in state.changes()]
    assert all(len(encode_profile(profile)) <= PROFILE_MAX_BYTES for profile in profiles)


def test_ten_thousand_events_of_one_user_in_a_second_are_one_bounded_profile(task: RankerTask) -> None:
    burst = [Click(user="u", item=f"i{n % 700}", ts_ms=NOW_MS - 1000 + n % 1000, id=f"e{n}") for n in range(10_000)]
    records = [Record("c.events", 0, at, NOW_MS, b"u", encode_event(event), ()) for at, event in enumerate(burst)]
    state = fresh()
    task.refresh()
    assert task.process(records, state) == []
    profile = decode_profile(state.get(0, "u") or b"")
    assert len(encode_profile(profile)) <= PROFILE_MAX_BYTES
    assert task._pending["events"] + task._pending["duplicates"] == 10_000


@pytest.mark.parametrize("kind", ITEMS, ids=names(ITEMS))
def test_an_item_gets_its_verdict(kind: Kind, task: RankerTask, caplog: pytest.LogCaptureFixture) -> None:
    shelf, before = task.shelf, len(task.shelf.catalogue)
    shelf.bad_items.clear()
    shelf._take_item(Record("c.items", 0, 7, NOW_MS, kind.key, kind.value, kind.headers))
    assert shelf.bad_items == ({kind.verdict: 1} if kind.verdict in REJECTED else {})
    assert len(shelf.catalogue) - before == (kind.verdict == "used")
    assert all(line.isprintable() and len(line) < 500 for line in caplog.messages)


@pytest.mark.parametrize("kind", QUERIES, ids=names(QUERIES))
def test_of_a_query_only_what_one_sees_is_used(kind: Kind) -> None:
    queries = apply(EMPTY, decode_event(kind.value or b""), b"123456").queries
    kept = "".join(text for _, text in queries)
    assert not {unicodedata.category(character) for character in kept} & {"Cc", "Cf", "Zl", "Zp", "Cs"}
    assert bool(kept) == (kind.name not in ("text/invisible", "text/spaces"))
