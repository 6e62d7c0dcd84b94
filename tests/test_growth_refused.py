"""When growth is refused, before anything is written, and how roles that began too early wait or begin again."""

from collections.abc import Callable

import msgspec
import pytest
from confluent_kafka import ConsumerGroupState, KafkaException
from growth_helpers import USERS, Start, Wait, clicks, commit, ends, grow, lived_in, new, profiles_of, start, values
from stream_helpers import read_topic, send, send_events

from recsys.errors import Misuse
from streams import clients, growth, topics
from streams.carrying import Carrier, Hold
from streams.growth import Stand, look, next_generation
from streams.lag import committed_offsets
from streams.ranker import RankerTask
from streams.settings import Settings

__all__ = ["new", "start"]  # the fixtures


def test_the_same_prefix_is_refused(settings: Settings) -> None:
    with pytest.raises(Misuse, match="is the prefix in use"):
        next_generation(settings, settings.prefix, 12)
    with pytest.raises(Misuse, match="new topics: .*prefix"):
        next_generation(settings, "no blanks", 12)


def test_a_prefix_that_nobody_uses_is_refused_before_anything_is_created(settings: Settings, new: Settings) -> None:
    unused = msgspec.structs.replace(settings, prefix=settings.prefix + "typo.")
    before = ends(settings)
    with pytest.raises(Misuse, match=r"there is no topic .*typo\.events: is .*typo\. the prefix in use\?"):
        growth.run(unused, new)
    assert ends(settings) == before


@pytest.mark.parametrize("act", [look, growth.run])
def test_new_topics_with_another_number_of_partitions_are_refused(
    settings: Settings, new: Settings, act: Callable[[Settings, Settings], Stand]
) -> None:
    topics.apply(clients.check_broker(new), new)
    before = ends(settings)
    with pytest.raises(Misuse, match="has 7 partitions, not 8: give --partitions as it has, or another --to"):
        act(settings, msgspec.structs.replace(new, partitions=8))
    assert ends(settings) == before


def test_a_generation_has_one_parent(settings: Settings, new: Settings) -> None:
    grow(settings, new)
    other = msgspec.structs.replace(settings, prefix=settings.prefix + "other.")
    topics.apply(clients.check_broker(other), other)
    with pytest.raises(Misuse, match=f"was grown from {settings.prefix}, not from {other.prefix}"):
        growth.run(other, new)


def test_old_roles_that_still_run_are_refused_and_named(
    settings: Settings, new: Settings, wait_for: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    growth.run(settings, new)
    monkeypatch.setattr(growth, "SILENCE_S", 0)
    for role, topic in (("ranker", "events"), ("signals", "pairs")):
        send(settings, topic, [(b"u1", b"x")])
        member = clients.consumer(settings, settings.prefix + role)
        member.subscribe([settings.prefix + topic])
        wait_for(lambda member=member: member.poll(0.1) is not None)
        before = ends(settings)
        assert look(settings, new).running == [role]
        with pytest.raises(Misuse, match=f"^{role} of {settings.prefix} still run"):
            growth.run(settings, new)
        assert ends(settings) == before
        member.close()
    send(new, "events", [(b"u1", b"x")])
    early = clients.consumer(new, new.prefix + "ranker")  # has restored nothing, and has committed nothing yet
    early.subscribe([new.prefix + "events"])
    wait_for(lambda: early.poll(0.1) is not None)
    with pytest.raises(Misuse, match=f"^ranker of {new.prefix} still run"):
        growth.run(settings, new)
    early.close()
    assert growth.run(settings, new).complete


def test_a_role_that_is_started_too_early_waits(
    settings: Settings, new: Settings, start: Start, wait_for: Wait
) -> None:
    lived_in(settings)
    growth.run(settings, new)
    early: list[RankerTask] = []
    admin = clients.admin(settings)

    def begin(topic: str, done: int, of: int) -> None:
        if not early:  # the first record of the state is on its way
            early.extend((start(settings), start(new)))
            wait_for(lambda: len(waiting()) == 4)

    def waiting() -> set[str]:
        listed = admin.list_consumer_groups().result().valid
        return {g.group_id for g in listed if g.state.name == "PREPARING_REBALANCING" and settings.prefix in g.group_id}

    stand = growth.run(settings, new, begin)
    assert stand.hand_over == {"pairs": 12, "events": 40}
    wait_for(lambda: early[1].counts["events"] == 40)
    assert values(new, "profiles") == profiles_of(*clicks(USERS, "read"), *clicks(USERS, "unread"))
    send_events(settings, clicks(["u1"], "old"))
    wait_for(lambda: early[0].counts["events"] == 1)
    assert (early[0].counts["events"], early[1].counts["events"]) == (1, 40), (
        "the old ranker found nothing else to read"
    )


def test_a_member_that_was_expelled_commits_nothing(settings: Settings, wait_for: Wait) -> None:
    send_events(settings, clicks(["u1"], "a"))
    (record,) = read_topic(settings, "events")
    producer = clients.producer(settings, f"{settings.prefix}grow")
    producer.init_transactions(30)
    with Hold(settings, "ranker", "events", range(4)) as member:
        pass  # out of the group, as one is that the broker has not heard of for 10 s
    other = clients.consumer(settings, settings.prefix + "ranker")
    other.subscribe([settings.prefix + "events"])
    wait_for(lambda: other.poll(0.05) is not None)
    carrier = Carrier(producer, settings.prefix + "slates", (), member)
    carrier.add(record)
    with pytest.raises(KafkaException, match="UNKNOWN_MEMBER_ID"):
        carrier.commit()
    other.close()
    producer.abort_transaction(30)
    assert read_topic(settings, "slates") == []
    assert set(committed_offsets(settings, "ranker", "events", [0, 1, 2, 3]).values()) == {0}


@pytest.mark.parametrize(("role", "topic"), [("ranker", "events"), ("signals", "pairs")])
def test_new_roles_that_began_without_the_state_are_refused(
    settings: Settings, new: Settings, role: str, topic: str
) -> None:
    growth.run(settings, new)
    send(new, topic, [(b"u1", b"x")])
    commit(new, role, topic)
    before = ends(settings)
    for act in (look, growth.run):
        with pytest.raises(Misuse, match="have begun without the state"):
            act(settings, new)
    assert ends(settings) == before


def test_what_began_too_early_can_begin_again_without_a_loss(
    settings: Settings, new: Settings, start: Start, wait_for: Wait
) -> None:
    """As docs/operations.md says."""
    lived_in(settings)
    growth.run(settings, new)
    early = clicks(USERS, "early")
    send_events(new, early)
    ranker = start(new)
    wait_for(lambda: ranker.counts["events"] == len(early))
    start.end()  # type: ignore[attr-defined]
    with pytest.raises(Misuse, match="have begun without the state"):
        growth.run(settings, new)
    admin = clients.admin(new)
    idle = (ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD)
    wait_for(
        lambda: (
            not any(
                group.group_id.startswith(new.prefix) and group.state not in idle
                for group in admin.list_consumer_groups().result().valid
            )
        )
    )
    for future in admin.delete_consumer_groups([new.prefix + role for role in ("ranker", "signals")]).values():
        future.result()
    derived = [new.prefix + topic for topic in ("profiles", "signals", "pairs", "slates", "decisions")]
    for future in admin.delete_topics(derived).values():
        future.result()
    assert {change.action for change in growth.run(settings, new).create} == {"create"}
    assert growth.run(settings, new).complete
    ranker = start(new)
    wait_for(lambda: ranker.counts["events"] == len(early) + 40)
    assert values(new, "profiles") == profiles_of(*clicks(USERS, "read"), *early, *clicks(USERS, "unread"))
