"""The state of a worker: its overlay, its copy on disk, and what a restore does with a copy that is not good."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recsys.errors import Unavailable
from streams import clients, store, topics
from streams.settings import Settings
from streams.state import Held, State, end_offsets, restore, topic_id
from streams.store import FORMAT, MARK, Mark, Store, StoreBroken, open_store

Step = tuple[str, int, str]  # what, the number of a partition and value, the key
Kind = Callable[[Path], Held]
KINDS: dict[str, Kind] = {
    "memory alone": lambda folder: Held(None, in_memory=True),
    "memory and disk": lambda folder: Held(Store(folder, "t", 0), in_memory=True),
    "disk alone": lambda folder: Held(Store(folder, "t", 0), in_memory=False),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@hypothesis_settings(max_examples=25)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "put", "put", "merge", "drop"]), st.integers(0, 2), st.sampled_from("abc"))
    )
)
def test_a_batch_sees_its_own_writes_and_only_a_merge_keeps_them(kind: Kind, steps: list[Step]) -> None:
    state, kept, seen = State(), dict[tuple[int, str], bytes](), dict[tuple[int, str], bytes]()
    with tempfile.TemporaryDirectory() as folder:
        for partition in range(3):
            state.adopt(partition, kind(Path(folder) / str(partition)))
        for n, (what, partition, key) in enumerate(steps):
            if what == "put":
                state.put(partition, key, b"%d" % n)
                seen[partition, key] = b"%d" % n
            elif what == "merge":
                assert {(p, k): v for p, k, v in state.changes()}.items() <= seen.items()
                state.merge({0: n, 1: n, 2: n})
                kept = dict(seen)
            else:
                state.drop()
                seen = dict(kept)
            assert {(p, k): v for p in range(3) for k in "abc" if (v := state.get(p, k)) is not None} == seen
            assert {(p, k): v for p in range(3) for k, v in state.partition(p).items()} == kept
        for partition in range(3):
            state.release(partition)


# --- the copy on disk --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of two users that stands at 7."""
    kept = Store(tmp_path / "0", "topic-id", 0)
    kept.write([("a", b"1"), ("b", b"2"), ("gone", b"3")], 5)
    kept.write([("gone", None)], 7)
    kept.close()
    return tmp_path / "0"


def open_again(
    folder: Path, log_id: str = "topic-id", partition: int = 0, begin: int = 0, end: int = 9
) -> Iterator[str]:
    """What a restart finds, and at which offset."""
    found = open_store(folder, log_id, partition, begin, end)
    yield from (key for key, _ in found.items())
    yield str(found.next_offset)
    found.close()


def test_what_was_written_is_there_with_its_offset(folder: Path) -> None:
    assert list(open_again(folder)) == ["a", "b", "7"]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ({"log_id": "another"}, "another topic"),
        ({"partition": 1}, "another topic"),
        ({"end": 6}, "it stands at 7, the changelog ends at 6"),
        ({"begin": 8}, "it stands at 7, the changelog begins at 8"),
    ],
)
def test_a_store_of_something_else_is_left_out_with_a_word(
    folder: Path, caplog: pytest.LogCaptureFixture, case: dict[str, int], said: str
) -> None:
    assert list(open_again(folder, **case)) == ["0"]  # type: ignore[arg-type]
    assert said in caplog.text
    assert list(open_again(folder, **case)) == ["0"], "made anew"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "age_days", "said"), [(FORMAT + 1, 0, "format 2"), (FORMAT, 6.1, "6.1 days ago"), (FORMAT, -7, "-7.0")]
)
def test_a_store_of_another_time_is_left_out_with_a_word(
    folder: Path, caplog: pytest.LogCaptureFixture, version: int, age_days: float, said: str
) -> None:
    written_ms = int((time.time() - age_days * 86_400) * 1000)
    other = Store(folder, "topic-id", 0)
    other._db.put(MARK, msgspec.msgpack.encode(Mark(version, "topic-id", 0, 7, written_ms)))
    other.close()
    assert list(open_again(folder)) == ["0"]
    assert said in caplog.text


@pytest.mark.parametrize("cut", ["*.log", "*.sst", "CURRENT", "MANIFEST-*"])
def test_a_torn_store_gives_an_earlier_whole_state_or_nothing(folder: Path, cut: str) -> None:
    found = list(open_again(folder))  # opening moves what the log held into a table
    assert found == ["a", "b", "7"]
    for file in folder.glob(cut):
        os.truncate(file, file.stat().st_size // 2)
    assert list(open_again(folder)) in (["a", "b", "7"], ["a", "b", "gone", "5"], ["0"])


def test_a_store_that_a_stopped_twin_holds_is_not_taken_from_it(folder: Path) -> None:
    twin = Store(folder, "topic-id", 0)
    with pytest.raises(StoreBroken, match="(?i)lock"):
        open_store(folder, "topic-id", 0, 0, 9)
    assert [key for key, _ in twin.items()] == ["a", "b"]
    twin.close()


def test_a_killed_process_leaves_whole_writes(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from streams.store import Store
kept = Store(Path({str(tmp_path)!r}), "topic-id", 0)
for n in range(1, 1000):
    kept.write([("a", b"%d" % n), ("b", b"%d" % n)], n)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(store.__file__).parents[1]).returncode == -9
    found = open_store(tmp_path, "topic-id", 0, 0, 1000)
    assert (found.next_offset, dict(found.items())) == (999, {"a": b"999", "b": b"999"})
    found.close()


def test_a_full_disk_stops_the_copy_and_not_the_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held = Held(Store(tmp_path, "t", 0), in_memory=True)
    held.write([("a", b"1")], 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        for n in range(2, 50):
            held.write([("a", bytes(1000))], n)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "no longer kept on disk" in caplog.text
    held.write([("b", b"2")], 50)
    assert held.get("b") == b"2"
    found = open_store(tmp_path, "t", 0, 0, 99)
    assert found.next_offset < 50, "a later write does not hide the gap"
    assert found.get("b") is None
    found.close()


# --- restoring on the broker -------------------------------------------------------------------------------------------


def restored(settings: Settings, folder: Path | None, **how: bool) -> tuple[dict[str, bytes], int]:
    """Partition 0 of profiles, and how many records were read for it."""
    reader = clients.reader(settings)
    held, count = restore(clients.admin(settings), reader, settings.prefix + "profiles", [0], folder, **how)
    reader.close()
    values = dict(held[0].items())
    held[0].close()
    return values, count


def write(settings: Settings, **values: str | None) -> None:
    """Onto partition 0 of profiles."""
    producer = clients.producer(settings)
    for key, value in values.items():
        producer.produce(settings.prefix + "profiles", value.encode() if value else None, key, 0)
    assert producer.flush(30) == 0


@pytest.mark.parametrize("in_memory", [True, False])
def test_only_the_tail_behind_the_store_is_read(settings: Settings, tmp_path: Path, in_memory: bool) -> None:
    write(settings, a="1", b="2", c="3")
    assert restored(settings, tmp_path, in_memory=in_memory) == ({"a": b"1", "b": b"2", "c": b"3"}, 3)
    write(settings, a="4", b=None)
    assert restored(settings, tmp_path, in_memory=in_memory) == ({"a": b"4", "c": b"3"}, 2)
    assert restored(settings, tmp_path, in_memory=in_memory) == ({"a": b"4", "c": b"3"}, 0)
    assert restored(settings, None) == ({"a": b"4", "c": b"3"}, 5), "as the whole changelog says"


def test_a_long_restore_says_that_it_goes_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.state.WRITE_TOGETHER", 10)
    write(settings, **{f"u{n}": "1" for n in range(35)})
    beats: list[int] = []
    reader = clients.reader(settings)
    beat: Callable[[], None] = lambda: beats.append(1)  # noqa: E731 - a name says what it is
    restore(clients.admin(settings), reader, settings.prefix + "profiles", [0], beat=beat)
    reader.close()
    assert len(beats) == 3


def test_a_restore_that_waits_for_a_transaction_says_that_it_goes_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[..., None]
) -> None:
    monkeypatch.setattr("streams.state.QUIET_S", 0.0)
    producer, name = clients.producer(settings, f"{settings.prefix}slow"), settings.prefix + "profiles"
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(name, b"1", b"a", 0)
    assert producer.flush(30) == 0
    beats: list[int] = []
    reader, beat = clients.reader(settings), lambda: beats.append(1)
    restoring = Thread(target=restore, args=(clients.admin(settings), reader, name, [0]), kwargs={"beat": beat})
    restoring.start()
    wait_for(lambda: len(beats) > 3, 10)
    producer.commit_transaction(30)
    restoring.join(20)
    assert not restoring.is_alive()
    reader.close()


def test_a_topic_that_was_made_again_is_not_taken_for_the_old_one(
    settings: Settings, tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    write(settings, a="1", b="2")
    assert restored(settings, tmp_path)[1] == 2
    admin, name = clients.admin(settings), settings.prefix + "profiles"
    old = topic_id(admin, name)
    admin.delete_topics([name])[name].result(30)
    wait_for(lambda: name not in admin.list_topics(timeout=10).topics)
    topics.apply(admin, settings)
    assert topic_id(admin, name) != old
    write(settings, x="9", y="8", z="7")
    assert end_offsets(admin, name, [0])[0] == 3, "beyond where the store stands"
    assert restored(settings, tmp_path) == ({"x": b"9", "y": b"8", "z": b"7"}, 3)


def test_a_state_that_must_lie_on_disk_says_when_it_cannot(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    write(settings, a="1")
    with pytest.raises(Unavailable, match="state = 'memory'"):
        restored(settings, tmp_path / "state", in_memory=False)
    assert restored(settings, tmp_path / "state") == ({"a": b"1"}, 1), "in memory it goes on without"
