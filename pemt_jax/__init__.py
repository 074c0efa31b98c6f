"""PEMT in JAX: experts trained on source tasks, mixed by a learned gate on a target task.

The public names are those of pemt_jax.api, imported at their first use: `import pemt_jax` itself
loads neither JAX nor TensorFlow.
"""

# ruff: noqa: F403, F405  (the names of api are listed below)

from pathlib import Path
from typing import TYPE_CHECKING

from pemt_jax.common.versions import VERSION

__version__ = VERSION

# In a checkout, which `python -m` finds before what is installed, pemt_jax.tasks and
# pemt_jax.configs are beside this folder.
if not (Path(__file__).parent / "tasks").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

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
