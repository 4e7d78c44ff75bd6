"""Transfer learning from all layers of a frozen network."""

__version__ = "0.1.0"
