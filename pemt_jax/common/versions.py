"""Versions of what the numbers of a run depend on, as cards and checkpoints note them."""

from importlib.metadata import PackageNotFoundError, version

import pemt_jax


def versions() -> dict[str, str]:
    """{package: version} of pemt_jax, jax and flax."""
    found = {"pemt_jax": pemt_jax.__version__}
    for package in ("jax", "flax"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from an archive without package metadata
            found[package] = "unknown"
    return found
