"""From relevance scores to a mask of kept features."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float

from head2toe.errors import FeatureError


def n_kept(n_features: int, fraction: float) -> int:
    """How many of `n_features` the keep fraction kappa in (0, 1] keeps: floor(F kappa), at least one."""
    if not 0 < fraction <= 1:
        raise FeatureError(f"keep: the fraction of kept features must lie in (0, 1], got {fraction}")
    return max(1, math.floor(n_features * fraction + 1e-9))


def ranking(scores: Float[np.ndarray, " F"]) -> np.ndarray:
    """Feature indices (F,) from the most to the least relevant; equal scores keep the order of the features."""
    if not np.isfinite(scores).all():
        raise FeatureError("keep: relevance scores must be finite numbers")
    return np.argsort(-scores, kind="stable")


def top(scores: Float[np.ndarray, " F"], count: int) -> Bool[np.ndarray, " F"]:
    """The mask (F,) of the `count` features with the largest relevance scores.

    >>> top(np.array([0.1, 3.0, 2.0]), 2).tolist()
    [False, True, True]
    """
    mask = np.zeros(len(scores), dtype=bool)
    mask[ranking(scores)[:count]] = True
    return mask
