"""The main job on data that every installation has: scikit-learn's digits on the bundled backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from head2toe.data import Task, task_from_arrays
from head2toe.present import Demo, fit_report

N_TRAIN = 800
SIZES = (512,)  # eight pixels a side have no finer positions
METHODS = ("linear", "all-l2", "head2toe")


def run(out: Path, store: str | None = None) -> Demo:
    """Fit every method on 800 digits, test on the other 997, and leave the Head2Toe head and a sample in `out`."""
    from PIL import Image

    from head2toe.backbones import load_backbone
    from head2toe.head import Head, check_target
    from head2toe.methods import method_named
    from head2toe.methods.problem import Journal

    check_target(out / "head")
    task, images = digits()
    backbone = load_backbone("efficientnet_lite0")
    heads, reports = {}, {}
    extract_seconds = 0.0
    for name in reversed(METHODS):  # Head2Toe first: it reads every tap, so that one pass serves all three
        journal = Journal()
        head = method_named(name, target_sizes=SIZES).fit(backbone, task, store, journal=journal)
        assert isinstance(head, Head)
        heads[name] = head
        extract_seconds += journal.seconds["extract"] + journal.seconds.get("extract_test", 0.0)
        reports[name] = fit_report(heads[name], backbone, journal)
    heads["head2toe"].save_pretrained(out / "head")
    sample = out / "digit.png"
    Image.fromarray(images[N_TRAIN]).save(sample)
    next_command = f"head2toe predict {out / 'head'} {sample}"
    return Demo(tuple(reports[name] for name in METHODS), heads["head2toe"], extract_seconds, next_command)


def digits() -> tuple[Task, np.ndarray]:
    """The digits as a task (first 800 of a seeded shuffle to train), and its images (1797, 8, 8) uint8."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = np.rint(np.asarray(pixels)[order].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = np.asarray(labels)[order]
    rest = (images[N_TRAIN:], labels[N_TRAIN:])
    return task_from_arrays(images[:N_TRAIN], labels[:N_TRAIN], test=rest, name="digits"), images
