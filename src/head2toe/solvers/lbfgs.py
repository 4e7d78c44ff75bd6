"""L-BFGS for l2-regularised softmax regression, on several weightings of the same rows at once, down the strengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from head2toe.errors import NotConvergedError
from head2toe.solvers import work
from head2toe.solvers.kernels import cross_entropy

MEMORY = 12  # pairs of steps that L-BFGS remembers
STEEP = 0.5  # the share of a step's downward slope that it may rise with at its end
ROUGH = 1e-3  # the relative error down to which float32 products lead


@dataclass(frozen=True, eq=False)
class Problem:
    """p weightings of one data set. Variables are U (r + 1, p, C), the intercept in the last row.

    `rough` is V (n, r + 1) in float32: products with it cost half.
    """

    V: np.ndarray
    rough: np.ndarray
    y: np.ndarray
    w: np.ndarray
    absent: np.ndarray
    spread: np.ndarray

    def start(self) -> np.ndarray:
        U = np.zeros((self.V.shape[1], *self.absent.shape), self.V.dtype)
        share = np.stack([np.bincount(self.y, w, self.absent.shape[1]) for w in self.w.T])
        U[-1] = np.log(np.where(self.absent, 1.0, share))
        return U

    def logits(self, U: np.ndarray, exact: bool = True) -> np.ndarray:
        """(n, p, C)."""
        work.product(self.V.shape, self.absent.size)
        V = self.V if exact else self.rough
        Z = V @ U.reshape(len(U), -1).astype(V.dtype, copy=False)
        return Z.astype(U.dtype, copy=False).reshape(-1, *self.absent.shape)

    def at(self, Z: np.ndarray) -> _Loss:
        """What the logits Z (n, p, C) cost."""
        residual, curvature = np.empty_like(Z), np.empty(self.absent.shape, Z.dtype)
        value = cross_entropy(Z, self.y, self.w, self.absent, residual, curvature)
        return _Loss(value.astype(Z.dtype), residual, curvature)

    def gradient(self, residual: np.ndarray, exact: bool = True) -> np.ndarray:
        """(r + 1, p, C)."""
        work.product(self.V.shape, self.absent.size)
        V = self.V if exact else self.rough
        g = V.T @ residual.reshape(len(residual), -1).astype(V.dtype, copy=False)
        return g.astype(residual.dtype, copy=False).reshape(-1, *self.absent.shape)


@dataclass(frozen=True, eq=False)
class _Loss:
    """Cross-entropy (p,), its gradient in the logits w (P - Y) (n, p, C), and sum_i w P (1 - P) (p, C)."""

    value: np.ndarray
    residual: np.ndarray
    curvature: np.ndarray


@dataclass(frozen=True, eq=False)
class State:
    """Where a strength's steps ended: U, logits Z, and per weighting the objective and the relative gradient's norm."""

    U: np.ndarray
    Z: np.ndarray
    objective: np.ndarray
    residual: np.ndarray
    error: np.ndarray
    steps: int


def problem_of(coordinates: np.ndarray, y: np.ndarray, n_classes: int, w: np.ndarray) -> Problem:
    """The problem of rows with `coordinates` (n, r), labels y (n,) and one weighting a column of w (n, p)."""
    V = np.hstack((coordinates, np.ones((len(coordinates), 1), coordinates.dtype)))
    present = np.stack([np.bincount(y, wp, n_classes) > 0 for wp in w.T])
    w = w.astype(V.dtype)
    return Problem(V, V.astype(np.float32, copy=False), np.asarray(y, np.int64), w, ~present, (V * V).T @ w)


def solutions(
    problem: Problem, lams: np.ndarray, tol: float, max_iter: int, strict: bool
) -> Iterator[tuple[int, State]]:
    """(which strength, its solution), from the strongest down, each begun where the last two point to if that is lower.

    Solutions are nearly straight in the logarithm of the strength, and logits are linear in them.
    """
    U = problem.start()
    Z = problem.logits(U)
    before: tuple[float, np.ndarray, np.ndarray] | None = None
    lam = np.inf
    for i in np.argsort(-lams, kind="stable"):
        here = (lam, U, Z)
        if before is not None and lams[i] < lam < before[0]:
            far = min(1.0, float(np.log(lam / lams[i]) / np.log(before[0] / lam)))
            U, Z = _ahead(problem, float(lams[i]), U, Z, U - before[1], Z - before[2], far)
        state = _minimise(problem, U, Z, float(lams[i]), tol, max_iter, strict)
        before, lam, U, Z = (here if np.isfinite(here[0]) else None), float(lams[i]), state.U, state.Z
        yield int(i), state


def _ahead(
    problem: Problem, lam: float, U: np.ndarray, Z: np.ndarray, step: np.ndarray, shift: np.ndarray, far: float
) -> tuple[np.ndarray, np.ndarray]:
    """(U, Z) moved by the largest of `far`, half of it and nothing that lowers the objective, for each weighting."""

    def value(t: np.ndarray) -> np.ndarray:
        new = U[:-1] + t[:, None] * step[:-1]
        return problem.at(Z + t[:, None] * shift).value + 0.5 * lam * _dot(new, new)

    t = np.zeros(Z.shape[1], Z.dtype)
    least = value(t)
    for share in (0.5 * far, far):
        lower = value(np.full_like(t, share)) < least
        t = np.where(lower, t.dtype.type(share), t)
        least = np.where(lower, value(t), least)
    return U + t[:, None] * step, Z + t[:, None] * shift


def _minimise(
    problem: Problem, U: np.ndarray, Z: np.ndarray, lam: float, tol: float, max_iter: int, strict: bool
) -> State:
    """L-BFGS on all weightings at once, preconditioned by the mean curvature of each coordinate and class.

    Products are float32 until the error is small, then everything is computed anew in float64.
    """
    penalty = np.full((len(U), 1, 1), lam, U.dtype)
    penalty[-1] = 0.0
    exact, memory = U.dtype == np.float32, _Memory(U)
    loss = problem.at(Z)
    value = loss.value + 0.5 * _dot(penalty * U, U)
    g = problem.gradient(loss.residual, exact) + penalty * U
    error = np.full(len(value), np.inf)
    for step in range(max_iter + 1):
        error = _error(g, penalty * U, lam, tol)
        if not exact and (error <= max(tol, ROUGH)).all():
            exact, Z = True, problem.logits(U)
            loss = problem.at(Z)
            value = loss.value + 0.5 * _dot(penalty * U, U)
            g = problem.gradient(loss.residual) + penalty * U
            error = _error(g, penalty * U, lam, tol)
        if (exact and (error <= tol).all()) or (step == max_iter and not strict):
            return State(U, Z, value, loss.residual, error, step)
        scale = 1.0 / (problem.spread[:, :, None] * np.maximum(loss.curvature, 1e-6) + penalty)
        D = -memory.direction(g, scale)
        slope = _dot(g, D)
        ZD = problem.logits(D, exact)
        t, loss, value = _search(problem, Z, ZD, U, D, penalty, value, slope)
        Z, S = Z + t[:, None] * ZD, t[:, None] * D
        U = U + S
        new_g = problem.gradient(loss.residual, exact) + penalty * U
        memory.push(S, new_g - g)
        g = new_g
    raise NotConvergedError(
        f"ridge: at strength {lam:g} the weights are known to {error.max():.1e} after {max_iter} steps, "
        f"asked for {tol:g}; raise max_iter or tol"
    )


def _error(g: np.ndarray, shrinking: np.ndarray, lam: float, tol: float) -> np.ndarray:
    """The norm of the gradient over that of lam W, for each weighting (p,)."""
    return np.sqrt(_dot(g, g)) / np.maximum(np.sqrt(_dot(shrinking, shrinking)), 1e-3 * lam * tol + 1e-12)


def _search(
    problem: Problem,
    Z: np.ndarray,
    ZD: np.ndarray,
    U: np.ndarray,
    D: np.ndarray,
    penalty: np.ndarray,
    value: np.ndarray,
    slope: np.ndarray,
) -> tuple[np.ndarray, _Loss, np.ndarray]:
    """Shorten each weighting's step (p,) until the objective falls and is not about to rise steeply.

    Logits are linear, so this is cheap; the slope's root is guessed by a secant.
    """
    t, rounding = np.ones(len(value), U.dtype), 50 * np.finfo(U.dtype).eps
    flat, bend, base = _dot(penalty * U, D), _dot(penalty * D, D), 0.5 * _dot(penalty * U, U)

    def look(t: np.ndarray) -> tuple[_Loss, np.ndarray, np.ndarray, np.ndarray]:
        loss = problem.at(Z + t[:, None] * ZD)
        new_value = loss.value + base + t * flat + 0.5 * t * t * bend
        there = _dot(loss.residual, ZD) + flat + t * bend
        rises = new_value > value + 1e-4 * t * slope + rounding * np.abs(value)
        return loss, new_value, there, rises | (there > STEEP * np.abs(slope))

    loss, new_value, there, far = look(t)
    for _ in range(40):
        if not far.any():
            break
        root = t * slope / np.minimum(slope - there, slope)  # a step that failed on its way down: 0.7
        t = np.where(far, np.clip(root, 0.1 * t, 0.7 * t), t)
        loss, new_value, there, far = look(t)
    return t, loss, new_value


def _dot(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Inner products per weighting of two (r + 1, p, C) arrays: (p,)."""
    return np.einsum("rpc,rpc->p", A, B)


class _Memory:
    """The last steps of L-BFGS, S, and the changes of the gradient along them, G: H g by four thin products.

    The two loops over pairs are two triangular systems in the inner products S G' (Byrd, Nocedal and Schnabel 1994).
    """

    def __init__(self, start: np.ndarray) -> None:
        self.shape = start.shape
        p = start.shape[1]
        self.S = np.zeros((p, MEMORY, start.size // p), start.dtype)
        self.G = np.zeros_like(self.S)
        self.products = np.zeros((p, MEMORY, MEMORY), start.dtype)
        self.pushed = 0

    def push(self, step: np.ndarray, change: np.ndarray) -> None:
        """Remember a step and the gradient's change, both (r + 1, p, C), in place of the oldest."""
        k, known = self.pushed % MEMORY, min(self.pushed + 1, MEMORY)
        s, g = self._flat(step), self._flat(change)
        usable = np.einsum("pn,pn->p", s, g) > 0  # a weighting that stands still has nothing to say
        self.S[:, k], self.G[:, k] = s * usable[:, None], g * usable[:, None]
        self.products[:, k, :known] = (self.G[:, :known] @ self.S[:, k, :, None])[..., 0]
        self.products[:, :known, k] = (self.S[:, :known] @ self.G[:, k, :, None])[..., 0]
        self.products[:, k, k] += ~usable
        self.pushed += 1

    def direction(self, gradient: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The inverse Hessian's estimate times the gradient, both (r + 1, p, C), from its diagonal `scale`."""
        known = min(self.pushed, MEMORY)
        if known == 0:
            return scale * gradient
        age = (self.pushed - known + np.arange(known)) % MEMORY  # from the oldest to the newest
        newer = np.triu(self.products[:, age[:, None], age[None, :]])
        S, G, back = self.S[:, :known], self.G[:, :known], np.argsort(age)
        alpha = np.linalg.solve(newer, (S @ self._flat(gradient)[..., None])[:, age])
        q = self._flat(gradient) - (np.swapaxes(alpha[:, back], 1, 2) @ G)[:, 0]
        q = self._flat(scale * self._folded(q))
        diagonal = np.einsum("pmm->pm", newer)[..., None]
        mix = np.linalg.solve(np.swapaxes(newer, 1, 2), diagonal * alpha - (G @ q[..., None])[:, age])
        return self._folded(q + (np.swapaxes(mix[:, back], 1, 2) @ S)[:, 0])

    def _flat(self, U: np.ndarray) -> np.ndarray:
        return np.swapaxes(U, 0, 1).reshape(self.shape[1], -1)

    def _folded(self, rows: np.ndarray) -> np.ndarray:
        return np.swapaxes(rows.reshape(self.shape[1], self.shape[0], self.shape[2]), 0, 1)
