"""SeqIO tasks, installed as pemt_jax.tasks; importing it registers them and reads no data."""

from pemt_jax.tasks import datasets, demo, pretraining
from pemt_jax.tasks.descriptions import description, register_description
from pemt_jax.tasks.registry import Dataset, register

__all__ = ["Dataset", "datasets", "demo", "description", "pretraining", "register",
           "register_description"]
