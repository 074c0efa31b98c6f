"""SeqIO tasks, installed as pemt_jax.tasks; importing it registers them and reads no data."""

from pemt_jax.tasks import demo, pretraining
from pemt_jax.tasks.descriptions import description, register_description

__all__ = ["demo", "description", "pretraining", "register_description"]
