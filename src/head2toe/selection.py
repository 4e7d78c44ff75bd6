"""From relevance scores to kept features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

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


def towards_taps(scores: Float[np.ndarray, " F"], lengths: Sequence[int], share: float) -> Float[np.ndarray, " F"]:
    """Scores drawn towards the mean of their tap: share 0 leaves them, 1 gives a whole tap one score.

    >>> towards_taps(np.array([1.0, 3.0, 8.0]), [2, 1], 0.5).tolist()
    [1.5, 2.5, 8.0]
    """
    if sum(lengths) != len(scores) or not 0 <= share <= 1:
        raise FeatureError(
            f"keep: taps of {sum(lengths)} features in all need as many scores and a share in [0, 1], got "
            f"{len(scores)} scores and {share}"
        )
    cuts = np.cumsum(lengths)[:-1]
    means = np.repeat([part.mean() if len(part) else 0.0 for part in np.split(scores, cuts)], lengths)
    return (1.0 - share) * scores + share * means
