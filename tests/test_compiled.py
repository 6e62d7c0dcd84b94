"""Machine code: where it is kept, when it is made anew, and that there is one version of it."""

import inspect
from typing import Any

import numpy as np
import pytest
from test_diversify_contract import draw, extras, how

from recsys.diversify import METHODS, AtMost, Limits, compiled, diversify, warm_up
from recsys.diversify.greedy import greedy


def test_machine_code_is_kept_and_made_anew_when_any_file_of_the_folder_changes() -> None:
    locator = greedy._cache._impl.locator  # type: ignore[attr-defined]
    assert type(locator).__name__ in ("Provided", "Beside", "OfUser")
    assert locator.get_source_stamp() == compiled._stamp()
    source = inspect.getsource(compiled._stamp.__wrapped__)
    assert 'glob("*.py")' in source


def test_without_a_place_to_keep_it_each_process_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nowhere:
        @classmethod
        def from_function(cls, *_: Any) -> None:
            return None

    monkeypatch.setattr(compiled, "Nowhere", Nowhere, raising=False)
    monkeypatch.setattr(compiled, "LOCATORS", "recsys.diversify.compiled.Nowhere")
    doubled = compiled.compiled(compiled.EXACT)(lambda x: 2 * x)
    assert doubled(21) == 42
    assert type(doubled._cache).__name__ == "NullCache"


def test_whatever_is_asked_there_is_one_version_so_that_no_list_waits_for_a_compiler() -> None:
    warm_up()
    relevance, vectors = draw(1, 20)
    frozen = vectors.copy()
    frozen.flags.writeable = False
    for seed, method in enumerate(METHODS):
        cap = AtMost(name="cap", codes=np.arange(20) % 4, within=2)
        diversify(relevance, vectors, 5, how(method, 0.4, seed), **extras(seed, 20))
        diversify(relevance.astype(np.float32), frozen, 5, how(method, 0.4), limits=Limits(at_most=(cap,)))
        diversify(relevance.astype(int), vectors[:, ::2], 5, how(method, 0.4), limits=Limits(pinned={0: 1}))
    diversify(relevance, vectors, 5, rows=np.arange(20, dtype=np.int32), limits=Limits(product=np.arange(20) % 3))
    diversify(relevance[:0], vectors[:0], 5)
    diversify(relevance, vectors, 5, how("dpp", 1))  # a whole number, as a settings file may have it
    assert len(greedy.signatures) == 1  # type: ignore[attr-defined]
