"""The words of texts, against the words of other texts: cosines of TF-IDF vectors, live.

What a language model's vector smooths over, a word says exactly: a model number, a brand, the one thing asked for. On
Online Retail the words of titles alone are worth as much for new items as MiniLM whitened (docs/experiments.md). No
language is assumed: scripts written without spaces are read by pairs of signs. Terms are numbers by a stable hash, so
memory is bounded whatever comes. What text stands for an item is for the caller to say: a catalogue takes titles, for
sources and features.
"""

import re
import unicodedata
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

TERMS = 2**20  # 4 MB a table; of a shop's 50,000 words 5 % share a number with another
WIDTH = 64  # different terms of a text at most: a title has 5 to 15, a description is cut
# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han, and Hangul, whose words carry particles.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_RUNS = re.compile(f"[{_UNSPACED}]+|[^ {_UNSPACED}]+")
_VARIANT = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # marks that choose how the sign before them is drawn
_unspaced = re.compile(f"[{_UNSPACED}]").match


class Terms(msgspec.Struct, frozen=True):
    """A sparse vector of unit length, or of nothing. terms: (q,) int64, distinct; weights: (q,) float32."""

    terms: NDArray[np.int64]
    weights: NDArray[np.float32]


def split_words(text: str) -> list[str]:
    """The words of a text, in order: normalised (NFKC), case folded; pairs of signs where words are not spaced.

    >>> split_words("Crème BRÛLÉE, 330ml")
    ['crème', 'brûlée', '330ml']
    >>> split_words("红色马克杯 Ｍug")
    ['红色', '色马', '马克', '克杯', 'mug']
    """
    folded = _VARIANT.sub("", unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))
    # Marks belong to words: Hindi's vowels are marks. Punctuation and symbols do not. What joins and hides (soft hyphens,
    # Persian's joiners) parts no word: profiles leave it out of searches.
    spaced = "".join(
        sign if (kind := unicodedata.category(sign))[0] in "LMN" else "" if kind == "Cf" else " " for sign in folded
    )
    words: list[str] = []
    for run in _RUNS.findall(spaced):
        if len(run) > 1 and _unspaced(run):
            words += [run[at : at + 2] for at in range(len(run) - 1)]
        else:
            words.append(run)
    return words


def count_terms(text: str) -> Counter[int]:
    """Term -> how often, of the first WIDTH different terms of a text; crc32 is the same on every machine.

    >>> sorted(count_terms("red red mug").values())
    [1, 2]
    """
    counts: Counter[int] = Counter()
    for word in split_words(text):
        term = zlib.crc32(word.encode()) % TERMS
        if term in counts or len(counts) < WIDTH:
            counts[term] += 1
    return counts


class Lexicon:
    """The words of rows, as rows of a catalogue; a row without a text is silent.

    A word's weight is its count times ln((1 + texts) / (1 + texts that have it)) + 1, as of now: what comes and goes
    changes the weights of all. 9 bytes a word of each row, and 8 MB. For one thread: a question borrows a table.

    >>> lexicon = Lexicon(["red mug", "blue mug", "garden chair"])
    >>> lexicon.search(lexicon.query("a MUG, red"), 2)[0].tolist()
    [0, 1]
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._terms = np.zeros((0, 8), np.int32)
        self._counts = np.zeros((0, 8), np.uint8)  # 0: no term here
        self._rows: dict[int, array[int]] = {}  # term -> rows that have it
        self._log_seen = np.zeros(TERMS, np.float32)  # ln(1 + texts that have the term)
        self._asked = np.zeros(TERMS, np.float32)  # a question's weights, while it is asked
        self._texts = 0  # rows with a word
        for row, text in enumerate(texts):
            self.put(row, text)

    def put(self, row: int, text: str) -> None:
        """Give a row its text, or another one; "" takes it away. 25 µs a title, rows in any order."""
        fresh = count_terms(text)
        self._fit(row + 1, len(fresh))
        had = set(self._terms[row, self._counts[row] > 0].tolist())
        for term in had - fresh.keys():
            self._rows[term].remove(row)
        for term in fresh.keys() - had:
            self._rows.setdefault(term, array("i")).append(row)
        for term in had ^ fresh.keys():
            self._log_seen[term] = np.log1p(len(self._rows[term]))
        self._texts += bool(fresh) - bool(had)
        self._terms[row], self._counts[row] = 0, 0
        self._terms[row, : len(fresh)] = list(fresh)
        self._counts[row, : len(fresh)] = np.minimum(list(fresh.values()), 255)

    def query(self, text: str) -> Terms:
        """What is asked for, as `cosines` and `search` take it."""
        counts = count_terms(text)
        terms = np.array(list(counts), np.int64)
        return _unit(terms, np.array(list(counts.values()), np.float32) * self._rarity(terms))

    def taste(self, rows: NDArray[np.int64], weights: NDArray[np.float64]) -> Terms:
        """The weighted mean of rows' unit vectors, to unit length: what a user's items have in common.

        weights: (n,), of each row. 30 µs for 20 rows.
        """
        terms, vectors = self._vectors(rows)
        distinct, place = np.unique(terms, return_inverse=True)
        mean = np.bincount(place.ravel(), (vectors * weights[:, None]).ravel())
        return _unit(distinct.astype(np.int64), mean.astype(np.float32))

    def cosines(self, asked: Terms, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The cosine of each row: (n,) float32 in [0, 1], 0 where they share no word. O(n): 30 µs for 200 rows."""
        terms, vectors = self._vectors(rows)
        self._asked[asked.terms] = asked.weights
        found = (self._asked[terms] * vectors).sum(axis=1)
        self._asked[asked.terms] = 0
        return np.asarray(found, np.float32)

    def search(
        self, asked: Terms, limit: int, among: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The `limit` rows of highest cosine above zero, best first, ties by row; and the cosines.

        among: (N,) which rows may answer. Only rows that share a word are looked at: O(those).
        """
        having = [np.array(self._rows[term]) for term in asked.terms.tolist() if term in self._rows]
        rows = np.unique(np.concatenate(having)).astype(np.int64) if having else np.empty(0, np.int64)
        if among is not None:
            rows = rows[among[rows]]
        cosines = self.cosines(asked, rows).astype(np.float64)
        order = np.lexsort((rows, -cosines))[:limit]
        return rows[order], cosines[order]

    def _rarity(self, terms: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(np.float32(np.log1p(self._texts) + 1) - self._log_seen[terms], np.float32)

    def _vectors(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Terms and unit weights of rows: (n, w) each, weight 0 where there is no term."""
        terms = self._terms[rows]
        weights = self._counts[rows] * self._rarity(terms)
        norms = np.sqrt(np.einsum("nw,nw->n", weights, weights))
        return terms, weights / np.maximum(norms, 1e-12)[:, None]

    def _fit(self, rows: int, terms: int) -> None:
        """Room for so many rows of so many terms, keeping what there is; both grow by doubling."""
        have, width = self._terms.shape
        if rows <= have and terms <= width:
            return
        shape = (max(have, 1 << (rows - 1).bit_length()), max(width, 1 << max(terms - 1, 0).bit_length()))
        for name in ("_terms", "_counts"):
            old = getattr(self, name)
            fresh = np.zeros(shape, old.dtype)
            fresh[:have, :width] = old
            setattr(self, name, fresh)


def _unit(terms: NDArray[np.int64], weights: NDArray[np.float32]) -> Terms:
    return Terms(terms, np.asarray(weights / max(float(np.linalg.norm(weights)), 1e-12), np.float32))
