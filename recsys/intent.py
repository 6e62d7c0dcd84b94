"""What the user is after right now: the pull of the last half hour's touches and search on each candidate.

A model trained on what was bought next week cannot know it; this is what makes the next list differ after one click.
Called by the pipeline, which adds it to the score with the policy's weight; nothing happens without a live session.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.context import Context

TOUCHES = 5  # the newest: a sixth would count .17 of the first
FADE = 0.7  # each touch counts so much of the one after it: the newest click says best what is wanted now
SESSION_S = 1800.0  # the usual length of a visit: half an hour without an event ends it


class Visit(msgspec.Struct, frozen=True):
    """Where a visit points. pull: (C,) in [0, 1]; because: (C,) the touched row each is closest to, -1 for the query."""

    pull: NDArray[np.float64]
    because: NDArray[np.int64]


def follow_visit(context: Context, rows: NDArray[np.int64]) -> Visit | None:
    """How strongly this visit points to each candidate (rows ascending), and why; None without a visit to speak of.

    The larger of two: the closest tie to an item touched (see `ties`), the text cosine to the query. What was touched
    itself is not pulled: it was seen already.
    """
    touched, query = live_touches(context), context.request.query_vector
    if not len(touched) and query is None:
        return None
    pull, because = np.zeros(len(rows)), np.full(len(rows), -1)
    if len(touched) and len(rows):
        closeness = ties(context, touched, rows)
        pull, because = closeness.max(axis=0), touched[closeness.argmax(axis=0)]
        pull[np.isin(rows, touched)] = 0.0
    if query is not None:
        answers = context.shop.catalogue.vectors[rows] @ query
        because = np.where(answers > pull, -1, because)
        pull = np.maximum(pull, answers)
    return Visit(np.clip(pull, 0.0, 1.0), because)


def live_touches(context: Context) -> NDArray[np.int64]:
    """The newest distinct rows touched within this visit, newest first, but for those bought since: that intent is over."""
    touched, bought = context.touched, context.bought
    newest = dict(zip(bought.rows[::-1].tolist(), bought.age_s[::-1].tolist(), strict=True))
    live = [
        row
        for row, age_s in zip(touched.rows.tolist(), touched.age_s.tolist(), strict=True)
        if age_s < SESSION_S and newest.get(row, np.inf) > age_s
    ]
    return np.array(list(dict.fromkeys(live))[:TOUCHES], np.int64)


def ties(context: Context, touched: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """How closely candidates belong to items: (T, C) in [-1, 1].

    The larger of co-visitation, relative to the touched item's strongest neighbour, and text cosine; faded by age, so
    `touched` comes newest first. rows: ascending.
    """
    vectors, signals = context.shop.catalogue.vectors, context.shop.signals
    closeness = vectors[touched] @ vectors[rows].T
    for at, row in enumerate(touched.tolist()):
        known = signals.neighbours[row] >= 0
        near = signals.neighbours[row][known].astype(np.int64)
        if len(near) and len(rows):
            scores = signals.weights[row][known] / np.sqrt(1.0 + signals.buyers[near])
            place = np.minimum(np.searchsorted(rows, near), len(rows) - 1)
            hit = rows[place] == near
            closeness[at, place[hit]] = np.maximum(closeness[at, place[hit]], (scores / scores.max())[hit])
    faded: NDArray[np.float64] = closeness * (FADE ** np.arange(len(touched)))[:, None]
    return faded
