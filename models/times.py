"""A time in a shop's file as milliseconds since 1970: a number whose unit is known, or text. Nothing is guessed.

Called by `models/files.py` for every row, and by `models/presets.py` for files that write dates in a way of their own.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from recsys.errors import BadEvent
from recsys.events import TS_MAX_MS, TS_MIN_MS

_UNITS_PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_HUGE = 1e30  # beyond any time in any unit; also what NaN and infinity are not below


def to_ms(value: Any, unit: str, field: str = "ts") -> int:
    """A time as milliseconds since 1970: a number in `unit` (s, ms, us, ns), or ISO 8601 text (UTC without a zone).

    Raises BadEvent, which names the unit that would fit, and under which `field` it is mapped then. Nothing is converted
    by guess.

    >>> to_ms(1291191960, "s"), to_ms("2010-12-01T09:26:00+01:00", "ms")
    (1291191960000, 1291191960000)
    >>> to_ms(1291191960, "ms")
    Traceback (most recent call last):
    recsys.errors.BadEvent: time: 1291191960 is not in ms since 1970 within 2000..2100; it looks like s: map it as ts_s
    """
    if isinstance(value, str):
        try:
            value = float(value) if "." in value else int(value)
        except ValueError:
            return _iso_ms(value)
    if type(value) is not int and not (isinstance(value, float) and abs(value) < _HUGE):
        raise BadEvent("schema", f"time: {value!r} is neither a number nor an ISO 8601 time")
    ms = _scale(value, unit)
    if TS_MIN_MS <= ms <= TS_MAX_MS:
        return ms
    fit = next((other for other in _UNITS_PER_S if TS_MIN_MS <= _scale(value, other) <= TS_MAX_MS), "")
    hint = f"; it looks like {fit}: map it as {field}_{fit}" if fit else ""
    raise BadEvent("range", f"time: {value} is not in {unit} since 1970 within 2000..2100{hint}")


def _scale(value: float, unit: str) -> int:
    per_s = _UNITS_PER_S[unit]
    return value * 1000 // per_s if isinstance(value, int) else round(value * 1000 / per_s)


@lru_cache(maxsize=4096)  # all lines of an invoice share their time
def _iso_ms(text: str) -> int:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise BadEvent("schema", f"time: {text[:40]!r} is neither a number nor an ISO 8601 time") from None
    if not TS_MIN_MS <= (ms := datetime_ms(when)) <= TS_MAX_MS:
        raise BadEvent("range", f"time: {text} is not within 2000..2100")
    return ms


def datetime_ms(when: datetime) -> int:
    """A date and time, UTC where it names no zone."""
    return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
