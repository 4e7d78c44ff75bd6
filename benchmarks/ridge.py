"""Ridge for 5 folds x 8 strengths against the one product X X' that it needs.

python benchmarks/ridge.py --rows 1000 --features 100000 --classes 10
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from group_lasso import synthetic
from head2toe.solvers import ridge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--features", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    X, y = synthetic(arguments.rows, arguments.features, arguments.classes, "float32")
    folds = np.random.default_rng(0).permutation(len(y)) % 5
    product, whole, logits = [], [], np.zeros((8, len(y), arguments.classes))
    for _ in range(arguments.repeats):
        begun = time.perf_counter()
        scale = float(np.trace(X @ X.T)) / len(y)
        product.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        K = ridge.gram(X)
        logits = ridge.cross_validate(K, y, scale * 10.0 ** np.arange(-7, 1), folds, tol=1e-3)
        whole.append(time.perf_counter() - begun)
    accuracy = (logits.argmax(2) == y).mean(1)
    one, all_fits = float(np.median(product)), float(np.median(whole))
    print(f"X X' {one:.2f} s; Gram, eigenvectors and 40 fits {all_fits:.2f} s: {all_fits / one:.2f} times the product")
    print("out-of-fold accuracy by strength:", np.round(accuracy, 3))


if __name__ == "__main__":
    main()
