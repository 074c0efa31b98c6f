"""Runs: built from their configuration, published, opened again."""
