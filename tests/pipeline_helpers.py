"""Requests, scorers and shops for the tests of the stages."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from shop_helpers import T, crowd, live, plain, stock

from recsys.candidates import default_sources
from recsys.catalogue import Catalogue, item_ref
from recsys.context import Request, Shop
from recsys.pipeline import Draft, recommend
from recsys.policy import Policy
from recsys.profiles import EMPTY, Profile
from recsys.scoring import Ask, Scored
from recsys.signal_table import SignalTable
from recsys.signals import Signal

MINUTE = 1 / 1440  # of a day
RELEVANCE = Policy(diversity="none", exposure_penalty=0, voices=0, fatigue_shown=0)  # the score alone


def no_model(asks: Sequence[Ask], vectors: NDArray[np.float32]) -> Scored:
    return Scored(None, "rank_fusion", "no release")


def ask(
    profile: Profile = EMPTY, vector: NDArray[np.float32] | None = None, user: str = "u", query: str = ""
) -> Request:
    return Request(user, profile, T, query, vector)


def one(shop: Shop, request: Request, policy: Policy = RELEVANCE, score: object = no_model) -> Draft:
    return recommend([request], shop, default_sources(policy), score, policy)[0]  # type: ignore[arg-type]


def ids(draft: Draft) -> list[str]:
    return [item.item for item in draft.items]


def two_shelves() -> Shop:
    """i0 … i4 go together and read alike, so do i5 … i9; everybody wants i5 … i9."""
    catalogue = Catalogue(plain(10).items, dim=2)
    catalogue.vectors[:10] = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    signals = SignalTable(catalogue)
    for row in range(10):
        shelf = range(row // 5 * 5, row // 5 * 5 + 5)
        pairs = tuple((item_ref(f"i{n}"), 9.0 - n % 5) for n in shelf if n != row)
        signals.update(row, Signal(T, pairs, short=1.0 + row, buyers=5))
    return Shop(catalogue, signals)


@pytest.fixture(scope="module")
def busy() -> tuple[Shop, dict[str, Profile]]:
    catalogue = stock(60)
    return live(catalogue, crowd(1, 60, users=20), batch=50)
