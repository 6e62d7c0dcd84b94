"""What a search could mean: the categories and brands of what answers it, as topics that its list should cover.

"Cup" may be for coffee or for sport; a list that answers with one kind only is right or useless. This is xQuAD (Santos
2010) with facets for the meanings, wished for by the root of what speaks for them: a meaning with four times the answers
is not four times as likely meant. Nothing without a search. Called by
`recsys/variety.py`; `recsys/intent.py` is what makes a list answer the search at all.
"""

import numpy as np
from numpy.typing import NDArray

from recsys.context import Context
from recsys.diversify import Topics

LEAST = 0.1  # cosine to the search from which a candidate is an answer; below, vectors are alike by chance
NEAR = 0.3  # of the best answer's cosine: likewise
SATISFIES = 0.5  # the chance that the best answer of the facet that was meant is what was meant


def search_facets(context: Context, rows: NDArray[np.int64]) -> Topics | None:
    """Facets of the candidates `rows` (C,) that answer this moment's search; None without a search or an answer.

    Each candidate has its finest category and its brand, and satisfies them as well as it answers, beside the best.
    """
    catalogue, request = context.shop.catalogue, context.request
    if not request.query or not len(rows):
        return None
    answers = catalogue.words.cosines(catalogue.words.query(request.query), rows).astype(np.float64)
    if request.query_vector is not None:
        answers = np.maximum(answers, catalogue.vectors[rows] @ request.query_vector)
    best = float(answers.max())
    answers = np.where(answers < max(LEAST, NEAR * best), 0.0, answers / max(best, LEAST))
    path = catalogue.category[rows]
    depth = (path >= 0).sum(axis=1)
    finest = np.where(depth > 0, path[np.arange(len(rows)), depth - 1], -1)
    facets = np.stack([finest, catalogue.brand[rows]], axis=1)  # codes of all kinds are of one numbering
    facets[answers == 0] = -1
    known = facets >= 0
    if not known.any():
        return None
    found, place = np.unique(facets[known], return_inverse=True)
    codes = np.full(facets.shape, -1, np.int32)
    codes[known] = place
    shares = np.repeat(answers[:, None], 2, axis=1)
    want = np.sqrt(np.bincount(place, shares[known], len(found)))
    return Topics(codes, SATISFIES * shares, want / want.sum())
