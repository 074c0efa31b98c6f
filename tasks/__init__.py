"""SeqIO tasks, installed as pemt_jax.tasks; importing it registers them and reads no data."""

import os
import sys

if sys.argv[:1] == ["-m"]:  # `python -m pemt_jax.tasks`: this is imported before __main__
    from pemt_jax.cli.startup import silence_libraries

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no word about missing accelerators
    silence_libraries()

import seqio  # noqa: E402

from pemt_jax.tasks import datasets  # noqa: E402
from pemt_jax.tasks.demo import sentiment as demo  # noqa: E402
from pemt_jax.tasks.descriptions import description, register_description  # noqa: E402
from pemt_jax.tasks.pretraining import corpus as pretraining  # noqa: E402
from pemt_jax.tasks.registry import Dataset, register  # noqa: E402
from pemt_jax.tasks.sources import cached  # noqa: E402

__all__ = [
    "Dataset",
    "datasets",
    "demo",
    "description",
    "pretraining",
    "register",
    "register_description",
]

seqio.add_global_cache_dirs([cached.default_folder()])
