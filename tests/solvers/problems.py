"""Small awkward problems, and two referees that share no code with the solvers: FISTA and a duality gap."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

ODDITIES = ("plain", "constant column", "zero column", "duplicate", "separable", "scales", "lone row")


@dataclass(frozen=True, eq=False)
class Problem:
    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    n_classes = draw(st.integers(2, 5))
    n, n_features = draw(st.integers(2 * n_classes, 40)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return odd(draw(st.sampled_from(ODDITIES)), n, n_features, n_classes, rng, weighted=draw(st.booleans()))


def odd(
    kind: str, n: int, n_features: int, n_classes: int, rng: np.random.Generator, weighted: bool = False
) -> Problem:
    X = rng.standard_normal((n, n_features))
    y = np.concatenate((np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)))
    if kind == "constant column":
        X[:, 0] = 3.0
    if kind == "zero column":
        X[:, 0] = 0.0
    if kind == "duplicate":
        X[:, -1] = X[:, 0]
    if kind == "separable":
        X[:, 0] = 10.0 * y
    if kind == "scales":
        X *= 10.0 ** rng.uniform(-2, 2, n_features)
    if kind == "lone row":
        y[n_classes:] = np.minimum(y[n_classes:], n_classes - 2) if n_classes > 2 else y[n_classes:]
    return Problem(X, y, rng.uniform(0.1, 2.0, n) if weighted else np.ones(n))


def softmax(Z: np.ndarray) -> np.ndarray:
    E = np.exp(Z - Z.max(1, keepdims=True))
    return E / E.sum(1, keepdims=True)


def cross_entropy(Z: np.ndarray, problem: Problem) -> float:
    w = problem.weights / problem.weights.sum()
    return float(-w @ np.log(softmax(Z)[np.arange(len(Z)), problem.y]))


def norms(W: np.ndarray, entrywise: bool = False) -> float:
    return float(np.abs(W).sum() if entrywise else np.linalg.norm(W, axis=1).sum())


def dense(coef: tuple[np.ndarray, np.ndarray, np.ndarray], n_features: int) -> tuple[np.ndarray, np.ndarray]:
    active, rows, b = coef
    W = np.zeros((n_features, len(b)))
    W[active] = rows
    return W, b


def duality_gap(problem: Problem, lam: float, W: np.ndarray, b: np.ndarray, entrywise: bool = False) -> float:
    """(primal - dual) / primal, the dual point being the residual scaled into the dual ball."""
    w = (problem.weights / problem.weights.sum())[:, None]
    Y = np.eye(len(b))[problem.y]
    for _ in range(200):  # the best intercept by the classical fixed point, for exact dual feasibility
        b = b + np.log((w * Y).sum(0)) - np.log((w * softmax(problem.X @ W + b)).sum(0))
    Z = problem.X @ W + b
    P = softmax(Z)
    G = problem.X.T @ (w * (P - Y))
    largest = np.abs(G).max() if entrywise else np.linalg.norm(G, axis=1).max()
    Q = Y + min(1.0, lam / max(largest, 1e-300)) * (P - Y)
    dual = -float((w * Q * np.log(np.maximum(Q, 1e-300))).sum())
    primal = cross_entropy(Z, problem) + lam * norms(W, entrywise)
    return (primal - dual) / primal


def fista(problem: Problem, lam: float, entrywise: bool = False, steps: int = 4000) -> float:
    """The objective reached by plain accelerated proximal gradient."""
    X, w = problem.X, (problem.weights / problem.weights.sum())[:, None]
    A = np.hstack((X, np.ones((len(X), 1))))
    Y = np.eye(problem.y.max() + 1)[problem.y]
    rate = 2.0 / np.linalg.norm(np.sqrt(w) * A, 2) ** 2
    U = V = np.zeros((A.shape[1], Y.shape[1]))
    t = 1.0
    for _ in range(steps):
        new = V - rate * A.T @ (w * (softmax(A @ V) - Y))
        if entrywise:
            new[:-1] = np.sign(new[:-1]) * np.maximum(np.abs(new[:-1]) - rate * lam, 0)
        else:
            sizes = np.linalg.norm(new[:-1], axis=1, keepdims=True)
            new[:-1] *= np.maximum(1 - rate * lam / np.maximum(sizes, 1e-300), 0)
        if np.vdot(V - new, new - U) > 0:
            t = 1.0
        after = (1 + np.sqrt(1 + 4 * t * t)) / 2
        V, U, t = new + (t - 1) / after * (new - U), new, after
    return cross_entropy(A @ U, problem) + lam * norms(U[:-1], entrywise)
