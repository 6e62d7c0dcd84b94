"""Files onto the real broker, and the commands around it: what arrives, what is put aside, what is said."""

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stream_helpers import read_topic

from models.files import read_rows
from recsys.catalogue import decode_item
from recsys.errors import BadEvent, Misuse, Unavailable
from recsys.events import Event, decode_event, event_hash
from recsys.profiles import EMPTY, apply
from streams.cli.main import main
from streams.clients import producer
from streams.loading import _Delivery, load_events, load_items, rejects_file
from streams.settings import Settings

GOOD = b'{"type":"click","user":"u%d","item":"i1","ts_ms":1700000000000}'
BAD = [b"\xff not JSON", b'{"type":"click","user":"u1","item":"i1","ts_ms":17}', b'{"type":"click"}\r']
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command line as the user types it; exit code, stdout, stderr."""

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["slatecast", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            main()
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return int(left.value.code or 0), out.out, out.err

    return call


def where(settings: Settings) -> list[str]:
    return ["--bootstrap", settings.bootstrap, "--prefix", settings.prefix, "--home", settings.home]


def events_file(folder: Path, lines: list[bytes]) -> Path:
    (path := folder / "e.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def test_events_arrive_keyed_by_user_in_order_with_their_schema(settings: Settings, tmp_path: Path) -> None:
    rows = list(read_rows(events_file(tmp_path, [GOOD % (n % 7) for n in range(3000)])))
    seen: list[int] = []
    done = load_events(settings, rows, progress=seen.append)
    records = read_topic(settings, "events")
    assert (done.rows, done.loaded, done.rejected) == (3000, 3000, 0)
    assert seen == [1000, 2000, 3000, 3000]
    assert {record.headers for record in records} == {(("schema", b"slatecast.event.v1"),)}
    for user in range(7):
        mine = [r for r in records if r.key == b"u%d" % user]
        assert len({r.partition for r in mine}) == 1
        sent = [row.event for row in rows if row.event and row.event.user == f"u{user}"]
        assert [decode_event(r.value or b"") for r in sorted(mine, key=lambda r: r.offset)] == sent


def test_history_is_marked_as_backfill(settings: Settings, tmp_path: Path) -> None:
    load_events(settings, read_rows(events_file(tmp_path, [GOOD % 1])), backfill=True)
    [record] = read_topic(settings, "events")
    assert record.headers == (("schema", b"slatecast.event.v1"), ("backfill", b"1"))


def test_loading_twice_changes_no_profile(settings: Settings, tmp_path: Path) -> None:
    path = events_file(
        tmp_path, [GOOD % 1, (GOOD % 1).replace(b"i1", b"i2"), (GOOD % 1).replace(b"click", b"purchase")]
    )
    profiles = []
    for _ in range(2):
        load_events(settings, read_rows(path))
        profile = EMPTY
        for record in read_topic(settings, "events"):
            event: Event = decode_event(record.value or b"")
            profile = apply(profile, event, event_hash(event, record.value or b""))
        profiles.append(profile)
    assert profiles[0] == profiles[1] != EMPTY


def test_items_arrive_keyed_by_item(settings: Settings, tmp_path: Path) -> None:
    (path := tmp_path / "items.csv").write_text(
        "item,title,tags,available\na,Red mug,new|clay,true\nb,Pan,,no\nc,Pot,,0\n"
    )
    rejected = []
    done = load_items(settings, read_rows(path, "items"), on_reject=rejected.append)
    records = {record.key: record for record in read_topic(settings, "items")}
    assert (done.loaded, done.rejected, done.reasons) == (2, 1, {"schema": 1})
    assert [row.line for row in rejected] == [3]
    assert decode_item(records[b"a"].value or b"").tags == ("new", "clay")
    assert not decode_item(records[b"c"].value or b"").available
    assert records[b"a"].headers == (("schema", b"slatecast.item.v1"),)


def test_bad_rows_are_kept_byte_by_byte(settings: Settings, tmp_path: Path) -> None:
    path = events_file(tmp_path, [GOOD % 1, *BAD, GOOD % 2])
    aside = tmp_path / "deep" / "aside.jsonl"
    with rejects_file(aside) as write:
        done = load_events(settings, read_rows(path), on_reject=write)
    assert (done.loaded, done.rejected, done.reasons) == (2, 3, {"decode": 1, "range": 1, "schema": 1})
    assert aside.read_bytes() == b"".join(line + b"\n" for line in BAD)


def test_without_bad_rows_no_rejects_file_is_made(tmp_path: Path) -> None:
    with rejects_file(tmp_path / "aside.jsonl"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_came_before_a_file_breaks_off_is_delivered(settings: Settings, tmp_path: Path) -> None:
    lines = b"".join((GOOD % (n * 7919 % 100_003)) + b"\n" for n in range(20_000))
    packed = gzip.compress(lines)
    (path := tmp_path / "e.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(Misuse, match="after line (\\d+)") as error:
        load_events(settings, read_rows(path))
    assert f"after line {len(read_topic(settings, 'events'))};" in str(error.value)


def test_no_broker_is_said_within_seconds(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no Kafka answers at 127.0.0.1:1"):
        load_events(Settings(bootstrap="127.0.0.1:1"), read_rows(events_file(tmp_path, [GOOD % 1])))


def test_a_topic_that_is_missing_is_said(services: Settings, tmp_path: Path) -> None:
    elsewhere = msgspec.structs.replace(services, prefix="nobody-applied.")
    with pytest.raises(Unavailable, match="slatecast topics apply"):
        load_events(elsewhere, read_rows(events_file(tmp_path, [GOOD % 1])))


def test_records_that_the_broker_refuses_are_counted(settings: Settings, tmp_path: Path) -> None:
    impatient = msgspec.structs.replace(settings, kafka={"message.timeout.ms": 1, "linger.ms": 0})
    with pytest.raises(Unavailable, match=r"\d+ of 5000 records were not delivered"):
        load_events(impatient, read_rows(events_file(tmp_path, [GOOD % n for n in range(5000)])))


# --- the commands -----------------------------------------------------------------------------------------------------


def test_load_says_in_one_line_what_came_of_a_file(settings: Settings, tmp_path: Path, run: Run) -> None:
    code, out, err = run("load", "events", events_file(tmp_path, [GOOD % 1, GOOD % 2]), *where(settings))
    assert (code, out) == (0, "")
    [line] = lines_of(err)
    assert line.startswith("2 events loaded in ")


def test_load_shows_the_first_bad_rows_and_says_where_all_are(settings: Settings, tmp_path: Path, run: Run) -> None:
    path = events_file(tmp_path, [GOOD % 1, *BAD * 5])
    code, out, err = run("load", "events", path, "--json", *where(settings))
    summary = msgspec.json.decode(out)
    aside = Path(settings.home) / "e.rejects.jsonl"
    assert code == 0
    assert (summary["loaded"], summary["rejected"], summary["rejects"]) == (1, 15, str(aside))
    assert aside.read_bytes() == b"".join(line + b"\n" for line in BAD * 5)
    assert len([line for line in lines_of(err) if ": rejected, " in line]) == 10
    assert "line 3: rejected, range: ts_ms: 17 is not milliseconds" in err


def test_rejects_of_a_csv_can_be_mended_and_loaded(settings: Settings, tmp_path: Path, run: Run) -> None:
    (path := tmp_path / "clicks.csv").write_text("type,user,item,ts\nclick,u1,i1,1700000000\nclick,u1,i2,soon\n")
    assert run("load", "events", path, *where(settings))[0] == 0
    aside = Path(settings.home) / "clicks.rejects.csv"
    assert aside.read_text() == "type,user,item,ts\nclick,u1,i2,soon\n"
    aside.write_text(aside.read_text().replace("soon", "1700000001"))
    assert run("load", "events", aside, *where(settings))[0] == 0
    assert len(read_topic(settings, "events")) == 2


def test_bad_rows_of_files_of_one_name_are_all_kept(settings: Settings, tmp_path: Path, run: Run) -> None:
    kept = []
    for day, bad in enumerate(BAD[:2]):
        (folder := tmp_path / str(day)).mkdir()
        _, out, _ = run("load", "events", events_file(folder, [GOOD % 1, bad]), "--json", *where(settings))
        kept.append(Path(msgspec.json.decode(out)["rejects"]))
    assert [path.name for path in kept] == ["e.rejects.jsonl", "e.rejects.2.jsonl"]
    assert [path.read_bytes() for path in kept] == [bad + b"\n" for bad in BAD[:2]]


def test_a_file_of_bad_rows_only_fails(settings: Settings, tmp_path: Path, run: Run) -> None:
    code, _, err = run("load", "events", events_file(tmp_path, BAD), *where(settings))
    assert code == 1
    assert lines_of(err)[-1].startswith("slatecast: nothing loaded: all 3 rows of ")


def test_strict_stops_at_the_first_bad_row(settings: Settings, tmp_path: Path, run: Run) -> None:
    path = events_file(tmp_path, [GOOD % 1, BAD[1], GOOD % 2])
    code, _, err = run("load", "events", path, "--strict", *where(settings))
    assert code == 2
    [line] = lines_of(err)
    assert line.startswith("slatecast: line 2: ts_ms: 17 is not milliseconds")
    assert len(read_topic(settings, "events")) == 1


def test_the_file_itself_is_no_place_for_rejects(settings: Settings, tmp_path: Path, run: Run) -> None:
    path = events_file(tmp_path, [GOOD % 1])
    assert run("load", "events", path, "--rejects", path, *where(settings))[0] == 2
    assert path.read_bytes() == GOOD % 1 + b"\n"


def test_a_full_disk_is_one_line(settings: Settings, tmp_path: Path, run: Run) -> None:
    path = events_file(tmp_path, [GOOD % 1, BAD[0]])
    code, _, err = run("load", "events", path, "--rejects", "/dev/full", *where(settings))
    assert code == 1
    assert lines_of(err)[-1].startswith("slatecast: No space left on device")


@pytest.mark.parametrize("command", [("load", "events"), ("load", "items"), ("validate",)])
@pytest.mark.parametrize("content", [None, b"", b"\0\1\2\3" * 99, b"a,b\n1,2\n"])
def test_a_wrong_file_is_one_line_and_exit_code_2(
    tmp_path: Path, run: Run, command: tuple[str, ...], content: bytes | None
) -> None:
    path = tmp_path / "some.csv"
    if content is not None:
        path.write_bytes(content)
    where = ["--bootstrap", "127.0.0.1:1"] if command[0] == "load" else []
    code, out, err = run(*command, path, *where)
    assert (code, out) == (2, "")
    [line] = lines_of(err)
    assert line.startswith("slatecast: ")


def test_validate_says_line_by_line_what_would_be_done(tmp_path: Path, run: Run) -> None:
    seconds = (GOOD % 3).replace(b'"ts_ms":1700000000000', b'"ts":1700000000')
    path = events_file(tmp_path, [GOOD % 1, BAD[1], seconds])
    code, out, err = run("validate", path)
    assert (code, err) == (1, "")
    assert [line.split(maxsplit=3)[1:3] for line in out.splitlines()[:3]] == [
        ["1", "load"],
        ["2", "reject"],
        ["3", "convert"],
    ]
    assert out.splitlines()[0].endswith("click of i1 by u1 at 2023-11-14T22:13:20Z")
    assert out.splitlines()[1].split(maxsplit=3)[3].startswith("range: ts_ms: 17 is not milliseconds since 1970")
    assert out.splitlines()[2].endswith("by u3 at 2023-11-14T22:13:20Z (ts: s to ms)")
    assert out.splitlines()[3] == (
        "3 rows: 2 would be loaded (1 of them converted), 0 folded into others, 1 rejected (range 1)"
    )


def test_words_of_a_catalogue_are_shown_and_not_obeyed(tmp_path: Path, run: Run) -> None:
    (path := tmp_path / "items.jsonl").write_text('{"item":"i1","title":"Mug\\u001b[2J\\nline 2 load i2"}')
    code, out, _ = run("validate", path, "--kind", "items")
    assert code == 0
    assert out.splitlines()[0].endswith("i1: Mug\ufffd[2J\ufffdline 2 load i2")


def test_validate_as_json_counts_all_and_shows_a_few(tmp_path: Path, run: Run) -> None:
    path = events_file(tmp_path, [GOOD % 1] * 30 + [BAD[0]] * 2)
    code, out, _ = run("validate", path, "--json", "--limit", "1")
    found: dict[str, Any] = msgspec.json.decode(out)
    assert code == 1
    assert (found["rows"], found["load"], found["reject"], found["reasons"]) == (32, 30, 2, {"decode": 2})
    assert [(line["line"], line["outcome"]) for line in found["lines"]] == [(1, "load"), (31, "reject")]
    assert run("validate", events_file(tmp_path, [GOOD % 1]))[0] == 0


def test_validate_knows_the_wheel_by_name(run: Run) -> None:
    code, out, _ = run("validate", "completejourney", "--kind", "items", "--limit", "1")
    assert code == 1  # coupons, fuel and what has no category
    assert out.splitlines()[0].endswith("25671: Ice - crushed/cubed, 22 lb, maker 2")
    assert out.splitlines()[-1] == "92331 rows: 91545 would be loaded (0 of them converted), 0 folded into others, 786 rejected (range 786)"  # fmt: skip


class Interrupted(str):
    """A header's name during whose reading Ctrl-C is pressed: the client asks for its text, where Python looks for signals."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


def test_ctrl_c_while_the_client_reads_a_header_is_no_error_of_types() -> None:
    delivery = _Delivery(producer(Settings(bootstrap="127.0.0.1:1")), "events", ((Interrupted("schema"), b"1"),))
    with pytest.raises(KeyboardInterrupt):
        delivery.send(b"u1", b"{}")


def test_an_error_in_the_callback_stops_the_loading(settings: Settings, tmp_path: Path) -> None:
    def refuse(row: Any) -> None:
        raise BadEvent(row.error.reason_class, "enough")

    with pytest.raises(BadEvent, match="enough"):
        load_events(settings, read_rows(events_file(tmp_path, [GOOD % 1, BAD[0], GOOD % 2])), on_reject=refuse)
    assert len(read_topic(settings, "events")) == 1
