"""Versions of what the numbers of a run depend on, as cards and checkpoints note them."""

from importlib.metadata import PackageNotFoundError, version

VERSION = "0.2.0"  # of this package; setup.py has it too


def versions() -> dict[str, str]:
    """{package: version} of pemt_jax, jax and flax."""
    found = {"pemt_jax": VERSION}
    for package in ("jax", "flax"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from an archive without package metadata
            found[package] = "unknown"
    return found
