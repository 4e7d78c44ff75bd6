"""How early a group-lasso path may stop, and how it should rank features: accuracy of the layer on the best of them.

    python benchmarks/ranking.py PACK... --store STORE

Each PACK is a task whose features at the target size lie in STORE. Rankings are made within folds; how many features to
keep and the l2 strength are chosen by cross-validation, and the test accuracy is that of the choice.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import head2toe as h2t
from head2toe.methods.design import Design, design_of
from head2toe.methods.final import STRENGTHS, fit, held_out_right
from head2toe.methods.problem import Problem, prepare
from head2toe.methods.relevance import kept_sets, relevance
from head2toe.methods.scores import PATH_TOLERANCE, Evidence
from head2toe.selection import n_kept
from head2toe.solvers import group_lasso, ridge
from head2toe.solvers.matrix import columns
from head2toe.taps import Pool

KEEP = (0.1, 0.05, 0.02, 0.01, 0.005)
STOPS = (30, 100, 300)  # active features that end a path; it ends at 5 % of lam_max at the latest

Ranking = Callable[[group_lasso.Path], np.ndarray]


def at_the_end(path: group_lasso.Path) -> np.ndarray:
    """The norm at the last strength."""
    n_features = len(path.gradient_norms)
    scores = np.zeros(n_features)
    active, W, _ = path.coef(len(path.lams) - 1)
    scores[active] = np.linalg.norm(W, axis=1)
    return scores


def along(path: group_lasso.Path) -> np.ndarray:
    """The mean norm over the strengths."""
    scores = np.zeros(len(path.gradient_norms))
    for i in range(len(path.lams)):
        active, W, _ = path.coef(i)
        scores[active] += np.linalg.norm(W, axis=1) / len(path.lams)
    return scores


def entry(path: group_lasso.Path) -> np.ndarray:
    """How early a feature becomes active; among those of one strength, its norm there."""
    scores = np.zeros(len(path.gradient_norms))
    for i in range(len(path.lams)):
        active, W, _ = path.coef(i)
        new = scores[active] == 0
        norms = np.linalg.norm(W[new], axis=1)
        scores[active[new]] = len(path.lams) - i + norms / (1.0 + norms)
    return scores


def gradient(path: group_lasso.Path) -> np.ndarray:
    """The gradient's norm at the last strength alone."""
    return path.gradient_norms


RANKINGS: dict[str, Ranking] = {
    "norm at the end": at_the_end,
    "norm along": along,
    "entry": entry,
    "gradient": gradient,
}


def completed(path: group_lasso.Path, ranking: Ranking) -> np.ndarray:
    """A ranking's scores, features that it does not know below, in the order of their gradient norms."""
    scores, norms = ranking(path), path.gradient_norms
    known = scores > 0
    least = scores[known].min(initial=1.0)
    return np.where(known, scores, 0.5 * least * norms / max(norms.max(), 1e-30))


@dataclass(frozen=True, eq=False)
class Study:
    """A pack at one target size: how it is divided, its features, and those of the test images."""

    name: str
    problem: Problem
    design: Design
    test: tuple[np.ndarray, ...]
    test_labels: np.ndarray

    def evidence(self) -> Evidence:
        nobody = np.zeros(len(self.problem.labels), dtype=bool)
        return Evidence(self.design, self.design.gram(), self.problem.labels, self.problem.n_classes, nobody)

    def judge(self, score: Callable[[Evidence], np.ndarray]) -> tuple[float, float, float]:
        """(keep fraction, its cross-validated accuracy, test accuracy) of the best of KEEP by these scores."""
        evidence, labels = self.evidence(), self.problem.labels
        counts = sorted((n_kept(self.design.n_features, fraction) for fraction in KEEP), reverse=True)

        def right(held_out: np.ndarray) -> np.ndarray:
            fold = replace(evidence, held_out=held_out)
            kept = kept_sets(fold, counts, score(fold))
            return np.array([held_out_right(one.gram, labels, held_out, one.fits) for one in kept])

        accuracy = self.problem.over_folds(right) / len(labels)
        best = int(accuracy.max(1).argmax())
        (kept,) = kept_sets(evidence, [counts[best]], score(evidence))
        features = columns(self.design.blocks).take(kept.index, np.float32)
        strength = float(STRENGTHS[accuracy[best].argmax()])
        layer = fit(features, ridge.gram(features), labels, strength, self.problem.n_classes)
        logits = columns(self.test).take(kept.index) @ layer.W + layer.b
        test = float((logits.argmax(1) == self.test_labels).mean())
        return counts[best] / self.design.n_features, float(accuracy.max()), test


def study_of(pack: Path, backbone: str, store: str, target_size: int) -> Study:
    task, pool = h2t.load_task(str(pack)), Pool(target_size)
    problem = prepare(h2t.load_backbone(backbone), task, store, [pool])
    if task.test is None:
        raise SystemExit(f"ranking: {pack} has no test split")
    design = design_of(problem.table(pool))
    return Study(pack.name, problem, design, design.like(problem.test_table(pool, problem.tap_names)), task.test.labels)


def path_of(evidence: Evidence, stop_at: int) -> group_lasso.Path:
    return group_lasso.path(
        evidence.design.blocks,
        evidence.labels,
        n_classes=evidence.n_classes,
        sample_weight=(~evidence.held_out).astype(np.float64),
        tol=PATH_TOLERANCE,
        stop_at=stop_at,
    )


def show(study: Study, stop: str, ranking: str, score: Callable[[Evidence], np.ndarray]) -> None:
    keep, chosen, test = study.judge(score)
    print(f"| {study.name} | {stop} | {ranking} | {keep:.3f} | {100 * chosen:.1f} | {100 * test:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", nargs="+", type=Path)
    parser.add_argument("--store", required=True)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--target-size", type=int, default=512)
    arguments = parser.parse_args()
    print("| pack | stop at | ranking | keep | cross-validated | test |", flush=True)
    for pack in arguments.packs:
        study = study_of(pack, arguments.backbone, arguments.store, arguments.target_size)
        show(study, "-", "elimination", lambda evidence: relevance(evidence, "elimination"))
        for stop in STOPS:
            for name, ranking in RANKINGS.items():
                show(study, str(stop), name, lambda evidence, s=stop, r=ranking: completed(path_of(evidence, s), r))


if __name__ == "__main__":
    main()
