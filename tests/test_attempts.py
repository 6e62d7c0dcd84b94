"""The record that ends its process is put aside by its third attempt, its neighbours never. No process ends here."""

import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import Unavailable
from streams.attempts import LAST_ATTEMPT, Attempts
from streams.records import Record


class Ended(BaseException):
    """The process is no more. Nothing may catch it."""


def at(offset: int, partition: int = 0, arrived_ms: int = 7) -> Record:
    return Record("events", partition, offset, arrived_ms, b"k", b"v", ())


def some(*offsets: int) -> list[Record]:
    return [at(offset) for offset in offsets]


def end_over(file: Path, *records: Record) -> None:
    """A process that ends while it processes these."""
    attempts = Attempts(file)
    with contextlib.suppress(Ended), attempts.trying(records):
        raise Ended
    attempts.close()


def hopeless(file: Path, records: Sequence[Record]) -> list[int]:
    attempts = Attempts(file)
    found = [record.offset for record in records if attempts.is_hopeless(record)]
    attempts.close()
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "attempt.json"


def test_the_first_attempt_is_a_batch_the_second_and_third_are_the_record_alone(file: Path) -> None:
    batch = some(3, 4, 5, 6)
    assert not Attempts(file).suspects(batch)
    end_over(file, *batch)
    assert Attempts(file).suspects(batch)
    assert hopeless(file, batch) == []
    end_over(file, at(4))
    assert hopeless(file, batch) == []
    end_over(file, at(4))
    assert hopeless(file, batch) == [4]


def test_a_record_that_came_alone_has_three_attempts_too(file: Path) -> None:
    for _ in range(LAST_ATTEMPT):
        assert hopeless(file, some(4)) == []
        end_over(file, at(4))
    assert hopeless(file, some(4)) == [4]


def test_only_the_offsets_of_the_batch_are_suspects(file: Path) -> None:
    end_over(file, at(3), at(9, 1), at(4), at(10, 1))
    attempts = Attempts(file)
    suspects = [record for p in (0, 1, 2) for o in range(12) if attempts.suspects([record := at(o, p)])]
    assert suspects == [at(3), at(4), at(9, 1), at(10, 1)]


def test_what_is_committed_is_no_suspect_any_more(file: Path) -> None:
    end_over(file, *some(3, 4, 5, 6))
    attempts = Attempts(file)
    attempts.passed(some(3, 4))
    for known in (attempts, Attempts(file)):
        assert [record.offset for record in some(3, 4, 5, 6) if known.suspects([record])] == [5, 6]
    attempts.passed(some(5, 6, 7))
    assert not Attempts(file).suspects(some(3, 4, 5, 6, 7))


def test_another_partition_that_is_committed_clears_nothing(file: Path) -> None:
    end_over(file, at(3))
    Attempts(file).passed([at(9, 1)])
    assert Attempts(file).suspects([at(3)])


def test_a_process_that_ends_between_two_records_counts_for_neither(file: Path) -> None:
    end_over(file, *some(3, 4))
    attempts = Attempts(file)
    for record in some(3, 4):
        with attempts.trying([record]):
            pass
        note = Attempts(file)  # what a successor would find here
        assert [note.attempts_of(record) for record in some(3, 4)] == [1, 1]


def test_an_error_of_ours_counts_for_nothing(file: Path) -> None:
    attempts = Attempts(file)
    with pytest.raises(Unavailable), attempts.trying(some(3)):
        raise Unavailable("no broker")
    assert not Attempts(file).suspects(some(3))


def test_a_bug_counts(file: Path) -> None:
    """It ends the process with its traceback, and would end every successor."""
    for _ in range(LAST_ATTEMPT):
        with pytest.raises(ZeroDivisionError), Attempts(file).trying(some(3)):
            raise ZeroDivisionError
    assert hopeless(file, some(3)) == [3]


def test_work_that_is_done_leaves_no_suspects(file: Path) -> None:
    attempts = Attempts(file)
    with attempts.trying(some(3, 4)):
        assert Attempts(file).suspects(some(3))
    assert not Attempts(file).suspects(some(3, 4))


def test_a_second_pill_does_not_make_the_first_forgotten(file: Path) -> None:
    """Both in one batch: nothing of it is committed while the second still ends its process."""
    batch = some(3, 4, 5, 6)
    end_over(file, *batch)
    end_over(file, at(4))
    end_over(file, at(4))
    end_over(file, at(6))
    assert hopeless(file, batch) == [4]
    end_over(file, at(6))
    assert hopeless(file, batch) == [4, 6]


def test_a_record_of_another_topic_with_the_same_name_is_not_put_aside(file: Path) -> None:
    """Topics are made again in development, and offsets begin anew."""
    for _ in range(LAST_ATTEMPT):
        end_over(file, at(3, arrived_ms=7))
    assert hopeless(file, [at(3, arrived_ms=8)]) == []
    assert hopeless(file, [at(3, arrived_ms=7)]) == [3]


@pytest.mark.parametrize("end", [0, 1, 5, -1])
def test_a_torn_note_is_left_out_with_a_word(file: Path, end: int, caplog: pytest.LogCaptureFixture) -> None:
    end_over(file, at(3))
    file.write_bytes(file.read_bytes().strip()[:end])
    attempts = Attempts(file)
    assert not attempts.suspects(some(3))
    assert ("torn" in caplog.text) == (end != 0)
    attempts.close()
    end_over(file, at(3))
    assert Attempts(file).suspects(some(3)), "the next note is whole"


@given(st.binary(max_size=60) | st.text(max_size=20).map(lambda text: f"[{text}]".encode()))
def test_no_bytes_at_all_keep_a_worker_from_its_start(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    file = tmp_path_factory.mktemp("attempts") / "attempt.json"
    file.write_bytes(junk)
    attempts = Attempts(file)
    with attempts.trying(some(3, 4)):
        pass
    attempts.close()
    assert not Attempts(file).suspects(some(3, 4))


def test_a_shorter_note_over_a_longer_one_is_whole(file: Path) -> None:
    """In one write: a kill behind it finds no end of the longer one."""
    end_over(file, *(at(10**12 + n, p) for p in range(50) for n in (0, 1)))
    attempts = Attempts(file)
    attempts.passed([at(10**13, p) for p in range(50)])
    assert file.stat().st_size > 1000
    assert not Attempts(file).suspects([at(10**12, 3)])
    end_over(file, at(3))
    assert Attempts(file).suspects(some(3))


def test_without_a_disk_nothing_is_remembered_and_nothing_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    file = tmp_path / "state" / "attempt.json"
    for _ in range(LAST_ATTEMPT + 1):
        end_over(file, at(3))
    assert hopeless(file, some(3)) == []
    assert "not remembered" in caplog.text


def test_a_disk_that_is_full_is_said_once_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    attempts = Attempts(Path("/dev/full"))
    for _ in range(3):
        with attempts.trying(some(3)):
            pass
    attempts.passed(some(3))
    attempts.close()
    assert caplog.text.count("not remembered") == 1


# --- a worker's life ---------------------------------------------------------------------------------------------------


def live(file: Path, records: Sequence[Record], pills: Collection[int], batch: int) -> tuple[list[int], list[int]]:
    """What one process commits and puts aside before it ends, or is done: the worker's loop, but for Kafka."""
    attempts, done, aside = Attempts(file), list[int](), list[int]()
    with contextlib.suppress(Ended), contextlib.closing(attempts):
        for begin in range(0, len(records), batch):
            group = records[begin : begin + batch]
            lost = [record.offset for record in group if attempts.is_hopeless(record)]
            for tried in [[r] for r in group if r.offset not in lost] if attempts.suspects(group) else [group]:
                with attempts.trying(tried):
                    if any(record.offset in pills for record in tried):
                        raise Ended
            attempts.passed(group)
            done += [record.offset for record in group if record.offset not in lost]
            aside += lost
    return done, aside


@given(st.integers(1, 30), st.sets(st.integers(0, 29), max_size=6), st.lists(st.integers(1, 30), min_size=1))
def test_any_pills_are_put_aside_and_all_others_are_processed_once(
    tmp_path_factory: pytest.TempPathFactory, count: int, places: set[int], batches: list[int]
) -> None:
    """However many stand together, and whatever a process happens to poll: no pill ends more than three of them."""
    file = tmp_path_factory.mktemp("attempts") / "attempt.json"
    pills = {place for place in places if place < count}
    done, aside = list[int](), list[int]()
    for life in range(LAST_ATTEMPT * len(pills) + 1):
        at_offset = len(done) + len(aside)
        more, put_aside = live(file, some(*range(at_offset, count)), pills, batches[life % len(batches)])
        done += more
        aside += put_aside
    assert sorted(aside) == sorted(pills)
    assert sorted(done) == [offset for offset in range(count) if offset not in pills]
