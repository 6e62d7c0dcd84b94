"""More partitions: a new generation of topics under another prefix, into which the old one is carried.

A key's partition depends on their number, and a worker's state lies in the partition of its input: on a topic that got
more partitions a user's next event would meet an empty profile. So partitions are never added. `slatecast topics grow`
is one command, run three times or more; each run says what comes next, and may be killed and repeated:

1. The new topics are missing: it creates them. From now on producers may switch to them, one after another.
2. The old ranker and aggregator have stopped: it copies the newest value of every key, then hands over the events and
   increments that they have not read. They need not have caught up: who cannot keep up, and grows, would wait long.
3. The new roles run: it hands over what late producers have sent to the old topics since.

While it works it is the only member of the old roles' groups, and of the new ones' until they have begun: who starts a
role too early sees it wait. What is handed over is produced in one transaction with the old role's offsets: nothing is
lost or read twice. A copy is repeated until a look at what was written meanwhile finds nothing missing, so producers
may write all the time. In memory are keys and offsets, never all values.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack

import msgspec
from confluent_kafka import ConsumerGroupState, KafkaException, Producer

from recsys.errors import Misuse, Unavailable
from streams import clients, topics
from streams.carrying import Carrier, Ends, Hold, Values
from streams.lag import committed_offsets
from streams.policies import KEY as POLICY
from streams.records import Record
from streams.settings import Settings
from streams.state import begin_offsets, end_offsets, read_to

INPUTS = {"signals": "pairs", "ranker": "events"}  # role -> its input
STATE = ("profiles", "signals", "slates", "control")  # what these two write or obey: copied until the new have begun
SHARED = ("items", "models")  # what others write, to both generations while they switch
NOT_PUSHED = ("push-eligible", b"false")  # the slate went out long ago: push services leave its copy alone
MARK = b"grown-from"  # key on `control`
SILENCE_S = clients.SESSION_TIMEOUT_S + 2.0  # a role that has just stopped, or a killed run, is a member for so long

Progress = Callable[[str, int, int], None]  # topic, records done, of how many


class Stand(msgspec.Struct, frozen=True):
    """Where growing stands: from `look`, what would be done next; from `run`, what was done."""

    create: list[topics.Change]
    copy: dict[str, int]  # topic -> records
    hand_over: dict[str, int]  # topic -> records; from `look` at most so many: transactions' markers are counted, too
    running: list[str]  # old roles that have not stopped
    complete: bool  # the new topics have the state: their roles may start


class Mark(msgspec.Struct, frozen=True):
    """A record on `control`: the new topics have the state. ends: how far each old topic is accounted for.

    What lies before them is not looked at again, else an item that the shop has removed since would come back.
    """

    source: str
    ends: dict[str, Ends]


def next_generation(settings: Settings, prefix: str, partitions: int) -> Settings:
    """The settings of the new topics. Raises Misuse."""
    if prefix == settings.prefix:
        raise Misuse(f"{prefix} is the prefix in use: name another for the new topics, such as --to shop2.")
    try:
        return msgspec.convert({**msgspec.to_builtins(settings), "prefix": prefix, "partitions": partitions}, Settings)
    except msgspec.ValidationError as error:
        raise Misuse(f"new topics: {error}") from None


def look(old: Settings, new: Settings) -> Stand:
    """What `run` would do, and nothing written. Reads all that would be copied."""
    return _Growth(old, new).asked(lambda growth: growth.look())


def run(old: Settings, new: Settings, progress: Progress = lambda what, done, of: None) -> Stand:
    """Do what is due: create the topics, or copy and hand over. Raises Misuse where the old roles still run, or the new
    ones have begun without the state; Unavailable where the broker fails: what was done stays, and a later run goes on.

    30 µs of CPU a record, half a KiB of memory a key (300,000 profiles of 1 KB).
    """
    return _Growth(old, new).asked(lambda growth: growth.run(progress))


def next_step(old: Settings, new: Settings, stand: Stand, executed: bool) -> str:
    """What an operator does now."""
    again = "then run this again"
    if not executed:
        if stand.running and not stand.create:
            return f"Nothing was changed. Stop {' and '.join(stand.running)} of {old.prefix}; then --execute does it."
        return "Nothing was changed; --execute does it."
    if not stand.complete:
        return (
            f"Next: let producers write to {new.prefix}events and {new.prefix}items; events wait there. "
            f"Stop ranker and signals of {old.prefix}, {again}."
        )
    return (
        f"Next: start the roles with prefix {new.prefix} and {new.partitions} partitions in their settings. "
        f"Run this again, until producers send nothing to {old.prefix} any more."
    )


class _Growth:
    """One look or run."""

    def __init__(self, old: Settings, new: Settings) -> None:
        self._old, self._new = old, new
        self._admin = clients.check_broker(old)
        present = self._admin.list_topics(timeout=10).topics
        for topic in topics.plan(old):
            if topic.name not in present:
                raise Misuse(f"there is no topic {topic.name}: is {old.prefix} the prefix in use?")
        self._reader = clients.reader(old)

    def asked(self, act: "Callable[[_Growth], Stand]") -> Stand:
        try:
            return act(self)
        except KafkaException as error:  # what is open ends with this process, or with the next run
            raise Unavailable(f"not finished: {error.args[0].str()}; run it again, what is done stays done") from None
        finally:
            self._reader.close()

    def look(self) -> Stand:
        create = self._differences()
        mark = self._mark()
        if not _creates(create) and mark is None:
            self._check_not_early()
        begun = mark is not None and (self._committed() or bool(self._running(self._new)))
        copied = SHARED if begun else (*STATE, *SHARED)
        missing = {topic: self._find_missing(self._values(topic, mark)) for topic in copied}
        unread = {topic: self._unread(role, topic)[0] for role, topic in INPUTS.items()}
        return Stand(create, missing, unread, self._running(self._old), complete=mark is not None)

    def run(self, progress: Progress) -> Stand:
        self._differences()
        create = topics.apply(self._admin, self._new)
        if _creates(create):
            return Stand(create, {}, {}, self._running(self._old), complete=False)
        self._wait_until_stopped(self._old)
        with ExitStack() as held:
            members = {topic: held.enter_context(self._hold(self._old, role)) for role, topic in INPUTS.items()}
            mark = self._mark()
            if mark is None:
                self._check_not_early()
                self._wait_until_stopped(self._new)
            begun = self._committed() or bool(self._running(self._new))
            if not begun:  # nor may the new roles begin before the state is complete
                for role in INPUTS:
                    held.enter_context(self._hold(self._new, role))
            producer = clients.producer(self._new, transactional_id=f"{self._new.prefix}grow")
            producer.init_transactions(30)  # fences a twin, and undoes what a killed one has left open
            copied, ends = {}, dict(mark.ends) if mark else {}
            for topic in SHARED if begun else (*STATE, *SHARED):
                copied[topic], ends[topic] = self._copy(producer, topic, mark, progress)
            if mark is None or ends != mark.ends:
                self._set_mark(producer, Mark(self._old.prefix, ends))
            handed = {
                topic: self._hand_over(producer, role, topic, members[topic], progress)
                for role, topic in INPUTS.items()
            }
        return Stand(create, copied, handed, [], complete=True)

    def _differences(self) -> list[topics.Change]:
        """What the new topics lack. Raises Misuse if they have another number of partitions."""
        changes = topics.diff(self._admin, topics.plan(self._new))
        for change in changes:
            if change.action == "refuse":
                raise Misuse(f"{change.topic} {change.detail}: give --partitions as it has, or another --to")
        return changes

    def _wait_until_stopped(self, settings: Settings) -> None:
        deadline_s = time.monotonic() + SILENCE_S
        while running := self._running(settings):
            if time.monotonic() > deadline_s:
                names = " and ".join(running)
                raise Misuse(f"{names} of {settings.prefix} still run: stop them, then run this again; events wait")
            time.sleep(0.1)

    def _check_not_early(self) -> None:
        if self._committed():
            raise Misuse(
                f"the roles of {self._new.prefix} have begun without the state of {self._old.prefix}: copying now would "
                "undo what they learned. Stop them; docs/operations.md says how to begin again without a loss"
            )

    # --- copying: the newest value of every key ----------------------------------------------------------------------

    def _copy(self, producer: Producer, topic: str, mark: Mark | None, progress: Progress) -> tuple[int, Ends]:
        """Until nothing is missing; how many records were, and how far the old topic was read."""
        values = self._values(topic, mark)
        carrier = Carrier(producer, values.new, (NOT_PUSHED,) if topic == "slates" else ())
        while self._find_missing(values):
            of = carrier.count + len(values.missing)

            def take(record: Record, of: int = of) -> None:
                if values.is_missing(record):
                    carrier.add(record)
                    progress(topic, carrier.count, of)

            for name in (values.old, values.new):
                begins, ends = values.range_of(name)
                self._read(name, ends, take, begins)
            carrier.commit()
            values.missing.clear()
        return carrier.count, values.read[values.old]

    def _values(self, topic: str, mark: Mark | None) -> Values:
        known = mark.ends.get(topic, {}) if mark else {}
        only = POLICY if topic == "control" else None  # the mark there is each generation's own
        return Values(self._old.prefix + topic, self._new.prefix + topic, known, only)

    def _find_missing(self, values: Values) -> int:
        """Read what was written since the last call; how many records are missing."""
        for name, note in ((values.new, values.note_new), (values.old, values.note_old)):
            ends = self._ends(name)
            self._read(name, ends, note, values.read[name])
            values.read[name] = ends
        return len(values.missing)

    # --- handing over: what the old roles have not read --------------------------------------------------------------

    def _hand_over(self, producer: Producer, role: str, topic: str, member: object, progress: Progress) -> int:
        count, at, ends = self._unread(role, topic)
        carrier = Carrier(producer, self._new.prefix + topic, (), member)

        def take(record: Record) -> None:
            carrier.add(record)
            progress(topic, carrier.count, count)

        self._read(self._old.prefix + topic, ends, take, at)
        carrier.commit()
        return carrier.count

    def _unread(self, role: str, topic: str) -> tuple[int, Ends, Ends]:
        """How many offsets a role of the old generation has not read; where it goes on, and where its input ends."""
        name = self._old.prefix + topic
        ends = self._ends(name)
        oldest = begin_offsets(self._admin, name, list(ends))
        at = committed_offsets(self._old, role, topic, list(ends))
        at = {p: max(at[p], oldest[p]) for p in ends}
        return sum(ends[p] - at[p] for p in ends), at, ends

    # --- what the broker knows -----------------------------------------------------------------------------------------

    def _read(self, name: str, ends: Ends, take: Callable[[Record], None], begins: Ends) -> None:
        """Committed records up to `ends`; no call to the broker where there are none."""
        if some := {p: end for p, end in ends.items() if end > begins.get(p, 0)}:
            read_to(self._reader, name, some, take, begins)
            self._reader.unassign()  # a fetch under way keeps every other question waiting for 50 ms

    def _ends(self, name: str) -> Ends:
        """Where the partitions of a topic end; nowhere, if it is yet to be created."""
        if name not in self._admin.list_topics(timeout=10).topics:
            return {}
        return end_offsets(self._admin, name, clients.partitions_of(self._admin, name))

    def _running(self, settings: Settings) -> list[str]:
        """Roles whose groups have members. Listed, not described: that needs a settled coordinator (see lag.py)."""
        listed = self._admin.list_consumer_groups(request_timeout=10).result()
        if listed.errors:
            raise listed.errors[0]
        idle = (ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD)
        alive = {group.group_id for group in listed.valid if group.state not in idle}
        return [role for role in INPUTS if settings.prefix + role in alive]

    def _hold(self, settings: Settings, role: str) -> Hold:
        return Hold(settings, role, INPUTS[role], self._ends(settings.prefix + INPUTS[role]))

    def _committed(self) -> bool:
        """Whether the new roles have ever worked."""
        inputs = ((role, topic, list(self._ends(self._new.prefix + topic))) for role, topic in INPUTS.items())
        return any(any(committed_offsets(self._new, *each).values()) for each in inputs)

    def _mark(self) -> Mark | None:
        found: list[bytes] = []

        def take(record: Record) -> None:
            if record.key == MARK and record.value:
                found.append(record.value)

        name = self._new.prefix + "control"
        self._read(name, self._ends(name), take, {})
        if not found:
            return None
        mark = msgspec.json.decode(found[-1], type=Mark)
        if mark.source != self._old.prefix:
            raise Misuse(f"{self._new.prefix} was grown from {mark.source}, not from {self._old.prefix}")
        return mark

    def _set_mark(self, producer: Producer, mark: Mark) -> None:
        producer.begin_transaction()
        producer.produce(self._new.prefix + "control", msgspec.json.encode(mark), MARK)
        producer.commit_transaction(-1)


def _creates(changes: list[topics.Change]) -> bool:
    return any(change.action == "create" for change in changes)
