"""Checkpoints of a run: written, verified, restored."""
