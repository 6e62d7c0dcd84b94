"""Bad records: put aside once with their bytes, looked at, and sent again, on the real broker."""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from random import Random

import msgspec
import pytest
from confluent_kafka import TopicPartition
from stream_helpers import read_slates, read_topic, send, send_events, send_items

from recsys.catalogue import Item
from recsys.errors import BadEvent, Unavailable
from recsys.events import Click, Event, encode_event
from streams import clients
from streams.cli.main import main
from streams.records import Record
from streams.rejects import Reject, newest_of_each, read_rejects, reject_headers, requeue
from streams.roles import run_role
from streams.settings import Settings

Wait = Callable[..., None]
Run = Callable[..., tuple[int, bytes, str]]
SECONDS = b'{"type":"click","user":"u1","item":"i1","ts_ms":17}'


class Role:
    """A role in a thread, as its process runs it."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=run_role, args=(settings, name, "0", self._stop), daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def start() -> Iterator[Callable[..., Role]]:
    """Start a role; all end with the test."""
    roles: list[Role] = []

    def begin(settings: Settings, name: str = "ranker") -> Role:
        roles.append(Role(settings, name))
        return roles[-1]

    yield begin
    for role in roles:
        role.end()


@pytest.fixture
def run(settings: Settings, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`slatecast rejects …` as a person types it: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, bytes, str]:
        connection = ["--bootstrap", settings.bootstrap, "--prefix", settings.prefix]
        monkeypatch.setattr(sys, "argv", ["slatecast", "rejects", *arguments, *connection])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsysbinary.readouterr()
        assert b"Traceback" not in err
        return int(left.value.code or 0), out, err.decode()

    return call


Start = Callable[..., Role]


def click(user: str, **changes: object) -> Event:
    event = Click(user=user, item="i1", ts_ms=time.time_ns() // 1_000_000, id=f"{user}-1")
    return msgspec.structs.replace(event, **changes)


def put_aside(settings: Settings, key: bytes | None, value: bytes | None, *, topic: str = "events") -> None:
    """A reject of any record, as a role would make it."""
    record = Record(settings.prefix + topic, 0, 7, 0, key, value, (("trace", b"7"),))
    send(settings, "rejects", [(key, value)], reject_headers(record, BadEvent("schema", "not then"), "ranker"))


def test_each_bad_record_is_put_aside_once_with_its_bytes_and_headers(
    settings: Settings, start: Start, wait_for: Wait
) -> None:
    bad = [(b"u1", SECONDS), (b"u2", b"\xff\x00"), (b"u3", None), (None, b"[]"), (b"u5", encode_event(click("u4")))]
    forged = [("__connect.errors.topic", b"elsewhere"), ("slatecast.error.class", b"none")]
    send(settings, "events", bad, [("trace", b"7"), ("trace", b"8"), *forged])
    send_items(settings, [Item(item="i1", title="Mug")])
    first = start(settings)
    wait_for(lambda: len(read_rejects(settings)) == len(bad))
    first.end()
    start(settings)  # which must not meet them again
    send_events(settings, [click("good")])
    wait_for(lambda: len(read_slates(settings)) == 1)
    found = {reject.value: reject for reject in read_rejects(settings)}
    assert [(found[value].key, found[value].value) for _, value in bad] == bad
    assert len(found) == len(read_topic(settings, "rejects")) == len(bad)
    assert found[SECONDS].headers == (("trace", b"7"), ("trace", b"8"))
    assert [found[value].reason_class for _, value in bad] == ["range", "decode", "decode", "schema", "schema"]
    at = {
        record.value: f"{record.topic}:{record.partition}:{record.offset}" for record in read_topic(settings, "events")
    }
    assert {value: reject.source for value, reject in found.items()} == {value: at[value] for value in found}


def test_headers_are_those_of_kafka_connect(settings: Settings, start: Start, wait_for: Wait) -> None:
    send(settings, "events", [(b"u1", SECONDS)])
    start(settings)
    wait_for(lambda: len(read_topic(settings, "rejects")) == 1)
    [record] = read_topic(settings, "rejects")
    headers = dict(record.headers)
    assert [name.removeprefix("__connect.errors.") for name in headers] == [
        "topic",
        "partition",
        "offset",
        "connector.name",
        "task.id",
        "stage",
        "class.name",
        "exception.class.name",
        "exception.message",
        "exception.stacktrace",
        "slatecast.error.class",
    ]
    assert headers["__connect.errors.connector.name"] == b"slatecast.ranker"
    assert headers["__connect.errors.exception.message"].startswith(b"ts_ms: 17 is not milliseconds since 1970")
    assert headers["__connect.errors.exception.stacktrace"] == b""


def test_a_bad_record_as_large_as_its_topic_takes_is_put_aside(
    settings: Settings, start: Start, wait_for: Wait
) -> None:
    large = Random(7).randbytes(1_048_588 - 200)
    send(settings, "events", [(b"u1", large)])
    assert len(read_topic(settings, "events")) == 1
    start(settings)
    wait_for(lambda: len(read_topic(settings, "rejects")) == 1)
    [reject] = read_rejects(settings)
    assert (reject.value, reject.reason_class) == (large, "oversize")


def test_what_is_no_increment_is_put_aside_by_the_aggregator(settings: Settings, start: Start, wait_for: Wait) -> None:
    send(settings, "pairs", [(b"i1", b"\xc1"), (b"\xff", b""), (None, None)])
    start(settings, "signals")
    wait_for(lambda: len(read_rejects(settings)) == 3)
    assert {reject.value for reject in read_rejects(settings)} == {b"\xc1", b"", None}


# --- the commands ------------------------------------------------------------------------------------------------------


def test_list_says_a_line_each_on_stdout(settings: Settings, run: Run) -> None:
    assert run("list") == (0, b"", "No rejects.\n")
    put_aside(settings, b"u1", SECONDS)
    put_aside(settings, b"u1", b"{}", topic="pairs")
    code, out, err = run("list")
    assert (code, err) == (0, "")
    source = f"{settings.prefix}events:0:7  schema: not then"
    assert [line.split("  ", 1)[1] for line in out.decode().splitlines()] == [source, source.replace("events", "pairs")]
    assert run("list", "--class", "range") == (0, b"", "No rejects.\n")
    found = msgspec.json.decode(run("list", "--json")[1])
    assert [reject["source"] for reject in found] == [f"{settings.prefix}{t}:0:7" for t in ("events", "pairs")]
    assert [reject["ts_ms"] for reject in found] == [reject.ts_ms for reject in read_rejects(settings)]


def test_show_gives_the_bytes_back(settings: Settings, run: Run) -> None:
    put_aside(settings, b"u1", b"\xff\x00\n[/red]")
    [reject] = read_rejects(settings)
    code, out, err = run("show", reject.id)
    assert (code, out) == (0, b"\xff\x00\n[/red]")
    assert "schema: not then" in err
    assert "key b'u1', headers (('trace', b'7'),)" in err
    assert re.search(r"^put aside \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$", err, re.MULTILINE)
    put_aside(settings, b"[/x]", None)
    [_, empty] = sorted(read_rejects(settings), key=lambda reject: reject.value is None)
    assert run("show", empty.id)[:2] == (0, b"")


def test_words_of_a_record_are_shown_and_not_obeyed(settings: Settings, run: Run, start: Start, wait_for: Wait) -> None:
    send(settings, "events", [(b"[/red]", b'{"type":"[/b]\\u001b[2J\\n","user":"u1"}')])
    start(settings)
    wait_for(lambda: len(read_rejects(settings)) == 1)
    [reject] = read_rejects(settings)
    for command in (["list"], ["show", reject.id]):
        code, out, err = run(*command)
        assert code == 0
        assert "[/b]\ufffd[2J\ufffd" in out.decode() + err
        assert "\x1b" not in out.decode() + err


def test_a_requeued_record_is_processed_if_it_is_good_now(
    settings: Settings, run: Run, start: Start, wait_for: Wait
) -> None:
    put_aside(settings, b"u1", encode_event(click("u1")))
    put_aside(settings, b"u2", SECONDS)
    good, bad = sorted(read_rejects(settings), key=lambda reject: reject.key or b"")
    assert run("requeue", good.id)[0] == 0
    send_items(settings, [Item(item="i1", title="Mug")])
    start(settings)
    wait_for(lambda: [slate.user for slate in read_slates(settings)] == ["u1"])
    [sent] = read_topic(settings, "events")
    assert (sent.key, sent.value) == (good.key, good.value)
    assert sent.headers == (("trace", b"7"), ("requeued-from", f"rejects:{good.id}".encode()))
    code, out, err = run("requeue", "--class", "schema")
    assert (code, out, err) == (0, b"", "2 records sent again.\n")
    wait_for(lambda: len(read_rejects(settings)) == 3)
    newest = next(reject for reject in read_rejects(settings) if reject.id not in (good.id, bad.id))
    assert (newest.key, newest.value, newest.reason_class) == (b"u2", SECONDS, "range")
    assert len(read_slates(settings)) == 1, "what was applied already is known"


def test_what_stays_bad_is_not_doubled_by_each_requeue_of_its_class(
    settings: Settings, run: Run, start: Start, wait_for: Wait
) -> None:
    send(settings, "events", [(b"u2", SECONDS)])
    start(settings)
    for rejects in (1, 2, 3):
        wait_for(lambda: len(read_rejects(settings)) == rejects)  # noqa: B023 - called in this round only
        assert run("requeue", "--class", "range") == (0, b"", "1 records sent again.\n")
    wait_for(lambda: len(read_rejects(settings)) == 4)


def test_a_header_of_another_record_keeps_no_reject_back(settings: Settings) -> None:
    named = (("requeued-from", b"rejects:0:0"),)
    first, other, same = (
        Reject(0, n, 0, "events:0:0", "schema", "", b"u1", value, headers)
        for n, (value, headers) in enumerate(((b"{}", ()), (b"[]", named), (b"{}", named)))
    )
    assert newest_of_each([first, other]) == [first, other]
    assert newest_of_each([first, other, same]) == [other, same]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("requeue", "0:99"), "no reject 0:99; `slatecast rejects list` shows"),
        (("requeue", "0:0", "9:9"), "no reject 9:9;"),
        (("requeue", "nonsense"), "no reject nonsense;"),
        (("requeue",), "name rejects (see `slatecast rejects list`), or a --class, not both"),
        (("requeue", "0:0", "--class", "range"), "not both"),
        (("show", "0:99"), "no reject 0:99;"),
        (("list", "--class", "rnage"), "there is no class 'rnage'; there are decode, schema, range, oversize,"),
        (("requeue", "--class", "rnage"), "there is no class 'rnage'; there are decode, schema, range, oversize,"),
    ],
)
def test_what_is_not_there_is_misuse(settings: Settings, run: Run, arguments: tuple[str, ...], said: str) -> None:
    send(settings, "rejects", [(b"\0" * n, b"x") for n in range(1, 9)])  # so that 0:0 is there
    code, out, err = run(*arguments)
    assert (code, out) == (2, b"")
    assert err.startswith("slatecast: ")
    assert said in err
    assert read_topic(settings, "events") == []


def test_nothing_is_sent_again_where_one_topic_is_gone(settings: Settings, run: Run) -> None:
    put_aside(settings, b"u1", encode_event(click("u1")))
    put_aside(settings, b"u2", b"x", topic="gone")
    send(settings, "rejects", [(b"u3", b"from nowhere")])
    code, _, err = run("requeue", "--class", "schema")
    assert code == 1
    assert err.startswith(f"slatecast: topic {settings.prefix}gone: ")
    code, _, err = run("requeue", "--class", "?")
    assert code == 1
    assert err.count("\n") == 1
    assert read_topic(settings, "events") == []


def test_a_record_that_the_broker_refuses_keeps_the_others_back(settings: Settings) -> None:
    good, large = (
        Reject(0, n, 0, f"{settings.prefix}events:0:{n}", "schema", "", b"u1", value, ())
        for n, value in enumerate((b"{}", Random(7).randbytes(1_500_000)))
    )
    with pytest.raises(Unavailable, match=r"nothing was sent again: .*too large"):
        requeue(settings, [good, large])
    assert requeue(settings, [good]) == 1
    assert [record.value for record in read_topic(settings, "events")] == [b"{}"]


def test_rejects_are_read_from_where_retention_has_left_them(settings: Settings, run: Run) -> None:
    put_aside(settings, b"u1", b"old")
    put_aside(settings, b"u1", b"new")
    [old, new] = read_rejects(settings)
    admin = clients.admin(settings)
    for future in admin.delete_records(
        [TopicPartition(settings.prefix + "rejects", new.partition, new.offset)]
    ).values():
        future.result()
    code, out, _ = run("list")
    assert (code, len(out.splitlines())) == (0, 1)
    assert run("show", old.id)[0] == 2
    assert run("show", new.id)[1] == b"new"
