"""Training networks whole: settings, rows in memory, one run, and the choice among runs."""

from head2toe.methods.training.settings import Training

__all__ = ["Training"]
