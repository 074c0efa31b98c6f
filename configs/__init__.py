"""gin configurations, installed as pemt_jax.configs; one folder a purpose."""
