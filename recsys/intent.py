"""What the user is after right now: the pull of the last half hour's touches and search on each candidate.

A model trained on what was bought next week cannot know it; this is what makes the next list differ after one click.
Called by the pipeline, which adds it to the score with the policy's weight; nothing happens without a live session.
"""

import numpy as np
from numpy.typing import NDArray

from recsys.context import Context
from recsys.signals import neighbour_scores

SESSION_S = 1800.0  # the usual length of a visit: half an hour without an event ends it


def session_pull(context: Context, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """How strongly this visit points to each candidate: (C,) in [0, 1]; None when there is no visit to speak of.

    The larger of three: co-visitation with what was touched (relative to its strongest neighbour), text cosine to what
    was touched, text cosine to the query. What was touched itself is not pulled: it was seen already.
    """
    live = context.touched.rows[context.touched.age_s < SESSION_S]
    query = context.request.query_vector
    if not len(live) and query is None:
        return None
    vectors = context.shop.catalogue.vectors
    pull = np.zeros(len(rows))
    if len(live):
        touched = np.unique(live)
        near, scores = neighbour_scores(context.shop.signals, touched, np.ones(len(touched)))
        if len(near):
            at = np.minimum(np.searchsorted(near, rows), len(near) - 1)
            pull = np.where(near[at] == rows, scores[at] / scores.max(), 0.0)
        pull = np.maximum(pull, (vectors[rows] @ vectors[touched].T).max(axis=1))
        pull[np.isin(rows, touched)] = 0.0
    if query is not None:
        pull = np.maximum(pull, vectors[rows] @ query)
    return np.clip(pull, 0.0, 1.0)
