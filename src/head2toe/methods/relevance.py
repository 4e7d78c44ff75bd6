"""Relevance scores: how much each feature matters to a task (equation 4)."""

from __future__ import annotations

import numpy as np

from head2toe.methods.design import Design
from head2toe.solvers import group_lasso

PATH_LENGTH = 12
PATH_END = 0.05  # of lam_max: the ranking has settled there
TOLERANCE = 1e-3  # relative duality gap


def relevance(design: Design, labels: np.ndarray, n_classes: int, rows: np.ndarray) -> np.ndarray:
    """Group-lasso relevance scores (F,) from the rows marked in `rows` (n,) bool."""
    path = group_lasso.path(
        list(design.blocks),
        labels,
        n_classes=n_classes,
        n_lams=PATH_LENGTH,
        lam_ratio=PATH_END,
        sample_weight=rows.astype(np.float64),
        tol=TOLERANCE,
    )
    return path.scores()
