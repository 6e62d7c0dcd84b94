"""Words that a shop uses alike, from its own texts and baskets: what may stand for each other when texts are varied.

Two words are alike if they have the same neighbours in texts, and if texts with them are bought with the same words
(distributional similarity: positive pointwise mutual information, cosine). Words of one text are never taken for each
other. What is found is often a fellow rather than a synonym, another colour or size: hence a small share of words.
No dictionary, no network. Called by text_views.py.
"""

import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import sparse

Synonyms = dict[str, list[str]]

TEXTS = 3  # that have a word, at least: of rarer ones the neighbours say little
WORDS = 20_000  # the most frequent; similarities are computed for so many
NEAREST = 5
LEAST = 0.3  # cosine
BLOCK = 512  # words whose similarities are dense at once


def find_synonyms(texts: Sequence[str], together: sparse.csr_matrix | None) -> Synonyms:
    """Each word, case folded, with at most NEAREST like ones, the nearest first. Deterministic.

    together: (texts, texts) bool, bought together, as in `Bought`; None: neighbours alone. O(words² in the worst case).
    """
    read = [[word for word in (bare(part).casefold() for part in text.split()) if word] for text in texts]
    counts = Counter(word for words in read for word in dict.fromkeys(words))  # no set: its order is not its words'
    known = [word for word, count in counts.most_common(WORDS) if count >= TEXTS and not word.isnumeric()]
    number = {word: at for at, word in enumerate(known)}
    rows = [[number.get(word, -1) for word in words] for words in read]
    if not known:
        return {}
    within = _counts(
        [(at, word) for at, row in enumerate(rows) for word in set(row) if word >= 0], len(rows), len(known)
    )
    left = [(one, other) for row in rows for other, one in zip(row, row[1:], strict=False) if min(one, other) >= 0]
    sides = _counts(left, len(known), len(known))
    parts = [_unit(_ppmi(sparse.hstack([sides, sides.T]).tocsr()))]
    if together is not None:
        others = together.astype(np.float32).tolil()
        others.setdiag(0)
        parts.append(_unit(_ppmi((within.T @ others.tocsr() @ within).tocsr())))
    vectors = _unit(sparse.hstack(parts).tocsr())
    beside = (within.T @ within).tocsr()  # words of one text, each with itself
    found: Synonyms = {}
    for begin in range(0, len(known), BLOCK):
        cosines = (vectors[begin : begin + BLOCK] @ vectors.T).toarray()
        cosines[beside[begin : begin + BLOCK].toarray() > 0] = 0
        for at, cosine in enumerate(cosines, begin):
            nearest = np.argsort(-cosine, kind="stable")[:NEAREST]
            if like := [known[other] for other in nearest.tolist() if cosine[other] >= LEAST]:
                found[known[at]] = like
    return found


def bare(word: str) -> str:
    """A word without the signs around it."""
    return word.strip(string.punctuation)


def _counts(pairs: list[tuple[int, int]], rows: int, columns: int) -> sparse.csr_matrix:
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return sparse.csr_matrix((np.ones(len(table), np.float32), (table[:, 0], table[:, 1])), (rows, columns))


def _ppmi(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """log(p(w, c) / p(w) p(c)) where it is above nothing."""
    found = counts.tocoo()
    of_row, of_column = (np.asarray(counts.sum(axis=axis)).ravel() for axis in (1, 0))
    ratio = found.data * max(1.0, counts.sum()) / (of_row[found.row] * of_column[found.col])
    return sparse.csr_matrix((np.maximum(np.log(ratio), 0), (found.row, found.col)), counts.shape)


def _unit(table: sparse.csr_matrix) -> sparse.csr_matrix:
    length = np.sqrt(np.asarray(table.multiply(table).sum(axis=1)).ravel())
    return sparse.diags(1 / np.maximum(length, 1e-9)) @ table
