"""Texts are varied by chance without losing what they are; like words come from the shop's own texts and baskets."""

import os
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from tune_helpers import SHORT, coloured_past, make_base

from models.text_batches import split
from models.text_export import load
from models.text_pairs import gather
from models.text_synonyms import LEAST, find_synonyms
from models.text_views import View, drop_words, replace_words, swap_words

# "cup" and "mug" have the same neighbours and are bought with saucers and spoons; "rope" has others.
TEXTS = [
    *(f"{colour} {thing} of clay" for colour in ("red", "blue", "green") for thing in ("cup", "mug")),
    *(f"saucer {number} spoon" for number in ("one", "two", "three")),
    *(f"strong rope from {place}" for place in ("here", "there", "far")),
]


def together(pairs: list[tuple[int, int]]) -> sparse.csr_matrix:
    table = np.eye(len(TEXTS), dtype=bool)
    for one, other in pairs:
        table[one, other] = table[other, one] = True
    return sparse.csr_matrix(table)


def test_words_with_the_same_neighbours_and_baskets_are_alike() -> None:
    found = find_synonyms(TEXTS, together([(at, 6 + at // 2) for at in range(6)]))
    assert found["cup"] == ["mug"]
    assert found["mug"] == ["cup"]
    assert "rope" not in found


def test_words_of_one_text_are_never_taken_for_each_other() -> None:
    texts = ["salt pepper mill", "pepper salt mill", "salt pepper pot", "pepper salt pot"]
    assert "pepper" not in find_synonyms(texts, None).get("salt", [])


def test_baskets_alone_can_tell_what_is_alike() -> None:
    """Titles of one word have no neighbours."""
    texts = ["pen"] * 3 + ["biro"] * 3 + ["ink"] * 3 + ["spade"] * 3
    table = np.zeros((12, 12), bool)
    for one in range(6):  # pens and biros with ink; spades with nothing
        table[one, 6:9] = table[6:9, one] = True
    found = find_synonyms(texts, sparse.csr_matrix(table))
    assert found["pen"] == ["biro"]
    assert "spade" not in found
    assert find_synonyms(texts, None) == {}
    assert LEAST > 0


def test_a_shop_without_common_words_has_no_like_ones() -> None:
    assert find_synonyms(["a b", "c d"], None) == {}
    assert find_synonyms(["", " , "], None) == {}


def test_like_words_do_not_follow_pythons_hashes() -> None:
    program = (
        "from models.text_synonyms import find_synonyms\n"
        "print(find_synonyms([f'{c} {t} of clay' for c in 'red blue green pink'.split() for t in 'cup mug jar'.split()], None))"
    )
    said = set()
    for seed in ("1", "2"):
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
        said.add(subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, env=environ).stdout)
    assert len(said) == 1
    assert said != {b""}


def test_words_are_dropped_but_never_all() -> None:
    rng = np.random.default_rng(0)
    kept = [drop_words("a b c d", 0.5, rng).split() for _ in range(400)]
    assert min(map(len, kept)) == 1
    assert np.mean([len(words) for words in kept]) == pytest.approx(2.06, abs=0.15)
    assert drop_words("", 0.5, rng) == ""


@given(st.lists(st.text("abc", min_size=1), max_size=8), st.floats(0, 1), st.integers(0, 99))
def test_swapped_words_are_the_same_words(words: list[str], share: float, seed: int) -> None:
    swapped = swap_words(" ".join(words), share, np.random.default_rng(seed)).split()
    assert sorted(swapped) == sorted(words)
    if share == 0:
        assert swapped == words


def test_so_many_words_are_swapped_as_asked() -> None:
    rng = np.random.default_rng(0)
    moved = [swap_words("a b", 0.3, rng) == "b a" for _ in range(2000)]
    assert np.mean(moved) == pytest.approx(0.3, abs=0.03)


def test_a_like_word_keeps_the_case_and_the_signs_around_it() -> None:
    rng, like = np.random.default_rng(0), {"mug": ["cup"]}
    assert replace_words("Red MUG, (mug) Mug. smug", 1.0, like, rng) == "Red CUP, (cup) Cup. smug"
    assert replace_words("Red mug", 0.0, like, rng) == "Red mug"
    assert replace_words("", 1.0, like, rng) == ""


def test_nothing_is_varied_unless_asked_and_never_what_judges(tmp_path_factory: pytest.TempPathFactory) -> None:
    bought = gather(coloured_past(), 0)
    _, tokenizer = load(make_base(tmp_path_factory.mktemp("base") / "bert", "bert"))
    plain = split(SHORT, tokenizer, False, bought.texts, bought)
    varied = split(msgspec.structs.replace(SHORT, word_swap=0.5, synonyms=0.5), tokenizer, False, bought.texts, bought)
    assert plain[0][0].rows != varied[0][0].rows
    assert plain[1] is not None
    assert varied[1] is not None
    assert plain[1][0].rows == varied[1][0].rows
    assert View(SHORT, bought.texts, bought).changed("red  mug", np.random.default_rng(0)) == "red  mug"
