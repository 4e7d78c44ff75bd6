"""Pretrained networks: one file per family, one way to load them all."""
