"""PyTorch's own weight files (`.pt`, `.bin`), read without executing anything.

Such a file is a pickle, and a pickle can run any program when it is opened. torch's `weights_only`
loading interprets the few instructions that tensors need and refuses all others; before version 2.6
it could be tricked, so an older torch is refused. torch is an extra of this package.
"""

import contextlib
import importlib
import io
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pemt_jax.common.errors import PemtError, nearest

SAFE_VERSION = (2, 6)


def load_torch_file(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the state dict in `path`: tensor name -> array, each in its stored dtype.

    Arrays of a file in today's (zip) format are views of the mapped file: memory is used only for
    those that are touched. bfloat16 is NumPy's `ml_dtypes.bfloat16`.

    Raises:
      PemtError: torch is missing or too old; no such file; a damaged one; one that asks to execute
        code, which is not executed; one that holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise PemtError(f"There is no weight file {path}{nearest(path.name, siblings)}.")
    torch = _safe_torch(path)
    try:
        mapped = zipfile.is_zipfile(path)  # as since torch 1.6; only these can be mapped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise PemtError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged or hostile pickle can raise whatever it likes
        raise _refusal(path, str(error)) from error
    if not isinstance(content, Mapping):
        raise PemtError(
            f"{path} holds a {type(content).__name__}, expected a state dict of named tensors."
        )
    return {name: _to_numpy(torch, path, name, value) for name, value in content.items()}


def _safe_torch(path: Path):
    """The torch module; PemtError when there is none or one whose weights_only is not safe."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise PemtError(
            f"Reading {path} needs torch, which is not installed, expected after "
            'pip install "pemt_jax[torch]".'
        ) from error
    found = tuple(int(part) for part in re.findall(r"\d+", str(torch.__version__))[:2])
    if found < SAFE_VERSION:
        raise PemtError(
            f"Reading {path} needs torch 2.6 or later, found {torch.__version__}, "
            "which can be tricked into executing code in weight files."
        )
    return torch


def _refusal(path: Path, message: str) -> PemtError:
    match = re.search(r"(?:Unsupported|disallowed) (?:global: GLOBAL )?([\w.]+\.\w+)", message)
    if wanted := match[1] if match else _foreign_name(path):
        return PemtError(
            f"{path} asks to run {wanted} when it is opened, expected nothing but "
            "tensors; nothing was executed."
        )
    return PemtError(
        f"Expected a whole file of torch tensors at {path}, found "
        f"{path.stat().st_size} bytes that are truncated, damaged or of another "
        "format."
    )


def _foreign_name(path: Path) -> str | None:
    """The first name in the pickles of a file that is none of torch's; nothing is unpickled.

    What torch says of such a name depends on its version and on the pickle's.
    """
    with contextlib.suppress(Exception):  # a damaged pickle ends anywhere
        content = path.read_bytes() if not zipfile.is_zipfile(path) else _pickle_in(path)
        stream, texts = io.BytesIO(content), []
        while True:  # files of before torch 1.6 have several
            for operation, argument, _ in pickletools.genops(stream):
                if isinstance(argument, str) and operation.name not in ("GLOBAL", "INST"):
                    texts.append(argument)
                    continue
                if operation.name not in ("GLOBAL", "INST", "STACK_GLOBAL"):
                    continue
                name = argument.replace(" ", ".") if argument else ".".join(texts[-2:])
                if name.partition(".")[0] not in ("torch", "collections", "_codecs"):
                    return name
    return None


def _pickle_in(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))


def _to_numpy(torch, path: Path, name: object, value: Any) -> np.ndarray:
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise PemtError(
            f"{path} holds a {type(value).__name__} under {name!r}, expected named tensors only."
        )
    tensor = value.detach()
    try:
        if tensor.dtype == torch.bfloat16:  # NumPy has none of its own
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised, on no device
        raise PemtError(
            f"Tensor {name!r} in {path} is {tensor.layout} of {tensor.dtype}, expected "
            "a dense one of a dtype that NumPy has."
        ) from error
