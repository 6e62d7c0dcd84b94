"""What was bought together, as pairs of texts to draw and as pairs that must not be told apart.

Items with the same text are one: a text tower cannot know them from each other. Bought together is in one basket, or by
one user within the same days. No clock, no torch. Called by text_tuning.py.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from models.history import History
from recsys.catalogue import item_text
from recsys.errors import Misuse
from recsys.signals import DAY_S

TRIES = 4  # at a partner with another text, all at once; whom none found is searched for, one by one
Rows = NDArray[np.int64]


class Bought(msgspec.Struct, frozen=True):
    """Purchases as groups of texts. texts: the distinct ones.

    text: (P,) the text of each purchase, group by group; start, end: (P,) its group's span. anchors: purchases whose group
    has another text, in the order of time. together: (T, T) bool, in one group at least once. log_q: (T,), the log of the
    share of drawn positives that a text is; of one never drawn that of the rarest.
    """

    texts: list[str]
    text: Rows
    start: Rows
    end: Rows
    anchors: Rows
    together: sparse.csr_matrix
    log_q: NDArray[np.float32]

    def draw(self, anchors: Rows, rng: np.random.Generator) -> tuple[Rows, Rows]:
        """Texts of some purchases and of one of another text bought with each: (N,) twice."""
        partner = anchors.copy()
        for _ in range(TRIES):
            again = np.flatnonzero(self.text[partner] == self.text[anchors])
            partner[again] = rng.integers(self.start[anchors[again]], self.end[anchors[again]])
        for at in np.flatnonzero(self.text[partner] == self.text[anchors]).tolist():
            group = np.arange(self.start[anchors[at]], self.end[anchors[at]])
            partner[at] = rng.choice(group[self.text[group] != self.text[anchors[at]]])
        return self.text[anchors], self.text[partner]

    def same(self, anchors: Rows, positives: Rows) -> NDArray[np.bool_]:
        """Which positives are no negatives of which anchors: (N, N) bool. The same text or one bought with it."""
        bought: NDArray[np.bool_] = self.together[anchors][:, positives].toarray()
        same: NDArray[np.bool_] = (
            bought | (anchors[:, None] == positives[None]) | (positives[:, None] == positives[None])
        )
        return same


def sold_texts(history: History) -> tuple[list[str], Rows]:
    """The distinct texts that were sold, in the order of their first sale; and the text of each item, -1 for none."""
    past = history.purchases()
    items, at = np.unique(past.item, return_index=True)
    number: dict[str, int] = {}
    text_of = np.full(len(history.items), -1)
    for row in items[np.argsort(at, kind="stable")].tolist():
        if text := item_text(history.items[row]).strip():
            text_of[row] = number.setdefault(text, len(number))
    if len(number) < 2:
        raise Misuse(
            f"{len(number)} texts were sold, and to tell texts apart takes two: load more items or lower --min-buyers"
        )
    return list(number), text_of


def gather(history: History, window_days: float) -> Bought:
    """What was bought together. Raises Misuse where nothing was. O(sum over groups of size²)."""
    texts, text_of = sold_texts(history)
    past = history.purchases()
    past = past.take(text_of[past.item] >= 0)
    group = past.session.astype(np.int64)
    if window_days:
        block = past.ts_s // max(1, round(window_days * DAY_S))
        group = np.unique(np.stack([past.user.astype(np.int64), block]), axis=1, return_inverse=True)[1].ravel()
    order = np.argsort(group, kind="stable")
    group, text, ts_s = group[order], text_of[past.item[order]], past.ts_s[order]
    start, end = np.searchsorted(group, group, "left"), np.searchsorted(group, group, "right")
    begins = np.flatnonzero(np.diff(group, prepend=-1))
    mixed = np.minimum.reduceat(text, begins) < np.maximum.reduceat(text, begins)  # a group of one text has no pair
    anchors = np.flatnonzero(np.repeat(mixed, np.diff(begins, append=len(text))))
    if not len(anchors):
        raise Misuse('no two texts were bought together; set window_days, or take loss = "views"')
    anchors = anchors[np.argsort(ts_s[anchors], kind="stable")]
    count = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(text)))
    held = sparse.csr_matrix((np.ones(len(text), np.float32), (count, text)), (len(begins), len(texts)))
    bought = Bought(texts, text, start, end, anchors, (held.T @ held).tocsr().astype(bool), np.zeros(0, np.float32))
    drawn = np.bincount(bought.draw(anchors, np.random.default_rng(0))[1], minlength=len(texts))
    return msgspec.structs.replace(bought, log_q=np.log(np.maximum(drawn, 1) / drawn.sum()).astype(np.float32))
