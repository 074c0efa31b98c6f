"""PEMT in JAX: experts trained on source tasks, mixed by a learned gate on a target task.

The public names are those of pemt_jax.api, imported at their first use: `import pemt_jax` itself
loads neither JAX nor TensorFlow.
"""

# ruff: noqa: F403, F405  (the names of api are listed below)

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pemt_jax.common.errors import end_at_interrupt
from pemt_jax.common.versions import VERSION

# A command imports for seconds before it is called. sys.argv[0] is "-m" while Python is still
# looking for the module to run.
if (sys.argv[:1] == ["-m"] and any(word.startswith(__name__) for word in sys.orig_argv)) or (
    os.path.basename(sys.argv[0] if sys.argv else "") == "pemt-jax"
):
    end_at_interrupt()

__version__ = VERSION


class _BesideThis:
    """Finds pemt_jax.tasks and pemt_jax.configs in a checkout, where they are beside this folder.

    `python -m` finds the checkout that it is called in before what is installed.
    """

    @staticmethod
    def find_spec(name: str, path=None, target=None):
        folder = Path(__file__).parents[1] / name.removeprefix(f"{__name__}.")
        if name not in (f"{__name__}.tasks", f"{__name__}.configs") or not folder.is_dir():
            return None
        return importlib.util.spec_from_file_location(name, folder / "__init__.py")


if importlib.util.find_spec(f"{__name__}.tasks") is None:
    sys.meta_path.append(_BesideThis)

if TYPE_CHECKING:
    from pemt_jax.api import *

__all__ = [
    "Dataset",
    "Library",
    "Model",
    "Optimizer",
    "PemtConfig",
    "Prediction",
    "Schedule",
    "T5Config",
    "TrainConfig",
    "adapt",
    "open_model",
    "task",
    "train_expert",
    "train_run",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pemt_jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
