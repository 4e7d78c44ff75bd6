"""Points on the way to a solution, and the extrapolation of a sequence of them (Anderson 1965)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from head2toe.solvers import work
from head2toe.solvers.kernels import ENTRY, GROUP
from head2toe.solvers.targets import Targets

MEMORY = 6  # iterates that the extrapolation combines


@dataclass(frozen=True, eq=False)
class State:
    """A point: W (a, c) on the design's columns, b (c,), logits Z (n, c), probabilities P (n, c), objective parts."""

    W: np.ndarray
    b: np.ndarray
    Z: np.ndarray
    P: np.ndarray
    loss: float
    norms: float

    def value(self, lam: float) -> float:
        return self.loss + lam * self.norms


def row_norms(G: np.ndarray, kind: int) -> np.ndarray:
    """The penalty's dual norm of each row of G (a, c): a row may be zero at the optimum while this is at most lam."""
    return np.abs(G).max(1, initial=0.0) if kind == ENTRY else np.sqrt(np.einsum("ac,ac->a", G, G))


def penalty(W: np.ndarray, kind: int) -> float:
    """Sum of the rows' norms, in float64."""
    return float(np.abs(W).sum(dtype=np.float64) if kind == ENTRY else row_norms(W, GROUP).sum(dtype=np.float64))


def evaluate(W: np.ndarray, b: np.ndarray, Z: np.ndarray, target: Targets, kind: int) -> State:
    top = Z.max(1, keepdims=True)
    P = np.exp(Z - top)
    total = P.sum(1, keepdims=True)
    own = Z[np.arange(len(Z)), target.labels]
    loss = float(target.weights @ (np.log(total[:, 0]) + top[:, 0] - own).astype(np.float64))
    return State(W, b, Z, P / total, loss, penalty(W, kind))


class Iterates:
    """The `latest` point and the last steps that led there, with weights on the columns `at` (h,), rising."""

    def __init__(self, state: State) -> None:
        self.at, self.latest = np.arange(len(state.W)), state
        self.steps: list[tuple[State, np.ndarray]] = []

    def append(self, after: State, lam: float, target: Targets, kind: int, forget: bool) -> None:
        """Step to `after`, and on to the combination of the last steps that cancel best, if it is lower."""
        recent = [] if forget else self.steps[-MEMORY + 1 :]
        self.steps = [*recent, (after, (after.Z - self.latest.Z).ravel())]
        self.latest = after
        if len(self.steps) < 3:
            return
        mix = _cancelling([move for _, move in self.steps]).astype(after.W.dtype)
        W, b, Z = np.zeros_like(after.W), np.zeros_like(after.b), np.zeros_like(after.Z)
        for share, (state, _) in zip(mix, self.steps, strict=True):
            W, b, Z = W + share * state.W, b + share * state.b, Z + share * state.Z
        mixed = evaluate(W, b, Z, target, kind)
        if mixed.value(lam) < after.value(lam):
            self.latest = mixed

    @property
    def used(self) -> np.ndarray:
        """Which of the columns held (h,) have weights in some step."""
        return np.any([state.W.any(1) for state in (self.latest, *(state for state, _ in self.steps))], axis=0)

    @property
    def support(self) -> np.ndarray:
        """The columns that have weights in some step, rising."""
        return self.at[self.used]

    def hold(self, columns: np.ndarray) -> None:
        """Keep weights on `columns`, rising, which include the support."""

        def moved(state: State) -> State:
            W, rows = np.zeros((len(columns), state.W.shape[1]), state.W.dtype), np.flatnonzero(state.W.any(1))
            W[np.searchsorted(columns, self.at[rows])] = state.W[rows]
            return replace(state, W=W)

        self.latest = moved(self.latest)
        self.steps = [(moved(state), move) for state, move in self.steps]
        self.at = columns


def _cancelling(moves: list[np.ndarray]) -> np.ndarray:
    """The shares (m,), summing to one, of the moves (n * C,) whose combination is shortest."""
    stacked = np.stack(moves)
    work.product(stacked.shape, len(moves))
    products = (stacked @ stacked.T).astype(np.float64)
    products /= np.trace(products) + np.finfo(float).tiny
    mix = np.linalg.solve(products + 1e-8 * np.eye(len(moves)), np.ones(len(moves)))
    return mix / mix.sum()
