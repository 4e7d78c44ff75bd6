"""How early may a group-lasso path stop, and how should it rank features? Told by accuracy of the layer on the best.

    python benchmarks/ranking.py packs/nlvr_count packs/sign_digits --store STORE

Each pack is a task with a test split; STORE keeps its features, and is filled where it lacks them. A path runs within
each fold to the first strength with so many active features, and at the latest to 5 % of lam_max. It ranks the features
that have been active by their norm at the last strength, by the mean norm along the path or by order of entry, the
others after them by their gradient's norm at the end; or all by that norm. Keep fraction and l2 strength are chosen by
the same folds. Printed as they come: a line per pack, stop and ranking; at the end the table of them all, each entry
the cross-validated / the test accuracy in per cent, the last column the mean over packs. The same seed gives the same
table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import head2toe as h2t
from head2toe.backbones.core import Backbone
from head2toe.methods.design import Design, design_of
from head2toe.methods.final import STRENGTHS, fit, held_out_right
from head2toe.methods.problem import Problem, prepare
from head2toe.methods.relevance import kept_sets, relevance
from head2toe.methods.scores import Evidence, group_lasso_path
from head2toe.selection import n_kept
from head2toe.solvers import group_lasso, ridge
from head2toe.solvers.matrix import columns
from head2toe.taps import Pool

KEEP = (0.1, 0.05, 0.02, 0.01, 0.005)

Scores = Mapping[str, np.ndarray]
Accuracies = dict[tuple[str, str], dict[str, "Verdict"]]


@dataclass(frozen=True)
class Verdict:
    """The keep fraction that cross-validation chose, its accuracy there, and on the test images."""

    keep: float
    cross_validated: float
    test: float


@dataclass(frozen=True, eq=False)
class Study:
    """A pack at one target size: its training features, how they are divided, and those of the test images."""

    name: str
    problem: Problem
    evidence: Evidence
    test: tuple[np.ndarray, ...]
    test_labels: np.ndarray

    @staticmethod
    def of(pack: Path, backbone: Backbone, store: str | None, target_size: int, seed: int) -> Study:
        task, pool = h2t.load_task(str(pack)), Pool(target_size)
        if task.test is None:
            raise SystemExit(f"ranking: {pack} has no test split to compare rankings on")
        problem = prepare(backbone, task, store, [pool], seed=seed)
        design = design_of(problem.table(pool))
        nobody = np.zeros(len(problem.labels), dtype=bool)
        evidence = Evidence(design, design.gram(), problem.labels, problem.n_classes, nobody, seed)
        test = design.like(problem.test_table(pool, problem.tap_names))
        return Study(pack.name, problem, evidence, test, task.test.labels)

    @property
    def design(self) -> Design:
        return self.evidence.design

    def judge(self, score: Callable[[Evidence], Scores]) -> dict[str, Verdict]:
        """What each of the rankings that `score` gives by name leads to; it is asked once a fold and once for all."""
        counts = sorted((n_kept(self.design.n_features, fraction) for fraction in KEEP), reverse=True)
        labels, of_all = self.problem.labels, score(self.evidence)

        def right(held_out: np.ndarray) -> np.ndarray:
            fold = replace(self.evidence, held_out=held_out)
            known = score(fold)
            sets = [kept_sets(fold, counts, known[name]) for name in of_all]
            return np.array([[held_out_right(s.gram, labels, held_out, s.fits) for s in one] for one in sets])

        accuracies = self.problem.over_folds(right) / self.problem.n_held_out
        return {
            name: self._tested(of_all[name], counts, accuracy)
            for name, accuracy in zip(of_all, accuracies, strict=True)
        }

    def _tested(self, scores: np.ndarray, counts: list[int], accuracy: np.ndarray) -> Verdict:
        """Fit and test what is best by the cross-validated `accuracy` (counts, strengths)."""
        count, strength = np.unravel_index(accuracy.argmax(), accuracy.shape)
        (kept,) = kept_sets(self.evidence, [counts[count]], scores)
        features = self.design.features(kept.index)
        layer = fit(
            features, ridge.gram(features), self.problem.labels, float(STRENGTHS[strength]), self.problem.n_classes
        )
        logits = columns(self.test).take(kept.index) @ layer.W + layer.b
        test = float((logits.argmax(1) == self.test_labels).mean())
        return Verdict(counts[count] / self.design.n_features, float(accuracy.max()), test)


def rankings(path: group_lasso.Path) -> Scores:
    """Every ranking of a path's features, by name."""
    norms = np.zeros((len(path.lams), len(path.gradient_norms)))
    for i in range(len(path.lams)):
        active, W, _ = path.coef(i)
        norms[i, active] = np.linalg.norm(W, axis=1)
    entered = norms.any(0) * (len(path.lams) - (norms > 0).argmax(0))  # strengths since it became active
    first = norms[(norms > 0).argmax(0), np.arange(norms.shape[1])]
    return {
        "norm at the end": _others_after(norms[-1], path.gradient_norms),
        "mean norm along the path": _others_after(norms.mean(0), path.gradient_norms),
        "order of entry": _others_after(entered + first / (1.0 + first), path.gradient_norms),
        "gradient at the end": path.gradient_norms,
    }


def _others_after(scores: np.ndarray, gradient_norms: np.ndarray) -> np.ndarray:
    """Scores (F,), those that are 0 replaced by smaller ones in the order of the gradient's norms."""
    known = scores > 0
    least = scores[known].min(initial=1.0)
    return np.where(known, scores, 0.5 * least * gradient_norms / max(float(gradient_norms.max()), 1e-30))


def show(rows: Accuracies, packs: list[str]) -> None:
    print(f"\n| stop at | ranking | {' | '.join(packs)} | mean |\n|{'---|' * (len(packs) + 3)}")
    for (stop, ranking), verdicts in rows.items():
        pairs = np.array([(verdicts[pack].cross_validated, verdicts[pack].test) for pack in packs])
        entries = [f"{100 * a:.1f} / {100 * b:.1f}" for a, b in (*pairs, pairs.mean(0))]
        print(f"| {stop} | {ranking} | {' | '.join(entries)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", nargs="+", type=Path, help="folders of tasks")
    parser.add_argument("--store", help="feature store; by default the one that head2toe itself would use")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--target-size", type=int, default=512)
    parser.add_argument("--stops", type=int, nargs="+", default=[3, 10, 30, 100, 300], help="active features")
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    options = parser.parse_args()
    backbone, rows = h2t.load_backbone(options.backbone), Accuracies()
    for pack in options.packs:
        study = Study.of(pack, backbone, options.store, options.target_size, options.seed)

        def judge(stop: str, score: Callable[[Evidence], Scores], study: Study = study) -> None:
            for ranking, verdict in study.judge(score).items():
                rows.setdefault((stop, ranking), {})[study.name] = verdict
                print(study.name, stop, ranking, verdict, sep="  ", file=sys.stderr, flush=True)

        judge("-", lambda evidence: {"elimination": relevance(evidence, "elimination")})
        for stop in options.stops:
            judge(str(stop), lambda evidence, stop=stop: rankings(group_lasso_path(evidence, stop)))
    show(rows, [pack.name for pack in options.packs])


if __name__ == "__main__":
    main()
