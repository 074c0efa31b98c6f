"""gin files for T5X, which finds them as pemt_jax/configs/t5x/FILE without a search path."""
