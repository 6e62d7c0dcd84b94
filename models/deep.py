"""The deep stage: a decoder reads the titles of what a user had, and re-scores a list's best candidates by theirs.

Off unless a folder is given. It stands around another scorer: of each list, that one's best 20 get weight times z, where z
says how much likelier the decoder finds a candidate's title after the user's titles than after nothing, mean over tokens
(of four ways to say it the least harmful), standardised over the list. All other logits stay as they are. What a title
is worth without a history is kept, so that it costs nothing the second time; a user without history, and a candidate
without title, gain and lose nothing. It has a rung's deadline and pauses (ladder.py), so a decoder that fails or is
slow leaves the list as it was, which says so. What it brings and costs is in docs/experiments.md. Called by the ranker
and by evaluation, where a folder is given.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.export import find_weights
from models.ladder import Rung
from recsys.catalogue import Catalogue
from recsys.errors import Misuse, ModelRejected, Unavailable
from recsys.policy import Policy
from recsys.scoring import Ask, Score, Scored

if TYPE_CHECKING:  # brings torch and transformers, which a ranker without a deep stage must not load
    from models.deep_decoder import Decoder

log = logging.getLogger(__name__)

# How a user is put into words. No words of ours: titles alone, so that a shop of any language is asked in its own.
# Counted, because another template gives other scores.
TEMPLATE = 1
OPEN, END = "-", "\n"  # of a line; between them a space and a title, newest last, and at the end what is asked about
BEST = 20  # candidates a list, as many as a shopper may see
HISTORY = 10  # titles, as measured: 80 tokens beside 125 of candidates; other lengths were not tried
TITLE_TOKENS = 32  # of a title, which is cut there
KNOWN = 200_000  # titles whose worth without a history is kept, 30 MB
NEVER_S = 86_400.0  # a deadline for those who wait
DEADLINE_S = 1.5  # for the lists of one call: a decoder of 135 M parameters takes .8 s for one list on a free core


class Deep:
    """The deep stage of one process. reason: why it can never serve, empty if it can."""

    def __init__(
        self,
        model: str,
        catalogue: Catalogue,
        weight: float,
        deadline_s: float = DEADLINE_S,
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """model: a folder, or the name of a model in a package; catalogue: whose titles are read, as they are then.

        Nine seconds, a minute of a GGUF. Never raises: a stage that cannot be opened is logged, and named by every list.
        """
        self._weight, self.reason = weight, ""
        self._rung: Rung | None = None
        try:
            decoder, known = open_decoder(find_weights(model)), dict[str, float]()
            # Tried again with the same weights and what it knows: most often a list only took too long.
            self._rung = Rung("deep", lambda: Reader(decoder, catalogue, known), clock_s, deadline_s)
        except (ModelRejected, Misuse, Unavailable) as error:
            # As of a release (serving.py): who gets a list need not know where our files lie.
            self.reason = f"deep: {error}".replace(model, Path(model).name)
            log.error("lists are made without the deep stage: %s", error)
        else:
            log.info("deep stage: %s, template %d, weight %g", model, TEMPLATE, weight)

    def around(self, score: Score, policy: Policy) -> Score:
        """The scorer with the deep stage behind it. policy: says by which logits its lists are ranked."""
        column = 1 if policy.repeats == "new" else 0

        def deep_score(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
            scored = score(asks, vectors)
            return scored if scored.logits is None else self._rescore(asks, vectors, scored, scored.logits, column)

        return deep_score

    def _rescore(
        self,
        asks: Sequence[Ask],
        vectors: NDArray[np.float32],
        scored: Scored,
        logits: NDArray[np.float32],
        column: int,
    ) -> Scored:
        start, at, best = 0, list[NDArray[np.int64]](), list[Ask]()
        for ask in asks:
            of_list = logits[start : start + len(ask.rows), column]
            chosen = np.argsort(-of_list, kind="stable")[:BEST]
            at.append(start + chosen)
            best.append(Ask(ask.rows[chosen], ask.features[chosen], ask.trail))
            start += len(ask.rows)
        found = self._rung.score(best, vectors) if self._rung else None
        if found is None:
            reason = self._rung.reason if self._rung else self.reason
            reasons = [scored.degraded_reason, reason] if scored.degraded_reason else [reason]
            return Scored(logits, scored.scorer, " | ".join(filter(None, reasons)))
        logits = logits.copy()
        logits[np.concatenate(at), column] += np.float32(self._weight) * found[:, 0]
        return Scored(logits, f"{scored.scorer}+deep", scored.degraded_reason)


def open_decoder(weights: Path) -> "Decoder":
    """The decoder of a folder. Raises ModelRejected: a stranger's model fails in any way."""
    try:
        from models.deep_decoder import Decoder

        return Decoder(weights)
    except ModelRejected:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelRejected(f"{weights} is no decoder: {type(error).__name__}: {first}") from error


class Reader:
    """What a rung asks: titles to standardised scores. Not thread-safe but for `stop`.

    known: mean log-probability of titles after nothing, filled here.
    """

    def __init__(self, decoder: "Decoder", catalogue: Catalogue, known: dict[str, float]) -> None:
        self._decoder, self._catalogue, self._known = decoder, catalogue, known
        self.provider = decoder.provider
        tokenizer = decoder.tokenizer
        begin = next((t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None), None)
        self._begin = [] if begin is None else [begin]
        self._open, self._end = self._tokens(OPEN), self._tokens(END)
        self._cut = min(TITLE_TOKENS, decoder.places // 3)
        self._stopped = threading.Event()

    def warm_up(self) -> None:
        """A first inference."""
        self._decoder.log_likelihoods([*self._begin, *self._open], [self._open])

    def stop(self) -> None:
        """Called by another thread: the call in hand raises before its next forward."""
        self._stopped.set()

    def score(self, asks: Sequence[Ask], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of all candidates, list by list: (N, 1), each list with mean 0 and deviation 1, or all 0. May raise anything."""
        return np.concatenate([self._score(ask) for ask in asks])[:, None].astype(np.float32)

    def _score(self, ask: Ask) -> NDArray[np.float64]:
        scores = np.zeros(len(ask.rows))
        titles = [self._title(row) for row in ask.rows.tolist()]
        texts = [self._tokens(f" {title}")[: self._cut] if title else [] for title in titles]
        told = [at for at, text in enumerate(texts) if text]
        history = self._history(ask.trail.rows.tolist())
        if not told or not history:
            return scores
        gain = self._ask(history, [texts[at] for at in told])
        unknown = {titles[at]: texts[at] for at in told if titles[at] not in self._known}
        if unknown:
            if len(self._known) > KNOWN:
                self._known.clear()
                unknown = {titles[at]: texts[at] for at in told}
            self._known.update(zip(unknown, self._ask([], list(unknown.values())).tolist(), strict=True))
        gain -= np.array([self._known[titles[at]] for at in told])
        deviation = gain.std()
        if deviation > 0:
            scores[told] = (gain - gain.mean()) / deviation
        return scores

    def _ask(self, history: Sequence[int], texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Mean log-probability of each text after the lines of a history: (N,). Raises ModelRejected for NaN."""
        if self._stopped.is_set():
            raise TimeoutError("stopped")
        found = self._decoder.log_likelihoods([*self._begin, *history, *self._open], texts)
        if not np.isfinite(found).all():
            raise ModelRejected("it answered with numbers that are not finite; take another decoder")
        return found

    def _history(self, rows: Sequence[int]) -> list[int]:
        """Lines of the newest titles, newest last; as many as the decoder has places for."""
        lines: list[list[int]] = []
        left = self._decoder.places - self._cut - len(self._begin) - len(self._open)
        for title in filter(None, map(self._title, rows)):
            line = [*self._open, *self._tokens(f" {title}")[: self._cut], *self._end]
            left -= len(line)
            if left < 0 or len(lines) == HISTORY:
                break
            lines.append(line)
        return [token for line in reversed(lines) for token in line]

    def _title(self, row: int) -> str:
        return " ".join(self._catalogue.items[row].title.split())

    def _tokens(self, text: str) -> list[int]:
        found: list[int] = self._decoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found
