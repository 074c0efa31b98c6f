"""SHA256SUMS: the sha256 of every file of a folder, in the form of the command `sha256sum`.

It stands in a base that a run of method full has made, whose other files are Hugging Face's and
have no room for it; `sha256sum -c SHA256SUMS` checks it without this package.
"""

from pathlib import Path

from pemt_jax.errors import PemtError
from pemt_jax.weights import replacing, sha256_file

SUMS = "SHA256SUMS"


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS of the files that lie in `folder`."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    text = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in names)
    with replacing(folder / SUMS) as partial:
        partial.write_text(text, encoding="utf-8")


def verify_checksums(folder: Path) -> None:
    """Raise PemtError when a file of `folder` is not as its SHA256SUMS says; without one, pass."""
    sums = folder / SUMS
    if not sums.is_file():
        return
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        path = folder / name
        # What is missing the reader says, where it matters.
        if path.is_file() and (found := sha256_file(path)) != expected:
            raise PemtError(f"{path} is damaged or exchanged: found sha256 {found[:12]}, expected "
                            f"{expected[:12]} as in its {SUMS}.")
