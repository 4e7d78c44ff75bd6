"""What a training is told, and one of the runs that it chooses from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from head2toe.errors import DataError

Augment = Literal["none", "shift", "shift+flip"]
Optimizer = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class Training:
    """How a network is trained; of `lrs`, `steps` and `augments` held-out accuracy chooses, one after the other.

    A run is AdamW with decoupled weight decay, or gradient descent with Nesterov momentum 0.9 and an l2 penalty, either
    on matrices and kernels alone; a linear warm-up over the first twentieth of the steps and a cosine to zero,
    gradients clipped to norm 1. The default rates are AdamW's; "sgd" wants ten to a hundred times larger ones. "shift"
    moves each picture by up to a sixteenth of its side, repeating its edge; "shift+flip" also mirrors half of them.
    Either can change the answer where a task asks for a position, an orientation or a digit, so that "none" comes
    first.
    """

    lrs: Sequence[float] = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
    steps: Sequence[int] = (200, 800, 3200)
    augments: Sequence[Augment] = ("none", "shift")
    batch_size: int = 32
    weight_decay: float = 0.01
    seed: int = 0
    optimizer: Optimizer = "adamw"

    def __post_init__(self) -> None:
        if not (self.lrs and self.steps and self.augments):
            raise DataError("Training: give at least one learning rate, one number of steps and one augmentation")
        for lr in self.lrs:
            if not (math.isfinite(lr) and lr > 0):
                raise DataError(f"Training: a learning rate is a positive number, got {lr}")
        for steps in self.steps:
            if steps < 0:
                raise DataError(f"Training: the number of steps cannot be negative, got {steps}")
        for augment in self.augments:
            if augment not in get_args(Augment):
                raise DataError(f"Training: augmentations are {', '.join(get_args(Augment))}; got '{augment}'")
        if self.optimizer not in get_args(Optimizer):
            raise DataError(f"Training: the optimizer is {' or '.join(get_args(Optimizer))}, got '{self.optimizer}'")
        if self.batch_size < 2:
            raise DataError(f"Training: batch normalisation needs batches of at least 2, got {self.batch_size}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise DataError(f"Training: the weight decay is a number of at least 0, got {self.weight_decay}")


@dataclass(frozen=True)
class Run:
    """One choice of settings."""

    lr: float
    steps: int
    augment: Augment

    def __str__(self) -> str:
        return f"lr {self.lr!r}, {self.steps} steps, augmentation {self.augment}"
