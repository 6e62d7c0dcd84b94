"""A policy given to rankers at work, on the real broker: no list missing, none of two policies, a bad one changes nothing."""

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from prometheus_client import REGISTRY
from stream_helpers import read_slates, read_topic, send, send_events, send_items
from test_cli import Run, run
from test_hot_swap import click, ranking, visitors

from models.serving import NoModels
from recsys.catalogue import Item
from recsys.errors import Misuse
from recsys.events import Click, encode_event
from recsys.policy import Pin, Policy
from recsys.slates import Slate, decode_slate
from streams.policies import KEY, publish, published
from streams.ranker import RankerTask
from streams.records import Record
from streams.settings import Settings
from streams.state import Held, State

__all__ = ["run"]  # the fixture

Wait = Callable[..., None]
ITEMS = [Item(item=f"i{n}", title=f"Thing {n}", category=f"a > b{n % 3}", price=1.0 + n) for n in range(120)]
OLD = Policy(fatigue_shown=0)
NEW = Policy(fatigue_shown=0, slate_size=5, show_gains=True)
TEXT = b"fatigue_shown = 0\nslate_size = 5\nshow_gains = true"


@pytest.fixture
def shop(settings: Settings) -> Settings:
    """A catalogue, and rankers that start under OLD."""
    send_items(settings, ITEMS)
    return msgspec.structs.replace(settings, policy=OLD)


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("slatecast_policies_total", {"result": result}) or 0.0


def obeyed() -> set[str]:
    """Digests of the policies that POLICY_INFO shows."""
    metric = next(metric for metric in REGISTRY.collect() if metric.name == "slatecast_policy_info")
    return {sample.labels["digest"] for sample in metric.samples}


def in_order(settings: Settings) -> list[Slate]:
    return sorted(read_slates(settings), key=lambda slate: slate.made_ts_ms)


def test_lists_go_on_while_the_policy_changes_and_each_is_of_one(shop: Settings, wait_for: Wait) -> None:
    with ranking(shop, wait_for):
        with visitors(shop) as sent:
            wait_for(lambda: len(read_slates(shop)) > 50, 90.0)  # the machine code may have to be made first
            assert obeyed() == {OLD.digest()}
            publish(shop, TEXT)
            wait_for(lambda: obeyed() == {NEW.digest()})
            many = len(sent) + 50
            wait_for(lambda: len(sent) > many)
        wait_for(lambda: len(read_slates(shop)) == len(sent))
    slates = in_order(shop)
    assert {slate.user for slate in slates} == set(sent), "every event has its list"
    digests = [slate.versions.policy for slate in slates]
    assert {*digests} == {OLD.digest(), NEW.digest()}
    assert [a != b for a, b in pairwise(digests)].count(True) == 1
    for slate in slates:
        policy = OLD if slate.versions.policy == OLD.digest() else NEW
        assert len(slate.items) == policy.slate_size
        assert all((item.gain is not None) is policy.show_gains for item in slate.items)


BAD = [b"slate_size = 0", b'{"strenght": 1}', b"\xff", b"[[caps]]\nattribute = 'colour'", b"[" * 50_000]


def test_a_bad_policy_changes_nothing_and_is_said_and_counted(
    shop: Settings, wait_for: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    with ranking(shop, wait_for):
        wait_for(lambda: obeyed() == {OLD.digest()})  # no longer what a ranker before this one showed
        publish(shop, TEXT)
        wait_for(lambda: obeyed() == {NEW.digest()})
        before = counted("refused"), counted("applied")
        send(shop, "control", [(KEY, value) for value in BAD])
        send(shop, "control", [(b"alarm", b"not of policies"), (None, b"")])
        wait_for(lambda: counted("refused") == before[0] + len(BAD))
        send_events(shop, [click(0)])
        wait_for(lambda: len(read_slates(shop)) == 1)
    (slate,) = read_slates(shop)
    assert (slate.versions.policy, len(slate.items)) == (NEW.digest(), NEW.slate_size)
    assert counted("applied") == before[1]
    said = [record.getMessage() for record in caplog.records if "a policy is refused" in record.getMessage()]
    assert len(said) == len(BAD)
    assert any("strenght: there is no such knob; the nearest is strength" in line for line in said)


def test_a_restarted_ranker_reads_the_newest_that_can_be_read(shop: Settings, wait_for: Wait) -> None:
    publish(shop, b"slate_size = 3")
    publish(shop, TEXT)
    send(shop, "control", [(KEY, b"slate_size = 0")])
    for number in range(2):
        with ranking(shop, wait_for):
            send_events(shop, [click(number)])
            wait_for(lambda number=number: len(read_slates(shop)) == number + 1)
    assert {slate.versions.policy for slate in read_slates(shop)} == {NEW.digest()}
    publish(shop, None)
    with ranking(shop, wait_for):
        send_events(shop, [click(2)])
        wait_for(lambda: len(read_slates(shop)) == 3)
    assert in_order(shop)[-1].versions.policy == OLD.digest()


def test_a_policy_withdrawn_gives_back_that_of_the_settings(shop: Settings, wait_for: Wait) -> None:
    publish(shop, TEXT)
    task = RankerTask(shop, NoModels())
    task.shelf.catch_up()
    task.warm_up()
    assert obeyed() == {NEW.digest()}
    publish(shop, None)
    wait_for(lambda: task.refresh() or obeyed() == {OLD.digest()})


def test_sources_keep_their_index_and_queries_find_new_items_under_another_policy(shop: Settings) -> None:
    task = RankerTask(shop, NoModels())
    task.shelf.catch_up()
    task.warm_up()
    before = task._serving.sources
    publish(shop, b"new_days = 3")
    task.warm_up()
    after = task._serving.sources
    assert [source.name for source in after] == [source.name for source in before]
    assert [a is b for a, b in zip(after, before, strict=True)].count(False) == 1


def test_what_cannot_be_read_is_not_published(shop: Settings) -> None:
    with pytest.raises(Misuse, match="voices"):
        publish(shop, b"voices = -1")
    assert read_topic(shop, "control") == []
    assert published(shop) is None


def test_the_command_publishes_what_the_file_says_of_the_policy_and_nothing_else(
    shop: Settings, run: Run, tmp_path: Path
) -> None:
    where = ("--bootstrap", shop.bootstrap, "--prefix", shop.prefix)
    file = tmp_path / "shop.toml"
    file.write_text('[kafka]\n"sasl.password" = "secret"\n[policy]\n[[policy.pins]]\nslot = 0\nitem = "i7"\n')
    code, out, err = run("policy", "apply", file, *where)
    assert (code, out) == (0, "")
    assert "pins: also i7 in slot 0" in err
    assert Policy(pins=(Pin(0, "i7"),)).digest() in err
    (record,) = read_topic(shop, "control")
    assert (record.key, record.value) == (KEY, b'{"pins":[{"slot":0,"item":"i7"}]}')
    assert published(shop) == Policy(pins=(Pin(0, "i7"),))
    code, _, err = run("policy", "apply", "--withdraw", *where)
    assert code == 0
    assert "pins: no longer i7 in slot 0" in err
    assert read_topic(shop, "control")[-1].value is None


def test_a_policy_from_a_pipe_is_published_as_it_was_read(shop: Settings, run: Run) -> None:
    outlet, inlet = os.pipe()
    os.write(inlet, TEXT)
    os.close(inlet)
    code, _, err = run("policy", "apply", f"/dev/fd/{outlet}", "--bootstrap", shop.bootstrap, "--prefix", shop.prefix)
    os.close(outlet)
    assert code == 0
    assert NEW.digest() in err
    assert published(shop) == NEW


def test_a_list_explores_by_its_id_so_a_replay_draws_the_same(shop: Settings) -> None:
    own = msgspec.structs.replace(shop, policy=Policy(explore_slots=(2, 7)))
    task, drawn = RankerTask(own, NoModels()), []
    task.shelf.catch_up()  # once: rows come in the order in which partitions answer, and ties of candidates go by row
    for offset in (17, 17, 18, 19, 20):
        state = State()
        state.adopt(0, Held(None, in_memory=True))
        data = encode_event(Click(user="u", item="i3", ts_ms=1_700_000_000_000))
        record = Record("events", 0, offset, 1_700_000_000_000, b"u", data, ())
        (out,) = (out for out in task.process([record], state) if out.topic == own.prefix + "slates")
        items = decode_slate(out.value or b"").items
        assert [place for place, item in enumerate(items) if item.propensity] == [2, 7]
        drawn.append((items[2].item, items[7].item))
    assert drawn[0] == drawn[1]
    assert len({*drawn}) > 2


def test_policies_and_alarms_may_stand_on_one_topic_and_a_reader_begins_with_the_settings(shop: Settings) -> None:
    send(shop, "control", [(b"alarm", b"x"), (b"policy2", TEXT)])
    assert published(shop) is None
