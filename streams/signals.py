"""The signals aggregator: increments of items in, items' states out. A task of the transactional worker.

Its input is `pairs`, repartitioned by item; its changelog is `signals` itself, which every ranker reads whole.
"""

from collections.abc import Sequence

import msgspec

from recsys.errors import UNREADABLE, BadEvent
from recsys.signals import DAY_S, Increment, Signal, absorb, merge
from streams.records import Output, Record
from streams.rejects import put_aside
from streams.settings import Settings
from streams.state import State

encode_increment = msgspec.msgpack.Encoder().encode
_decode_increment = msgspec.msgpack.Decoder(Increment).decode
_encode_signal = msgspec.msgpack.Encoder().encode
decode_signal = msgspec.msgpack.Decoder(Signal).decode


class SignalsTask:
    """Folds increments into item states."""

    topic = "pairs"
    changelog = "signals"
    # No list waits for it to the millisecond; a large batch merges more increments of one item.
    batch_limit = live_limit = 2000

    def __init__(self, settings: Settings) -> None:
        self._rejects = settings.prefix + "rejects"

    def refresh(self) -> None:
        """Nothing to read."""

    def process(self, records: Sequence[Record], state: State) -> list[Output]:
        """One state per touched item, whatever the number of its increments in the batch."""
        outputs: list[Output] = []
        pending: dict[tuple[int, str, int], Increment] = {}  # of an item's day
        for record in records:
            try:
                inc = _decode_increment(record.value or b"")
                key = (record.partition, (record.key or b"").decode(), inc.ts_s // DAY_S)
            except UNREADABLE as error:
                bad = BadEvent("decode", f"not an increment of an item: {error}; only rankers write this topic")
                outputs.append(put_aside(record, bad, "signals", self._rejects))
                continue
            pending[key] = merge(pending[key], inc) if key in pending else inc
        signals: dict[tuple[int, str], Signal] = {}
        for (partition, item, _), inc in sorted(pending.items(), key=lambda found: found[0][2]):
            if (partition, item) not in signals:
                known = state.get(partition, item)
                signals[partition, item] = decode_signal(known) if known else Signal()
            signals[partition, item] = absorb(signals[partition, item], inc)
        for (partition, item), signal in signals.items():
            state.put(partition, item, _encode_signal(signal))
        return outputs

    def committed(self) -> None:
        """Nothing to count."""
