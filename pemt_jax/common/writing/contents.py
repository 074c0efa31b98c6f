"""What a folder is, by the files in it: nothing else is written into one that is complete."""

import re
from pathlib import Path

from pemt_jax.common import storage
from pemt_jax.common.errors import UsageError

WEIGHTS = tuple(
    f"{name}{index}"
    for name in ("model.safetensors", "pytorch_model.bin")
    for index in ("", ".index.json")
)
# What a folder is in which one file of each group is found.
SIGNS = {
    "an artefact": (("card.json",),),
    "a base model": (("config.json",), WEIGHTS),
    "a PEFT adapter": (("adapter_config.json",),),
    "a checkpoint": (("_CHECKPOINT_METADATA", "manifest.ocdbt", "_METADATA"),),
}


def complete_folder(place: Path) -> tuple[Path, str] | None:
    """The folder that is `place` or contains it and is complete, and what it is."""
    for folder in (place, *place.parents):
        if storage.is_remote(place) and len(folder.parts) <= 3:
            return None  # a bucket
        for what, groups in SIGNS.items():
            if all(any((folder / name).is_file() for name in group) for group in groups):
                return folder, what
        if re.fullmatch(r"checkpoint_\d+", folder.name) and (folder / "checkpoint").is_file():
            return folder, "a checkpoint"
        if not storage.is_remote(folder) and any(folder.glob("[0-9]*/manifest/metadata")):
            return folder, "a run's folder of checkpoints"
    return None


def check_outside(setting: str, place: Path, replaces: bool = False) -> None:
    """Raise UsageError when what the setting names is such a folder, or would be inside one.

    With `replaces` it may be one.
    """
    if found := complete_folder(place.resolve().parent if replaces else place.resolve()):
        folder, what = found
        where = "is" if folder == place.resolve() else f"is inside {folder},"
        raise UsageError(f"{setting} {place} {where} {what}, expected a place outside of it.")
