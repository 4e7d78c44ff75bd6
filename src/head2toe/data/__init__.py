"""Labelled inputs: where rows come from and what a task is."""
