"""L-BFGS for l2-regularised softmax regression, down the strengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from head2toe.errors import NotConvergedError
from head2toe.solvers import work
from head2toe.solvers.kernels import cross_entropy, two_loops

if TYPE_CHECKING:
    import torch

    from head2toe.solvers.targets import Targets

MEMORY = 12  # pairs of steps that L-BFGS remembers
STEEP = 0.5  # the share of a step's downward slope that it may rise with at its end
ROUGH = 1e-3  # the relative error down to which float32 products lead
STALLED = 1e-7  # the share of the objective by which a step must lower it for float32 products to lead further


@dataclass(frozen=True, eq=False)
class Problem:
    """Variables are U (c, r + 1), the intercepts in its last column; logits are Z (c, n).

    `V` (n, r + 1) ends in a column of ones, and `across` is its transpose, both as matrices of their own: classes first
    and rows of memory along the long axis, torch multiplies them two to three times as fast as numpy does in any order.
    `rough` and `rough_across` are the same in float32.
    """

    V: torch.Tensor
    across: torch.Tensor
    rough: torch.Tensor
    rough_across: torch.Tensor
    y: np.ndarray
    w: np.ndarray
    prior: np.ndarray
    spread: np.ndarray

    def start(self) -> np.ndarray:
        U = np.zeros((len(self.prior), len(self.across)), self.w.dtype)
        U[:, -1] = np.log(self.prior)
        return U

    def logits(self, U: np.ndarray, exact: bool = True) -> np.ndarray:
        """(c, n)."""
        return _product(U, self.across if exact else self.rough_across)

    def gradient(self, residual: np.ndarray, exact: bool = True) -> np.ndarray:
        """(c, r + 1) of the cross-entropy, from its gradient in the logits."""
        return _product(residual, self.V if exact else self.rough)

    def at(self, Z: np.ndarray) -> _Loss:
        """What the logits Z (c, n) cost."""
        residual, curvature = np.empty_like(Z), np.empty(len(Z), Z.dtype)
        value = cross_entropy(Z, self.y, self.w, residual, curvature)
        return _Loss(value, residual, curvature)


@dataclass(frozen=True, eq=False)
class _Loss:
    """Cross-entropy, its gradient in the logits w (P - Y) (c, n), and sum_i w P (1 - P) (c,)."""

    value: float
    residual: np.ndarray
    curvature: np.ndarray


@dataclass(frozen=True, eq=False)
class State:
    """Where a strength's steps ended: U, its logits, the objective and the relative norm of the gradient."""

    U: np.ndarray
    Z: np.ndarray
    objective: float
    residual: np.ndarray
    error: float
    steps: int


def problem_of(coordinates: np.ndarray, target: Targets) -> Problem:
    """The problem of rows with `coordinates` (n, r), over the c classes that are present."""
    import torch

    V = np.hstack((coordinates, np.ones((len(coordinates), 1), coordinates.dtype)))
    w = target.weights.astype(V.dtype)
    exact, across = torch.from_numpy(V), torch.from_numpy(np.ascontiguousarray(V.T))
    return Problem(exact, across, exact.float(), across.float(), target.labels, w, target.prior, w @ (V * V))


def solutions(
    problem: Problem, lams: np.ndarray, tols: np.ndarray, max_iter: int, strict: bool
) -> Iterator[tuple[int, State]]:
    """(which strength, its solution), from the strongest down, each begun where the last two point to if that is lower.

    Solutions are nearly straight in the logarithm of the strength, and logits are linear in them.
    """
    U = problem.start()
    Z = problem.logits(U)
    if not problem.spread[:-1].any():  # nothing varies: the classes' shares are the answer, whatever rounding leaves
        loss = problem.at(Z)
        yield from ((i, State(U, Z, loss.value, loss.residual, 0.0, 0)) for i in range(len(lams)))
        return
    before: tuple[float, np.ndarray, np.ndarray] | None = None
    lam = np.inf
    for i in np.argsort(-lams, kind="stable"):
        here = (lam, U, Z)
        if before is not None and lams[i] < lam < before[0]:
            far = min(1.0, float(np.log(lam / lams[i]) / np.log(before[0] / lam)))
            U, Z = _ahead(problem, float(lams[i]), U, Z, U - before[1], Z - before[2], far)
        state = _minimise(problem, U, Z, float(lams[i]), float(tols[i]), max_iter, strict)
        before, lam, U, Z = (here if np.isfinite(here[0]) else None), float(lams[i]), state.U, state.Z
        yield int(i), state


def _ahead(
    problem: Problem, lam: float, U: np.ndarray, Z: np.ndarray, step: np.ndarray, shift: np.ndarray, far: float
) -> tuple[np.ndarray, np.ndarray]:
    """(U, Z) moved by that of nothing, half of `far` and `far` that gives the lowest objective."""

    def value(t: float) -> float:
        new = U[:, :-1] + t * step[:, :-1]
        return problem.at(Z + t * shift).value + 0.5 * lam * _dot(new, new)

    t = min((0.0, 0.5 * far, far), key=value)
    return U + t * step, Z + t * shift


def _minimise(
    problem: Problem, U: np.ndarray, Z: np.ndarray, lam: float, tol: float, max_iter: int, strict: bool
) -> State:
    """L-BFGS, preconditioned by the mean curvature of each coordinate and class.

    Products are float32 until the error is small, or until float32 brings the objective no lower; then everything is
    computed anew in float64.
    """
    penalty = np.full(U.shape[1], lam, U.dtype)
    penalty[-1] = 0.0
    exact, memory = U.dtype == np.float32, _Memory(U)
    loss = problem.at(Z)
    value = loss.value + 0.5 * _dot(penalty * U, U)
    g = problem.gradient(loss.residual, exact) + penalty * U
    error = last = np.inf
    for step in range(max_iter + 1):
        error = _error(g, penalty * U, lam, tol)
        if not exact and (error <= max(tol, ROUGH) or last - value <= STALLED * abs(value)):
            exact, Z = True, problem.logits(U)
            loss = problem.at(Z)
            value = loss.value + 0.5 * _dot(penalty * U, U)
            g = problem.gradient(loss.residual) + penalty * U
            error = _error(g, penalty * U, lam, tol)
        if (exact and error <= tol) or (step == max_iter and not strict):
            return State(U, Z, value, loss.residual, error, step)
        scale = 1.0 / (np.maximum(loss.curvature, 1e-6)[:, None] * problem.spread + penalty)
        D = -memory.direction(g, scale)
        slope = _dot(g, D)
        ZD = problem.logits(D, exact)
        last = value
        t, loss, value = _search(problem, Z, ZD, U, D, penalty, value, slope)
        Z, S = Z + t * ZD, t * D
        U = U + S
        new_g = problem.gradient(loss.residual, exact) + penalty * U
        memory.push(S, new_g - g)
        g = new_g
    raise NotConvergedError(
        f"ridge: at strength {lam:g} the weights are known to {error:.1e} after {max_iter} steps, "
        f"asked for {tol:g}; raise max_iter or tol"
    )


def _error(g: np.ndarray, shrinking: np.ndarray, lam: float, tol: float) -> float:
    """The norm of the gradient over that of lam W."""
    return _dot(g, g) ** 0.5 / max(_dot(shrinking, shrinking) ** 0.5, 1e-3 * lam * tol + 1e-12)


def _search(
    problem: Problem,
    Z: np.ndarray,
    ZD: np.ndarray,
    U: np.ndarray,
    D: np.ndarray,
    penalty: np.ndarray,
    value: float,
    slope: float,
) -> tuple[float, _Loss, float]:
    """Shorten a step until the objective falls and is not about to rise steeply: its length, the loss, the objective.

    Logits are linear, so this is cheap; the slope's root is guessed by a secant.
    """
    rounding = 50 * float(np.finfo(U.dtype).eps)
    flat, bend, base = _dot(penalty * U, D), _dot(penalty * D, D), 0.5 * _dot(penalty * U, U)

    def look(t: float) -> tuple[_Loss, float, float, bool]:
        loss = problem.at(Z + t * ZD)
        new_value = loss.value + base + t * flat + 0.5 * t * t * bend
        there = _dot(loss.residual, ZD) + flat + t * bend
        rises = new_value > value + 1e-4 * t * slope + rounding * abs(value)
        return loss, new_value, there, rises or there > STEEP * abs(slope)

    t = 1.0
    loss, new_value, there, far = look(t)
    for _ in range(40):
        if not far:
            break
        root = t * slope / min(slope - there, slope)  # a step that failed on its way down: 0.7
        t = min(max(root, 0.1 * t), 0.7 * t)
        loss, new_value, there, far = look(t)
    return t, loss, new_value


def _product(A: np.ndarray, B: torch.Tensor) -> np.ndarray:
    """A @ B in the precision of B, given in that of A."""
    import torch

    work.product(A.shape, B.shape[1])
    return (torch.from_numpy(A).to(B.dtype) @ B).numpy().astype(A.dtype, copy=False)


def _dot(A: np.ndarray, B: np.ndarray) -> float:
    return float(np.vdot(A, B))


class _Memory:
    """The last steps of L-BFGS, S, and the changes of the gradient along them, G."""

    def __init__(self, start: np.ndarray) -> None:
        self.S = np.zeros((MEMORY, start.size), start.dtype)
        self.G = np.zeros_like(self.S)
        self.pushed = 0

    def push(self, step: np.ndarray, change: np.ndarray) -> None:
        """Remember a step and the gradient's change in place of the oldest, if it curves upwards."""
        if _dot(step, change) > 0:
            k = self.pushed % MEMORY
            self.S[k], self.G[k] = step.ravel(), change.ravel()
            self.pushed += 1

    def direction(self, gradient: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The inverse Hessian's estimate times the gradient, from its diagonal `scale`."""
        known = min(self.pushed, MEMORY)
        oldest = self.pushed % MEMORY if known == MEMORY else 0
        q = two_loops(gradient.ravel(), self.S[:known], self.G[:known], oldest, scale.ravel())
        return q.reshape(gradient.shape)
