"""PEMT in JAX: experts trained on source tasks, mixed by a learned gate on a target task."""

__version__ = "0.1.0"
