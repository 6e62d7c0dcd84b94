"""A text seen otherwise: without some of its words, with neighbours swapped, with words like them. Chance is the caller's.

Words are what stands between spaces, so a title of a script without them is one word, and stays. Called by text_batches.py.
"""

from collections.abc import Sequence

import numpy as np

from models.text_pairs import Bought
from models.text_settings import TuneSettings
from models.text_synonyms import Synonyms, bare, find_synonyms


class View:
    """What the settings do to a text."""

    def __init__(self, settings: TuneSettings, texts: Sequence[str], bought: Bought | None) -> None:
        """texts, bought: of which like words are found, if settings.synonyms asks for them."""
        self._drop, self._swap, self._replace = settings.word_drop, settings.word_swap, settings.synonyms
        self._like: Synonyms = find_synonyms(texts, bought.together if bought else None) if self._replace else {}

    def changed(self, text: str, rng: np.random.Generator) -> str:
        """The same words for the most part, none left out."""
        if self._replace:
            text = replace_words(text, self._replace, self._like, rng)
        return swap_words(text, self._swap, rng) if self._swap else text

    def dropped(self, text: str, rng: np.random.Generator) -> str:
        """The same with words left out."""
        return drop_words(self.changed(text, rng), self._drop, rng)


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """A text without some of its words, but with one at least.

    >>> drop_words("red mug", 0.999, np.random.default_rng(0)) in ("red", "mug")
    True
    """
    words = text.split()
    kept = [word for word, dice in zip(words, rng.random(len(words)), strict=True) if dice >= share]
    return " ".join(kept or words[: (len(words) > 0)])


def swap_words(text: str, share: float, rng: np.random.Generator) -> str:
    """A text of which each word changes places with the next, by a chance of `share`; no word is lost.

    >>> swap_words("large red mug", 1.0, np.random.default_rng(0))
    'red mug large'
    """
    words = text.split()
    for at in np.flatnonzero(rng.random(max(0, len(words) - 1)) < share).tolist():
        words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def replace_words(text: str, share: float, like: Synonyms, rng: np.random.Generator) -> str:
    """A text of which each word that has like ones is one of them, by a chance of `share`; signs around it stay.

    >>> replace_words("Red mug.", 1.0, {"mug": ["cup"]}, np.random.default_rng(0))
    'Red cup.'
    """
    words = text.split()
    for at in np.flatnonzero(rng.random(len(words)) < share).tolist():
        core = bare(words[at])
        if others := like.get(core.casefold()):
            other = others[rng.integers(len(others))]
            other = other.upper() if core.isupper() else other.capitalize() if core[:1].isupper() else other
            words[at] = words[at].replace(core, other, 1)
    return " ".join(words)
