"""The base that ships with the package, and the name by which it can be given."""

from pathlib import Path

MINI_T5 = str(Path(__file__).parents[1] / "assets" / "mini_t5")


def base_path(name: str) -> str:
    """Where a base is: the packaged one for "mini_t5", unless a folder here has that name."""
    return MINI_T5 if name == "mini_t5" and not Path(name).exists() else name
