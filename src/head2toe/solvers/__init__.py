"""Softmax regression on plain matrices: features, labels and strengths, nothing else."""
