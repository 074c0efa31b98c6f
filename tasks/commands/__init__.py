"""The commands of `python -m pemt_jax.tasks`."""
