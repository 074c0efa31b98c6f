"""A pretrained T5 from one format into another.

Arrays pass through memory one by one, so the model may be larger than memory. The names, shapes and
ties of all of them are checked before the first is written. The result appears complete, and only
at a free path or in place of what this module has written, as its SHA256SUMS lists it: never in
place of a folder with other files. Vocabulary files beside the weights are copied.
"""

import shutil
from pathlib import Path

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.flat_config import choose
from pemt_jax.common.hashing import SUMS, unlisted, write_checksums
from pemt_jax.common.storage import replacing_folder
from pemt_jax.common.writing.contents import check_outside
from pemt_jax.config import base_path
from pemt_jax.interop import hf, t5x
from pemt_jax.interop.base import open_base, verify_base
from pemt_jax.interop.hf_config import check_savable
from pemt_jax.interop.t5x_shapes import check_savable as check_savable_t5x
from pemt_jax.library.hub_names import TOKENIZER, local_folder

FORMATS = ("hf", "t5x")
DTYPES = ("float32", "bfloat16")


def convert(source: str, target: str, target_format: str, dtype: str | None = None) -> None:
    """Write the pretrained T5 at `source` to `target`.

    Args:
        source: any path that `interop.base` reads, or "mini_t5".
        target: a folder; one that was written here is replaced.
        target_format: "hf" or "t5x"; with "t5x", `target` is a checkpoint_N or gets a checkpoint_0.
        dtype: "float32" or "bfloat16"; None for each array's own.

    Raises:
        UsageError: `target` is something else, or there is no such format or dtype.
        PemtError: `source` cannot be converted, or writing fails.
    """
    choose("--format", target_format, FORMATS)
    choose("--dtype", dtype or DTYPES[0], DTYPES)
    folder, source = storage.path(target), base_path(source)
    verify_base(source)
    config, params = open_base(source)
    (check_savable if target_format == "hf" else check_savable_t5x)(config)
    place = storage.path(local_folder(source))
    _check_target(folder, place)
    vocabulary = [file for name in TOKENIZER if (file := place / name).is_file()]
    try:
        with replacing_folder(folder) as partial:
            is_step = target_format == "hf" or t5x.STEP.fullmatch(folder.name)
            weights = partial if is_step else partial / "checkpoint_0"
            if target_format == "hf":
                hf.save_hf(weights, config, params, dtype)
            else:
                t5x.save_t5x(weights, params, dtype)
            for file in vocabulary:
                with storage.fetched(file) as copy:
                    shutil.copyfile(copy, partial / file.name)
            write_checksums(weights)
            if vocabulary and weights != partial:
                write_checksums(partial)
    except OSError as error:
        raise PemtError(f"Cannot write {target}: {storage.reason(error)}.") from error


def _check_target(target: Path, source: Path) -> None:
    """Raise UsageError where something would be lost."""
    check_outside("--to", target, replaces=True)
    if not target.exists() and not target.is_symlink():
        return
    if target.resolve() in (here := source.resolve(), *here.parents):
        raise UsageError(f"--to {target} is or contains the source, expected another folder.")
    if target.is_symlink() or not target.is_dir():
        raise UsageError(f"--to {target} is a file or a link, expected a folder.")
    if others := unlisted(target):
        raise UsageError(
            f"--to {target} contains {others[0]!r}, which no {SUMS} of this command lists, "
            "expected a new folder."
        )
