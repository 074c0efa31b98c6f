"""SeqIO tasks, installed as pemt_jax.tasks; importing it registers them and reads no data.

Besides SeqIO's registries an import changes nothing: no environment variable, no log level, no
global cache folder of SeqIO.
"""

import sys

# `python -m pemt_jax.tasks` imports this package before __main__, and with it TensorFlow, whose
# notes about missing accelerators cannot be taken back. Nothing but the command line tells the two
# apart: sys.argv[0] is "-m" while Python is still looking for the module to run.
if sys.argv[:1] == ["-m"] and any(word.startswith(__name__) for word in sys.orig_argv):
    import os

    from pemt_jax.cli.startup import silence_libraries

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    silence_libraries()

from pemt_jax.tasks import datasets  # noqa: E402
from pemt_jax.tasks.demo import sentiment as demo  # noqa: E402
from pemt_jax.tasks.descriptions import description, register_description  # noqa: E402
from pemt_jax.tasks.pretraining import corpus as pretraining  # noqa: E402
from pemt_jax.tasks.registry import Dataset, register  # noqa: E402
from pemt_jax.tasks.rows import from_rows  # noqa: E402

__all__ = [
    "Dataset",
    "datasets",
    "demo",
    "description",
    "from_rows",
    "pretraining",
    "register",
    "register_description",
]
