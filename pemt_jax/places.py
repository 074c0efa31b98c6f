"""Where things are kept that can be made again: downloads, tokens, compiled steps."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$PEMT_JAX_CACHE, else ~/.cache/pemt_jax; it need not exist."""
    return Path(os.environ.get("PEMT_JAX_CACHE") or "~/.cache/pemt_jax").expanduser()
