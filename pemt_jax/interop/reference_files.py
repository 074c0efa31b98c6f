"""The files that the authors' code (JachinLin2022/PEMT) leaves behind.

    stage 1    lora.pt (the expert), task_embedding.pt (its prompt)
    stage 2    adapter.pt (the target adapters), task_embedding.pt (the target prompt)
    either     pytorch_model.bin, the whole state dict, where its Trainer has kept one

The gates and layer norms that stage 2 trains are in the last one only. None is ever unpickled as
Python would: see torch_files.py.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.interop.torch_files import load_torch_file

WHOLE = "pytorch_model.bin"
STAGES = {1: ("lora.pt", "task_embedding.pt"), 2: ("adapter.pt", "task_embedding.pt")}


def load_reference(path: str | os.PathLike, stage: int) -> dict[str, np.ndarray]:
    """Read the authors' tensors of a stage: a folder of theirs, or the file of a state dict.

    Of a folder of stage 2 the whole state dict is read if it is there, since the other files lack
    the gates; of one of stage 1 only if the two small files are not.

    Raises:
      UsageError: nothing of that stage is there. PemtError: see `load_torch_file`.
    """
    path, names = Path(path), STAGES[stage]
    if path.is_file():
        return load_torch_file(path)
    small = all((path / name).is_file() for name in names)
    if (path / WHOLE).is_file() and not (small and stage == 1):
        return load_torch_file(path / WHOLE)
    if not small:
        found = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
        raise UsageError(
            f"Expected {' and '.join(names)}, or {WHOLE}, in {path}, found "
            f"{', '.join(found[:9]) or 'none'}."
        )
    tensors = {}
    for name in names:
        tensors |= load_torch_file(path / name)
    return tensors


def check_backbone(
    params: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray], source: str
) -> None:
    """Raise PemtError where `params` differ from the frozen parameters `base` of the same names."""
    for path, array in params.items():
        if path in base and not np.array_equal(array, base[path]):
            raise PemtError(
                f"{source} differs from the base or the experts given in {path}, "
                "expected the very ones it was trained on."
            )
