"""When an event is worth a new slate. Called by the ranker for each event that changed a profile."""

from recsys.events import Event, Impression
from recsys.policy import Policy


def should_recommend(event: Event, policy: Policy, *, backfill: bool, arrived_ms: int) -> bool:
    """Whether this event makes a slate.

    Not history being loaded, not an impression (being shown a list is no reason for another), not later than the
    policy allows; the caller asks only about events that changed a profile, so not about duplicates. arrived_ms is the
    broker's time of the record, so a replay decides alike.

    >>> from recsys.events import Click
    >>> e = Click(user="u", item="i", ts_ms=1_700_000_000_000)
    >>> should_recommend(e, Policy(), backfill=False, arrived_ms=e.ts_ms + 50)
    True
    >>> should_recommend(e, Policy(late_h=1), backfill=False, arrived_ms=e.ts_ms + 7_200_000)
    False
    """
    if backfill or isinstance(event, Impression):
        return False
    return arrived_ms - event.ts_ms <= policy.late_h * 3_600_000
