"""From a few columns to all of them: the path that `group_lasso` and `lasso` share.

At each strength the sequential strong rule (Tibshirani et al. 2012) says which few columns to gather, `engine` solves
on them, and one product over all features either proves by the duality gap that no other was needed, or names those
that were. Several weightings of the same rows (the folds of a cross-validation) go side by side and share that product
and the gathering, which are all that reads the features.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits

from head2toe.errors import DataError, NotConvergedError
from head2toe.solvers import engine
from head2toe.solvers.iterates import State, row_norms
from head2toe.solvers.matrix import Columns
from head2toe.solvers.targets import Targets, all_classes

ROUNDS = 60  # products over all features at one strength before giving up
GATHERED, GROWTH = 2000, 4  # columns that may be gathered at once, and that number for each active one
PIECE = 2048  # columns read at once in float64
FINE = 5e-5  # duality gaps below this need float64 on the gathered columns


@dataclass(frozen=True, eq=False)
class Path:
    """Solutions at k falling strengths.

    `objectives` (k,) float64 are those of the penalised problem; `residuals` (k,) are duality gaps over all features,
    relative to the objective, so that no other weights lower it by more; `n_active` (k,) counts non-zero rows;
    `seconds` (k,) per strength; `gradient_norms` (F,) are those of the loss at the last solution, at most its strength
    but for what the gap allows.
    """

    lams: np.ndarray
    objectives: np.ndarray
    residuals: np.ndarray
    n_active: np.ndarray
    seconds: np.ndarray
    solutions: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]
    gradient_norms: np.ndarray

    def coef(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(active (a,) feature indices in rising order, W (a, C) float64, b (C,)): the non-zero rows at lams[i]."""
        return self.solutions[i]

    def scores(self) -> np.ndarray:
        """A relevance score for every feature (F,) float64: its row's norm at the last strength, s_i of equation (4).

        Features that are zero there come after all others, in the order of their gradient's norm: how close each is to
        entering.
        """
        active, W, _ = self.solutions[-1]
        norms = np.linalg.norm(W, axis=1)
        ceiling = 0.5 * float(norms.min()) if len(norms) else 1.0
        top = float(self.gradient_norms.max(initial=0.0))
        scores = self.gradient_norms * (ceiling / top if top > 0 else 0.0)
        scores[active] = norms
        return scores


@dataclass(frozen=True)
class Settings:
    """What a path is asked for; `kind` is the penalty of a row, `stop_at` the active features that end the path."""

    kind: int
    tol: float
    max_iter: int
    stop_at: int | None = None


def null_scores(X: Columns, target: Targets, kind: int) -> np.ndarray:
    """The dual norm of every feature's gradient (F,) where all weights are zero; the largest is lam_max."""
    return scores_of(X, [_null_residual(target)], kind)[0]


def solve_paths(
    X: Columns,
    weightings: Sequence[Targets],
    settings: Settings,
    lams: np.ndarray | Sequence[float] | None,
    n_lams: int,
    lam_ratio: float,
    warm: Path | None = None,
) -> tuple[Path, ...]:
    """One path per weighting of the rows, at the same strengths."""
    if not settings.tol > 0:
        raise DataError(f"path: tol should be positive, got {settings.tol}")
    dtype = np.float64 if X.double or settings.tol < FINE else np.float32
    nulls = scores_of(X, [_null_residual(target) for target in weightings], settings.kind)
    tracks = [_Track.begin(target, dtype, scores) for target, scores in zip(weightings, nulls, strict=True)]
    lams = strengths(max(_beyond_rounding(X, scores, lam_ratio) for scores in nulls), lams, n_lams, lam_ratio)
    if warm is not None:
        _resume(X, tracks, warm, settings)
    for track in tracks:
        track.strength = max(float(track.scores.max()), lams[0])
    with threadpool_limits(1, user_api="blas"):  # a model's products are too small to share
        for lam in lams:
            live = [track for track in tracks if not track.reached(settings.stop_at)]
            if not live:
                break
            _advance(X, live, float(lam), settings)
    return tuple(track.path() for track in tracks)


@dataclass(frozen=True, eq=False)
class _Solution:
    """Weights W (a, c) on the columns gathered so far and intercepts b (c,) that solved the strength `lam`."""

    lam: float
    W: np.ndarray
    b: np.ndarray


@dataclass(eq=False)
class _Track:
    """One weighting on its way down the strengths: its gathered columns, where it is, and what it has solved."""

    target: Targets
    design: engine.Design
    W: np.ndarray
    b: np.ndarray
    scores: np.ndarray
    null: float
    strength: float = 0.0
    wanted: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    state: State | None = None
    here: _Solution | None = None
    earlier: _Solution | None = None
    records: list[tuple[float, float, float, float, tuple[np.ndarray, np.ndarray, np.ndarray]]] = field(
        default_factory=list
    )

    @staticmethod
    def begin(target: Targets, dtype: type[np.floating], scores: np.ndarray) -> _Track:
        zero = np.zeros((0, len(target.present)), dtype)
        design = engine.Design(target.weights, dtype)
        return _Track(target, design, zero, np.log(target.prior), scores, float(scores.max()))

    def reached(self, stop_at: int | None) -> bool:
        return stop_at is not None and bool(self.records) and len(self.records[-1][4][0]) >= stop_at

    def want(self, least: float) -> None:
        """Ask for features that score more than `least` and are not gathered yet; of many, for the highest scores."""
        mask = self.scores > least
        mask[self.design.index] = False
        wanted = np.flatnonzero(mask)
        most = max(GATHERED, GROWTH * int(self.W.any(1).sum()))
        if len(wanted) > most:
            wanted = np.sort(wanted[np.argpartition(-self.scores[wanted], most)[:most]])
        self.wanted = wanted

    def add(self, index: np.ndarray, raw: np.ndarray) -> None:
        self.design.add(index, raw)
        self.W = np.vstack((self.W, np.zeros((len(index), self.W.shape[1]), self.W.dtype)))

    def sharpen(self, X: Columns) -> None:
        """Go on in float64, because float32 did not get to the tolerance."""
        if self.design.dtype is not np.float64:
            index = self.design.index
            self.design = engine.Design(self.target.weights, np.float64)
            self.design.add(index, X.take(index))
            self.W = self.W.astype(np.float64)

    def look_ahead(self, lam: float, settings: Settings) -> None:
        """Begin where the last two solutions point to, if that is lower: they are nearly straight in log(strength)."""
        if self.earlier is None or not lam < self.strength < self.earlier.lam:
            return
        here = engine.start(self.design, self.W, self.b, self.target, settings.kind)
        step = self.W.copy()
        step[: len(self.earlier.W)] -= self.earlier.W
        step[~self.W.any(1)] = 0.0  # a row that has left stays out
        far = min(1.0, np.log(self.strength / lam) / np.log(self.earlier.lam / self.strength))
        for share in (far, 0.5 * far):
            W, b = self.W + share * step, self.b + share * (self.b - self.earlier.b)
            if engine.start(self.design, W, b, self.target, settings.kind).value(lam) < here.value(lam):
                self.W, self.b = W.astype(self.design.dtype), b
                return

    def solve(self, lam: float, tol: float, settings: Settings) -> None:
        """Solve on the gathered columns; logits are then computed anew, because the steps only added to them."""
        start = engine.start(self.design, self.W, self.b, self.target, settings.kind)
        state, _, _ = engine.solve(
            self.design, start, lam, self.null, self.target, settings.kind, tol, settings.max_iter
        )
        state = engine.start(self.design, state.W, state.b, self.target, settings.kind)
        self.state = engine.free_intercept(state, self.target, settings.kind)
        self.W, self.b = self.state.W, self.state.b

    def gap(self, lam: float) -> float:
        assert self.state is not None
        return engine.relative_gap(self.state, lam, float(self.scores.max()), self.null, self.target)

    def record(self, lam: float, gap: float, seconds: float) -> None:
        assert self.state is not None
        keep = np.flatnonzero(self.state.W.any(1))
        keep = keep[np.argsort(self.design.index[keep])]
        W = self.state.W[keep].astype(np.float64)
        b = self.state.b - self.design.means[keep] @ W
        solution = (self.design.index[keep], *all_classes(W, b, self.target.present, self.target.n_classes))
        self.earlier, self.here = self.here, _Solution(lam, self.W, self.b)
        self.records.append((lam, self.state.value(lam), gap, seconds, solution))
        self.strength = lam

    def path(self) -> Path:
        lams, objectives, gaps, seconds, solutions = zip(*self.records, strict=True)
        n_active = np.array([len(active) for active, _, _ in solutions])
        columns = (np.array(lams), np.array(objectives), np.array(gaps), n_active, np.array(seconds))
        return Path(*columns, tuple(solutions), self.scores)


def _advance(X: Columns, tracks: list[_Track], lam: float, settings: Settings) -> None:
    """Bring every track to the strength `lam`, certified over all features."""
    begun, tol, gap = time.perf_counter(), 0.5 * settings.tol, np.inf
    for track in tracks:
        track.want(2.0 * lam - track.strength)
        track.look_ahead(lam, settings)
    for _ in range(ROUNDS):
        _gather(X, tracks)
        for track in tracks:
            track.solve(lam, tol, settings)
        rest = []
        residuals = [engine.residual(track.state, track.target) for track in tracks if track.state is not None]
        for track, scores in zip(tracks, scores_of(X, residuals, settings.kind), strict=True):
            track.scores = scores
            gap = track.gap(lam)
            if gap <= settings.tol:
                track.record(lam, gap, time.perf_counter() - begun)
                continue
            track.want(lam)
            rest.append(track)
        if not rest:
            return
        if not any(len(track.wanted) for track in rest):
            for track in rest:
                if tol < 0.5 * settings.tol:
                    track.sharpen(X)
            tol *= 0.3
        tracks = rest
    raise NotConvergedError(
        f"path: at strength {lam:g} the relative duality gap is {gap:.1e}, asked for {settings.tol:g}; "
        "raise tol or max_iter"
    )


def _gather(X: Columns, tracks: list[_Track]) -> None:
    """Read the columns that any track wants once, and give each track its own."""
    union = np.unique(np.concatenate([track.wanted for track in tracks]))
    if len(union) == 0:
        return
    for first in range(0, len(union), PIECE):
        piece = union[first : first + PIECE]
        raw = X.take(piece)
        for track in tracks:
            mine = np.isin(piece, track.wanted)
            track.add(piece[mine], raw[:, mine])
    for track in tracks:
        track.wanted = np.zeros(0, np.int64)


def _resume(X: Columns, tracks: list[_Track], warm: Path, settings: Settings) -> None:
    """Put every track at the last solution of an earlier path over the same features."""
    active, W, b = warm.solutions[-1]
    if len(warm.gradient_norms) != X.n_features or len(b) != tracks[0].target.n_classes:
        raise DataError(
            f"path: warm_start has {len(warm.gradient_norms)} features and {len(b)} classes, "
            f"X and y have {X.n_features} and {tracks[0].target.n_classes}"
        )
    raw = X.take(active)
    for track in tracks:
        track.design.add(active, raw)
        track.W = W[:, track.target.present].astype(track.design.dtype)
        track.b = (b + track.design.means @ W)[track.target.present]
        state = engine.start(track.design, track.W, track.b, track.target, settings.kind)
        track.scores = scores_of(X, [engine.residual(state, track.target)], settings.kind)[0]


def strengths(largest: float, lams: np.ndarray | Sequence[float] | None, n_lams: int, lam_ratio: float) -> np.ndarray:
    """The falling strengths of a path (k,), checked."""
    if lams is None:
        if n_lams < 1 or not 0 < lam_ratio < 1:
            raise DataError(f"path: n_lams >= 1 and 0 < lam_ratio < 1 are needed, got {n_lams} and {lam_ratio}")
        return max(largest, np.finfo(np.float32).tiny) * lam_ratio ** (np.arange(n_lams) / max(n_lams - 1, 1))
    lams = np.atleast_1d(np.asarray(lams, np.float64))
    if (
        lams.ndim != 1
        or len(lams) == 0
        or not np.isfinite(lams).all()
        or (lams <= 0).any()
        or (np.diff(lams) > 0).any()
    ):
        raise DataError(f"path: strengths should be positive and falling, got {lams}")
    return lams


def _beyond_rounding(X: Columns, scores: np.ndarray, lam_ratio: float) -> float:
    """The largest of the scores (F,) or, where it is but the rounding of constant features, what keeps a path above."""
    top = int(scores.argmax())
    eps = float(np.finfo(np.float64 if X.double else np.float32).eps)
    rounding = 8.0 * eps * float(np.abs(X.take(np.array([top]))).max())
    return float(scores[top]) if scores[top] > rounding else rounding / lam_ratio


def _null_residual(target: Targets) -> np.ndarray:
    R = np.tile(target.prior, (len(target.labels), 1))
    R[np.arange(len(R)), target.labels] -= 1.0
    return R * target.weights[:, None]


def scores_of(X: Columns, residuals: Sequence[np.ndarray], kind: int) -> list[np.ndarray]:
    """Per weighting, the dual norm of every feature's gradient (F,), from its gradient in the logits (n, c).

    Intercepts are exact only to rounding, so what a residual's columns do not sum to zero by is taken off: a feature's
    mean must not count.
    """
    exact = [R - np.where(R.any(1), 1.0, 0.0)[:, None] * (R.sum(0) / max(R.any(1).sum(), 1)) for R in residuals]
    edges = np.cumsum([R.shape[1] for R in exact])[:-1]
    out = [np.empty(X.n_features) for _ in exact]
    for first, products in X.products(np.hstack(exact)):
        for scores, G in zip(out, np.split(products, edges, axis=1), strict=True):
            scores[first : first + len(G)] = row_norms(G, kind)
    return out
