"""Words of titles: what is one, what two titles have in common, and that a lexicon follows its catalogue."""

from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shop_helpers import remember, searched

from recsys.lexical import WIDTH, Lexicon, count_terms, split_words

TITLES = ["Red mug", "Blue mug", "Garden chair, folding", "红色马克杯", "蓝色马克杯", ""]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("WHITE T-Light holder", "white t light holder"),
        ("Straße ﬁve ½", "strasse five 1 2"),
        ("हिन्दी चाय", "हिन्दी चाय"),
        ("花", "花"),
        ("iPhone手机壳15", "iphone 手机 机壳 15"),
        ("ﾏｸﾞｶｯﾌﾟ", "マグ グカ カッ ップ"),
        ("ผ้า ไหม", "ผ้ ้า ไห หม"),
        ("*** — !!", ""),
        ("\u2764\ufe0f mug", "mug"),  # the heart's colour is no word
        ("葛\U000e0100城", "葛城"),
    ],
)
def test_words_are_what_a_reader_of_any_script_would_look_for(text: str, words: str) -> None:
    assert split_words(text) == words.split()


def test_a_term_is_the_same_number_on_every_machine() -> None:
    assert dict(count_terms("red mug")) == {89_999: 1, 63_529: 1}


def test_cosines_are_those_worked_out_by_hand() -> None:
    lexicon = Lexicon(["red mug", "blue mug", "red red chair"])
    rare, common = log(4 / 2) + 1, log(4 / 3) + 1  # blue, chair; red, mug: two of three texts have it
    first = {"red": common, "mug": common}
    second = {"blue": rare, "mug": common}
    third = {"red": 2 * common, "chair": rare}

    def cosine(one: dict[str, float], other: dict[str, float]) -> float:
        dot = sum(one[word] * other.get(word, 0) for word in one)
        return dot / sqrt(sum(w * w for w in one.values()) * sum(w * w for w in other.values()))

    found = lexicon.cosines(lexicon.query("A red mug"), np.arange(3))
    asked = first | {"a": log(4) + 1}
    np.testing.assert_allclose(found, [cosine(asked, text) for text in (first, second, third)], rtol=1e-5)
    liked = lexicon.cosines(lexicon.taste(np.array([2]), np.ones(1)), np.arange(3))
    np.testing.assert_allclose(liked, [cosine(third, first), 0, 1], rtol=1e-5)


def test_a_taste_leans_to_what_weighs_most() -> None:
    lexicon = Lexicon(["red mug", "garden chair"])
    taste = lexicon.taste(np.array([0, 1]), np.array([0.6, 0.8]))
    np.testing.assert_allclose(lexicon.cosines(taste, np.arange(2)), [0.6, 0.8], rtol=1e-5)


def test_a_chinese_search_finds_chinese_titles_the_nearest_first() -> None:
    lexicon = Lexicon(TITLES)
    assert lexicon.search(lexicon.query("红色 马克杯"), 5)[0].tolist() == [3, 4]
    assert lexicon.search(lexicon.query("马克"), 5)[0].tolist() == [3, 4], "ties by row"
    assert lexicon.search(lexicon.query("杯"), 5)[0].tolist() == []


@pytest.mark.parametrize("title", ["کتاب\u200cخانه", "ක්\u200dරීම්", "Kaffee\u00admaschine"])
def test_a_search_by_a_titles_own_words_finds_it_whatever_joins_them(title: str) -> None:
    """Persian and Sinhala write joiners within words; a profile keeps a search as one reads it, without them."""
    ((_, text),) = remember(searched(title)).queries
    assert text != title
    lexicon = Lexicon([title, "red mug"])
    assert lexicon.search(lexicon.query(text), 2)[0].tolist() == [0]


def test_nothing_is_near_nothing() -> None:
    lexicon = Lexicon(TITLES)
    for asked in (lexicon.query(""), lexicon.query("unheard of"), lexicon.taste(np.array([5]), np.ones(1))):
        assert not lexicon.cosines(asked, np.arange(6)).any()
        assert not len(lexicon.search(asked, 5)[0])
    assert not len(lexicon.taste(np.empty(0, np.int64), np.empty(0)).terms)
    assert not len(Lexicon().search(Lexicon(TITLES).query("mug"), 5)[0])


def test_a_description_is_read_up_to_its_sixty_fourth_word() -> None:
    text = " ".join(f"word{n}" for n in range(WIDTH + 5)) + " word0"
    lexicon = Lexicon([text, "word0"])
    assert len(count_terms(text)) == WIDTH
    assert lexicon.search(lexicon.query("word63"), 5)[0].tolist() == [0]
    assert not len(lexicon.search(lexicon.query("word64"), 5)[0])


words = st.lists(st.sampled_from(["red", "blue", "mug", "mug", "chair", "红色", "马克杯", "garden"]), max_size=12).map(
    " ".join
)


@given(st.lists(st.tuples(st.integers(0, 20), words), max_size=30), words)
def test_a_lexicon_that_was_changed_answers_as_a_new_one(puts: list[tuple[int, str]], asked: str) -> None:
    live, last = Lexicon(), {}
    for row, text in puts:
        live.put(row, text)
        last[row] = text
    fresh = Lexicon(last.get(row, "") for row in range(21))
    live.put(20, last.get(20, ""))  # so that both have that many rows
    every = np.arange(21)
    cosines = live.cosines(live.query(asked), every)
    np.testing.assert_allclose(cosines, fresh.cosines(fresh.query(asked), every), atol=1e-6)
    assert ((cosines >= 0) & (cosines <= 1 + 1e-6)).all()
    rows, scores = live.search(live.query(asked), 5)
    order = np.lexsort((every, -cosines))[:5]
    assert rows.tolist() == order[cosines[order] > 0].tolist()
    np.testing.assert_array_equal(scores, cosines[rows])
    taste = live.taste(rows, np.arange(len(rows), 0, -1.0))
    assert (live.cosines(taste, rows) > 0).all(), "who likes a thing likes what reads the same"
