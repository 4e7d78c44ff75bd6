"""Group-lasso paths against adelie 1.1.52: seconds, memory and objectives on the same files, strengths and threads.

    python -m venv adelie && adelie/bin/pip install "adelie==1.1.52" "numpy<2"
    python benchmarks/group_lasso.py --adelie-python adelie/bin/python --features FOLDER --out results.json
    python benchmarks/group_lasso.py --adelie-python adelie/bin/python --oracle
    python benchmarks/group_lasso.py --out-of-core FOLDER

FOLDER holds real features as NAME.npy (n, F) with labels NAME_y.npy (n,). Without --adelie-python only this package is
timed. The file runs under both interpreters, so it imports neither package at the top.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np

SYNTHETIC = {
    "1,000 x 10,000, 10": (1000, 10_000, 10, "float32"),
    "1,000 x 100,000, 10": (1000, 100_000, 10, "float32"),
    "1,000 x 10,000, 100": (1000, 10_000, 100, "float32"),
    "1,000 x 100,000, 100": (1000, 100_000, 100, "float32"),
    "1,000 x 10,000, 397": (1000, 10_000, 397, "float32"),
    "1,000 x 500,000, 10, float16": (1000, 500_000, 10, "float16"),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: medians of seconds, peak memory above the start in GB, the worst objective ratio.

    adelie's seconds are the limit, and the rest of it unknown, where it was stopped there.
    """

    name: str
    active: int
    ours_seconds: float
    adelie_seconds: float | None
    ours_gb: float
    adelie_gb: float | None
    worst_objective_ratio: float | None


def synthetic(n: int, n_features: int, n_classes: int, dtype: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """ReLU of low-rank plus noise (n, F), column-major; labels from the same 32 factors, with little noise."""
    rng = np.random.default_rng(seed)
    rank = 32
    factors = rng.standard_normal((n, rank)).astype(np.float32)
    X = np.empty((n, n_features), dtype, order="F")
    for first in range(0, n_features, 8192):
        width = min(8192, n_features - first)
        loadings = rng.standard_normal((rank, width)).astype(np.float32) / np.sqrt(rank)
        noise = 0.3 * rng.standard_normal((n, width), dtype=np.float32)
        X[:, first : first + width] = np.maximum(factors @ loadings + noise, 0)
    logits = 6 * factors @ rng.standard_normal((rank, n_classes)) / np.sqrt(rank)
    y = (logits + rng.gumbel(size=(n, n_classes))).argmax(1)
    return X, np.unique(y, return_inverse=True)[1]


def stored(file: Path) -> tuple[np.ndarray, np.ndarray]:
    return np.load(file), np.load(file.with_name(f"{file.stem}_y.npy"))


def objective(X: np.ndarray, y: np.ndarray, lam: float, active: np.ndarray, W: np.ndarray, b: np.ndarray) -> float:
    """Mean cross-entropy + lam * sum of row norms, in float64."""
    Z = X[:, active].astype(np.float64) @ W + b
    top = Z.max(1)
    loss = np.log(np.exp(Z - top[:, None]).sum(1)) + top - Z[np.arange(len(y)), y]
    return float(loss.mean() + lam * np.linalg.norm(W, axis=1).sum())


def work_ours(X: np.ndarray, y: np.ndarray, lams: np.ndarray | None, tol: float) -> tuple[float, np.ndarray, list]:
    from head2toe.solvers import group_lasso

    rng = np.random.default_rng(0)
    group_lasso.path(rng.standard_normal((20, 4)).astype(X.dtype), np.arange(20) % 2)  # loads and compiles
    begun = time.perf_counter()
    path = group_lasso.path(X, y, lams, tol=tol)
    return time.perf_counter() - begun, path.lams, [path.coef(i) for i in range(len(path.lams))]


def work_adelie(X: np.ndarray, y: np.ndarray, lams: np.ndarray, tol: float) -> tuple[float, np.ndarray, list]:
    import adelie  # pyright: ignore[reportMissingImports]  # lives in its own environment, with numpy < 2

    dtype = np.float64 if X.dtype == np.float64 else np.float32
    X, n_classes, threads = np.asfortranarray(X, dtype), int(y.max()) + 1, int(os.environ["OMP_NUM_THREADS"])
    labels = np.eye(n_classes, dtype=dtype)[y]
    exact = {} if dtype == np.float32 else {"tol": tol, "irls_tol": tol}
    begun = time.perf_counter()
    state = adelie.grpnet(
        X=adelie.matrix.dense(X, method="naive", n_threads=threads),
        glm=adelie.glm.multinomial(labels, dtype=dtype),
        lmda_path=lams.astype(dtype) / n_classes**1.5,
        early_exit=False,
        n_threads=threads,
        newton_tol=1e-6 if dtype == np.float32 else 1e-12,
        progress_bar=False,
        **exact,
    )
    seconds = time.perf_counter() - begun
    solutions = []
    for betas, b in zip(state.betas, state.intercepts, strict=True):
        W = np.asarray(betas.todense(), np.float64).reshape(-1, n_classes)
        active = np.flatnonzero(W.any(1))
        solutions.append((active, W[active], np.asarray(b, np.float64)))
    return seconds, np.asarray(state.lmdas, np.float64) * n_classes**1.5, solutions


def worker(which: str, folder: Path, tol: float) -> None:
    """Solve X.npy, y.npy (and lams.npy) of `folder` and leave the solutions there."""
    X, y = np.load(folder / "X.npy"), np.load(folder / "y.npy")
    lams = np.load(folder / "lams.npy") if (folder / "lams.npy").exists() else None
    import_module("torch" if which == "ours" else "adelie")  # libraries do not count as the solver's memory
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if which == "ours":
        seconds, lams, solutions = work_ours(X, y, lams, tol)
    else:
        seconds, lams, solutions = work_adelie(X, y, np.load(folder / "lams.npy"), tol)
    gigabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    parts = {f"{kind}{i}": part for i, s in enumerate(solutions) for kind, part in zip("aWb", s, strict=True)}
    np.savez(folder / f"{which}.npz", lams=lams, seconds=seconds, gigabytes=gigabytes, **parts)


STARTING = 30.0  # seconds that a child process may take to import, load and end, beyond its limit


def run(
    python: str, which: str, folder: Path, tol: float, threads: int, limit: float | None = None
) -> dict[str, np.ndarray]:
    """What a child process solved; subprocess.TimeoutExpired if it took more than `limit` seconds."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    command = [python, __file__, "--worker", which, "--folder", str(folder), "--tol", str(tol)]
    subprocess.run(command, env=environment, check=True, timeout=None if limit is None else limit + STARTING)
    with np.load(folder / f"{which}.npz") as stored:
        return dict(stored)


def compare(X: np.ndarray, y: np.ndarray, name: str, arguments: argparse.Namespace) -> Row:
    """Time both, `repeats` times each in turn, the second at the first's strengths."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / "X.npy", X)
        np.save(folder / "y.npy", y)
        ours, theirs, stopped = [], [], False
        for _ in range(arguments.repeats):
            ours.append(run(sys.executable, "ours", folder, arguments.tol, arguments.threads))
            np.save(folder / "lams.npy", ours[0]["lams"])
            if arguments.adelie_python and not stopped:
                settings = (folder, arguments.tol, arguments.threads, arguments.limit)
                try:
                    theirs.append(run(arguments.adelie_python, "adelie", *settings))
                except subprocess.TimeoutExpired:
                    stopped = True
    ratio = None
    if theirs:
        strengths = ours[0]["lams"]
        values = [
            [objective(X, y, lam, *(one[f"{part}{i}"] for part in "aWb")) for i, lam in enumerate(strengths)]
            for one in (ours[0], theirs[0])
        ]
        ratio = max(mine / other for mine, other in zip(*values, strict=True))

    def median(runs: list[dict[str, np.ndarray]], key: str) -> float | None:
        return statistics.median(float(one[key]) for one in runs) if runs else None

    return Row(
        name,
        len(ours[0][f"a{len(ours[0]['lams']) - 1}"]),
        median(ours, "seconds") or 0.0,
        arguments.limit if stopped else median(theirs, "seconds"),
        median(ours, "gigabytes") or 0.0,
        median(theirs, "gigabytes"),
        ratio,
    )


def shown(row: Row) -> str:
    """A line of the table."""
    theirs, ours = "- | -", f"{row.name} | {row.active} | {row.ours_seconds:.2f}"
    if row.adelie_seconds is not None:
        more = "" if row.worst_objective_ratio is not None else ">= "
        theirs = f"{more}{row.adelie_seconds:.2f} | {more}{row.adelie_seconds / row.ours_seconds:.1f}"
    memory = "-" if row.adelie_gb is None else f"{row.adelie_gb:.2f}"
    excess = "-" if row.worst_objective_ratio is None else f"{row.worst_objective_ratio - 1:.1e}"
    return f"| {ours} | {theirs} | {row.ours_gb:.2f} | {memory} | {excess} |"


def oracle_problem(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A small awkward problem (float64): any shape, with constant, zero, duplicated and badly scaled columns."""
    rng = np.random.default_rng(seed)
    n, n_features, n_classes = int(rng.integers(12, 80)), int(rng.integers(3, 150)), int(rng.integers(2, 7))
    X = rng.standard_normal((n, n_features))
    y = np.concatenate((np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)))
    if seed % 5 == 0:
        X[:, 0] = 3.0
    if seed % 5 == 1:
        X[:, -1] = X[:, 0]
    if seed % 5 == 2:
        X[:, 0] = 10.0 * y  # separable
    if seed % 5 == 3:
        X *= 10.0 ** rng.uniform(-2, 2, n_features)
    if seed % 5 == 4:
        X[:, 0] = 0.0
        y[n_classes:] = np.minimum(y[n_classes:], n_classes - 2)  # one row of the last class
    return X, y


def oracle(arguments: argparse.Namespace) -> None:
    """Random problems: the worst ratio of this package's objective to adelie's (at most 1 + 1e-5 is asked)."""
    from head2toe.solvers import group_lasso

    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed in range(arguments.problems):
            X, y = oracle_problem(seed)
            path = group_lasso.path(X, y, n_lams=8, tol=1e-6)
            for name, array in (("X", X), ("y", y), ("lams", path.lams)):
                np.save(folder / f"{name}.npy", array)
            theirs = run(arguments.adelie_python, "adelie", folder, 1e-12, arguments.threads)
            for i, lam in enumerate(path.lams):
                other = objective(X, y, lam, *(theirs[f"{p}{i}"] for p in "aWb"))
                worst = max(worst, objective(X, y, lam, *path.coef(i)) / other)
    print(f"{arguments.problems} problems, 8 strengths each: worst objective / adelie's - 1 = {worst - 1:.1e}")


def out_of_core(folder: Path, n: int = 2000, n_features: int = 1_000_000) -> None:
    """A path over float16 features that stay on disk: seconds and peak resident memory of the whole process."""
    from head2toe.solvers import group_lasso

    file = folder / "features.f16"
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((n, 32)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:  # not through a map: pages written there would count as resident
        for first in range(0, n_features, 8192):
            width = min(8192, n_features - first)
            noise = 0.3 * rng.standard_normal((n, width), dtype=np.float32)
            values = np.maximum(factors @ rng.standard_normal((32, width)).astype(np.float32) / 6 + noise, 0)
            out.write(values.astype(np.float16).T.tobytes())
    y = (6 * factors @ rng.standard_normal((32, 10)) / 6 + rng.gumbel(size=(n, 10))).argmax(1)
    X = np.memmap(file, np.float16, "r", shape=(n, n_features), order="F")
    written = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    path = group_lasso.path(X, y)
    seconds, peak = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file.unlink()
    print(f"{seconds:.1f} s, {path.n_active[-1]} active, largest gap {path.residuals.max():.1e}")
    print(f"peak resident memory {peak / 1e6:.2f} GB ({written / 1e6:.2f} GB before the path), maps of files included")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adelie-python", help="an interpreter that has adelie 1.1.52")
    parser.add_argument("--features", type=Path, help="folder of real features, NAME.npy and NAME_y.npy")
    parser.add_argument("--rows", nargs="*", default=["*"], help="only rows whose name matches one of these patterns")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, help="seconds after which a run of adelie is stopped; one repeat then")
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--problems", type=int, default=50, help="how many problems --oracle makes")
    parser.add_argument("--oracle", action="store_true", help=oracle.__doc__)
    parser.add_argument("--out-of-core", type=Path, help=out_of_core.__doc__)
    parser.add_argument("--worker", choices=("ours", "adelie"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments.worker, arguments.folder, arguments.tol)
    if arguments.oracle:
        return oracle(arguments)
    if arguments.out_of_core:
        return out_of_core(arguments.out_of_core)
    problems: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
        name: partial(synthetic, *shape) for name, shape in SYNTHETIC.items()
    }
    for file in sorted(arguments.features.glob("*.npy")) if arguments.features else []:
        if not file.stem.endswith("_y"):
            problems[file.stem] = partial(stored, file)
    rows: list[Row] = []
    print("| n x F, C | active | ours s | adelie s | ratio | ours GB | adelie GB | worst objective / adelie's - 1 |")
    for name, make in problems.items():
        if not any(fnmatchcase(name, pattern) for pattern in arguments.rows):
            continue
        row = compare(*make(), name, arguments)
        rows.append(row)
        print(shown(row), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return None


if __name__ == "__main__":
    main()
