"""A pretrained T5 from one neighbour's form into another's.

    python -m pemt_jax.convert --from PATH --to PATH --format hf|t5x [--dtype float32|bfloat16]

One array after the other passes through memory, so the backbone may be larger than it.  The names,
shapes and ties of all of them are checked before the first is written; the result takes its place
when it is whole, and only where nothing stood or what this command could have written: never a run
with its optimizer state, nor a folder with other files.  Vocabulary files that lie beside the
weights go along.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.common.hashing import SUMS, write_checksums
from pemt_jax.interop import hf, t5x
from pemt_jax.interop.base import open_base

# What a folder of each form holds when it is written here, vocabulary files aside.
FORMATS = {
    "hf": re.compile(r"config\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|" + SUMS),
    "t5x": re.compile(r"(checkpoint_0/)?(checkpoint|target\.[\w.]+|" + SUMS + ")|checkpoint_0"),
}
DTYPES = ("float32", "bfloat16")
VOCABULARY = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def convert(source: str, target: str, form: str, dtype: str | None = None) -> None:
    """Write the pretrained T5 at `source` to `target`.

    Args:
      source: whatever `interop.base` reads.
      target: a folder, local; one that was written here is replaced.
      form: "hf" or "t5x"; for the latter `target` is a checkpoint_N, or gets a checkpoint_0.
      dtype: "float32" or "bfloat16"; None for each array's own.

    Raises:
      UsageError: `target` is something else; PemtError: `source` is unfit, or writing fails.
    """
    if "://" in target:
        raise UsageError(f"Found --to {target}, expected a local folder.")
    place = Path(target)
    config, params = open_base(source)
    _check_target(place, form, source)
    vocabulary = (
        []
        if "://" in source
        else [file for name in VOCABULARY if (file := Path(source, name)).is_file()]
    )
    try:
        place.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{place.name}.", dir=place.absolute().parent
        ) as partial:
            made, old = Path(partial, "made"), Path(partial, "old")
            one_step = form == "hf" or t5x.STEP.fullmatch(place.name)
            inside = made if one_step else made / "checkpoint_0"
            if form == "hf":
                hf.save_hf(inside, config, params, dtype)
            else:
                t5x.save_t5x(inside, params, dtype)
            for file in vocabulary:
                shutil.copyfile(file, made / file.name)
            write_checksums(inside)
            if place.exists():
                os.replace(place, old)
            try:
                os.replace(made, place)
            except OSError:
                if old.exists():
                    os.replace(old, place)
                raise
    except OSError as error:
        raise PemtError(f"Cannot write {target}: {error.strerror or error}.") from error


def _check_target(target: Path, form: str, source: str) -> None:
    """Raise UsageError where something would be lost."""
    if not target.exists() and not target.is_symlink():
        return
    if "://" not in source and target.resolve() in (here := Path(source).resolve(), *here.parents):
        raise UsageError(f"--to {target} is or holds what is read, expected another place.")
    if target.is_symlink() or not target.is_dir():
        raise UsageError(f"--to {target} is a file or a link, expected a folder.")
    files = [
        child.relative_to(target).as_posix()
        for pattern in ("*", "checkpoint_0/*")
        for child in target.glob(pattern)
    ]
    others = sorted(
        name for name in files if name not in VOCABULARY and not FORMATS[form].fullmatch(name)
    )
    if others:
        raise UsageError(
            f"--to {target} holds {others[0]!r}, which is no part of a model of form "
            f"{form!r} as it is written here, expected a new folder."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pemt_jax.convert",
        allow_abbrev=False,
        description="Write a pretrained T5 in another form, array by array.",
        epilog="The exit code is 0, 1 when a file is damaged or unfit, 2 for wrong use.",
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="PATH",
        help="a Hugging Face folder, a T5X checkpoint_N or a folder of them",
    )
    parser.add_argument(
        "--to",
        dest="target",
        required=True,
        metavar="PATH",
        help="a new folder, or one that this command wrote, to replace",
    )
    parser.add_argument(
        "--format", dest="form", required=True, metavar="hf|t5x", help="of what is written"
    )
    parser.add_argument(
        "--dtype",
        metavar="|".join(DTYPES),
        help="how numbers are stored; as they are when not given",
    )
    arguments = parser.parse_args(argv)
    try:
        for flag, value, known in (
            ("--format", arguments.form, FORMATS),
            ("--dtype", arguments.dtype or DTYPES[0], DTYPES),
        ):
            if value not in known:
                raise UsageError(
                    f"Found {flag} {value!r}, expected one of {', '.join(known)}"
                    f"{nearest(value, known)}."
                )
        convert(arguments.source, arguments.target, arguments.form, arguments.dtype)
    except PemtError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{arguments.target}: {arguments.form}, from {arguments.source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
