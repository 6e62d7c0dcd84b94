"""What numba needs to be told, in one place: flags, and where compiled code is kept.

Used by the three files whose functions run as machine code: `greedy`, `gains`, `limiting`. Not a general cache: it knows
this folder's sources and nothing else.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import caching

F = TypeVar("F", bound=Callable[..., Any])

# Where two ways to a number must agree to the last bit, as the lazy and the full search do: operations as they stand.
EXACT: frozenset[str] = frozenset()
# Inner products: sums in any order and products fused, or nothing would be vectorised. NaN and infinity keep their
# meaning: the search for what is not finite rests on it.
SUMS = frozenset({"reassoc", "contract", "nsz", "arcp"})
MAXIMA = SUMS | {"nnan"}  # of numbers known not to be NaN; minus infinity still stands for "not open"


@functools.cache
def _stamp() -> bytes:
    """A digest of every source in this folder.

    numba's own stamp covers the file of the function alone: with the loop in one file and what it calls in another, a
    new release would go on with the machine code of the old one.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


class _Whole:
    def get_source_stamp(self) -> bytes:
        return _stamp()


class Provided(_Whole, caching.UserProvidedCacheLocator):
    """The folder in NUMBA_CACHE_DIR, where an operator set one."""


class Beside(_Whole, caching.InTreeCacheLocator):
    """`__pycache__` beside the source."""


class OfUser(_Whole, caching.UserWideCacheLocator):
    """The user's cache folder, where the installation is read-only."""


LOCATORS = ",".join(f"{__name__}.{kind.__name__}" for kind in (Provided, Beside, OfUser))


def compiled(fastmath: frozenset[str]) -> Callable[[F], F]:
    """Compile at the first call and keep the machine code in the first place that can be written to.

    Where there is none, each process compiles for itself (`warm_up` takes 15 s then, instead of 1.5 s).
    """

    def decorate(function: F) -> F:
        config: Any = numba.config
        before = config.CACHE_LOCATOR_CLASSES
        config.CACHE_LOCATOR_CLASSES = LOCATORS  # read while decorating; others keep theirs
        try:
            return cast(F, numba.njit(cache=True, fastmath=set(fastmath), error_model="numpy")(function))
        except RuntimeError:  # no locator found a folder
            return cast(F, numba.njit(fastmath=set(fastmath), error_model="numpy")(function))
        finally:
            config.CACHE_LOCATOR_CLASSES = before

    return decorate
