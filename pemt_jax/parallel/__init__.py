"""Meshes and shardings, and several processes that are one run."""
