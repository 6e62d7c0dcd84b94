"""What the door may be told beside scores and vectors: the method, what was shown lately, the topics of the items.

Plain types; the limits have their own file. Numbers that the machine code knows the names by stand in `gains`.
"""

from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

Method = Literal["none", "mmr", "max_sum", "dpp", "ssd"]
Coverage = Literal["none", "root", "log", "xquad", "calibration"]
METHODS: tuple[Method, ...] = ("none", "mmr", "max_sum", "dpp", "ssd")
SCALES = ("raw", "unit", "zscore")
FINE, BAD_SCORE, BAD_VECTOR = 0, 1, 2  # how a choice ended
COVERAGES: tuple[Coverage, ...] = ("none", "root", "log", "xquad", "calibration")


class Diversity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to weigh relevance against variety. s is the strength, θ = 1 - s of the literature; r relevance on its scale.

    none      r
    mmr       (1-s)·r - s·max(0, max_j cos_ij)                      Carbonell & Goldstein 1998
    max_sum   (1-s)·r + s·Σ_j (1 - cos_ij)                          Gollapudi & Sharma 2009; the sum grows with the list
    dpp       (1-s)·r + s·log residual_i                            Chen, Zhang, Zhou 2018: greedy log-determinant
    ssd       (1-s)·r + s·γ·√residual_i, vectors with a 1 appended  Huang et al. 2021, "SSD*"

    To each, coverage_weight·Δcoverage is added where the topics are given (`covered` in gains.py has the formulas).
    """

    method: Method = "dpp"
    strength: Annotated[float, Meta(ge=0, le=1)] = 0.15  # 0 = relevance only, 1 = variety only
    scale: Literal["raw", "unit", "zscore"] = "unit"  # what the request's scores are brought to; "raw" leaves them
    blend: Annotated[float, Meta(ge=0, le=1)] = 0.9  # a of K = a·S + (1-a)·I: below 1 no list is too long (dpp, ssd)
    window: Annotated[int, Meta(ge=0)] = 0  # only the last so many items repel, the shown ones included; 0 = all
    gamma: Annotated[float, Meta(gt=0)] = 1.0  # ssd only
    coverage: Coverage = "none"
    coverage_weight: Annotated[float, Meta(ge=0)] = 0.5


class Shown(msgspec.Struct, frozen=True):
    """What the user saw lately, oldest first. vectors: (H, D) float32 unit; noise: (H,) ≥ 0, 0 = a moment ago, ∞ never.

    An item shown with noise σ² explains a candidate's direction by 1 / (1 + σ²) as much as one in the list.
    """

    vectors: NDArray[np.float32]
    noise: NDArray[np.float64]


class Topics(msgspec.Struct, frozen=True):
    """What the items are about, and how much the user wants of each.

    codes: (N, L) int32 in [0, C), -1 none; shares: (N, L) float64 in [0, 1], how much an item belongs to each of its
    topics (for "xquad" the chance that it satisfies a wish for the topic: below 1); want: (C,) float64 ≥ 0, by default
    summing to 1.
    """

    codes: NDArray[np.int32]
    shares: NDArray[np.float64]
    want: NDArray[np.float64]


def fading(age_s: NDArray[np.float64], keep_s: float) -> NDArray[np.float64]:
    """Noise of something shown so long ago: e^(age/keep) - 1, so 0 at once, 1.7 after `keep_s`, endless in the end.

    >>> fading(np.array([0.0, 3600.0]), 3600.0).round(2).tolist()
    [0.0, 1.72]
    """
    noise: NDArray[np.float64] = np.expm1(np.minimum(age_s / keep_s, 700.0))
    return noise
