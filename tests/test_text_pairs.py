"""What was bought together is drawn as pairs, and never told apart in a batch."""

import msgspec
import numpy as np
import pytest
from past_helpers import DAY_S, past

from models.history import History
from models.text_pairs import gather, sold_texts
from recsys.catalogue import Item
from recsys.errors import Misuse

# Baskets of user 0: {0, 1}, {2}, {1, 3} three days later; of user 1: {4}, {4, 5}, where 5 has the text of 0.
ROWS = [(0, 0, 0.0), (0, 1, 0.0), (0, 2, 1.0), (0, 1, 4.0), (0, 3, 4.0), (1, 4, 0.0), (1, 4, 2.0), (1, 5, 2.0)]


def shop(rows: list[tuple[int, int, float]] = ROWS, same_text: bool = True) -> History:
    made = past(rows, 6)
    titles = ["red", "blue", "green", "yellow", "white", "red" if same_text else "black"]
    return msgspec.structs.replace(made, items=[Item(item=f"i{at}", title=title) for at, title in enumerate(titles)])


def drawn(history: History, window_days: float) -> set[tuple[str, str]]:
    bought = gather(history, window_days)
    pairs = set()
    for seed in range(30):
        both = bought.draw(bought.anchors, np.random.default_rng(seed))
        pairs |= {(bought.texts[a], bought.texts[p]) for a, p in zip(*(each.tolist() for each in both), strict=True)}
    return pairs


def both_ways(*pairs: tuple[str, str]) -> set[tuple[str, str]]:
    return {*pairs, *((b, a) for a, b in pairs)}


def test_pairs_are_of_one_basket_and_of_different_texts() -> None:
    assert drawn(shop(), 0) == both_ways(("red", "blue"), ("blue", "yellow"), ("white", "red"))


def test_with_a_window_pairs_are_of_one_user_within_it() -> None:
    within = both_ways(("red", "blue"), ("red", "green"), ("blue", "green"), ("blue", "yellow"), ("white", "red"))
    first_day = past(ROWS, 6).ts_s[0] // DAY_S  # windows are counted from 1970
    assert first_day % 5 == 2, "so that days 0 to 2 are one window, and day 4 is in the next"
    assert drawn(shop(), 5) == within


def test_items_of_one_text_are_one_and_come_in_the_order_of_their_first_sale() -> None:
    texts, text_of = sold_texts(shop())
    assert texts == ["red", "blue", "white", "green", "yellow"]
    assert text_of[0] == text_of[5] == 0


def test_what_must_not_be_told_apart_is_the_same_text_and_whatever_was_bought_with_the_anchor() -> None:
    bought = gather(shop(), 0)
    anchors, positives = np.array([0, 1, 4, 1]), np.array([1, 4, 1, 1])
    together = {frozenset(pair) for pair in ((0, 1), (1, 4), (2, 0))}
    expected = [
        [
            frozenset((a, p)) in together or a == p or p == positives[row]
            for p in positives.tolist()
        ]
        for row, a in enumerate(anchors.tolist())
    ]  # fmt: skip
    # A text is bought together with itself: the product says so, and it changes nothing.
    np.testing.assert_array_equal(bought.same(anchors, positives), expected)


def test_every_anchor_finds_a_partner_however_large_the_share_of_its_own_text() -> None:
    """A basket of a hundred reds and one blue: four tries by chance find the blue for one in 25."""
    made = shop([(0, 0, 0.0)] * 100 + [(0, 1, 0.0)])
    bought = gather(made, 0)
    anchors, positives = bought.draw(bought.anchors, np.random.default_rng(0))
    assert len(anchors) == len(positives) == len(bought.anchors) == 101
    assert (anchors != positives).all()


def test_log_q_is_how_often_a_text_is_drawn_as_the_positive() -> None:
    rng = np.random.default_rng(1)
    rows = [(user, int(item), float(user)) for user in range(400) for item in {0, 1 + rng.integers(4)}]
    bought = gather(shop(rows, same_text=False), 0)
    share = dict(zip(bought.texts, np.exp(bought.log_q).tolist(), strict=True))
    assert share["red"] == pytest.approx(0.5, abs=0.02), "in every basket of two it is the other's positive"
    assert sum(share.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("rows", "said"),
    [([(0, 0, 0.0), (1, 0, 1.0)], "1 texts were sold"), ([(0, 0, 0.0), (0, 1, 1.0)], "set window_days")],
)
def test_too_little_is_said_in_one_line(rows: list[tuple[int, int, float]], said: str) -> None:
    with pytest.raises(Misuse, match=said):
        gather(shop(rows), 0)
