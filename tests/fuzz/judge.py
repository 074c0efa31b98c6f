"""What was promised of a command that fails, and which of it does not hold."""

import dataclasses
import fnmatch
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from case import Case
from forking import REPORTS
from sentences import sentence_faults

OWN_REPORTS = (*REPORTS, "warning: ")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str
    seconds: float
    gib: float
    changed: tuple[str, ...] = ()  # what is another, is gone or is new, outside `Case.may`
    executed: bool = False
    ended: bool = True  # else it was killed, for it took too long


def faults(case: Case, outcome: Outcome) -> list[str]:
    """Every promise that was not kept, by a few words; none for what is as it should be."""
    found = []
    if not outcome.ended:
        found.append(f"hangs: killed after {outcome.seconds:.0f} s")
    elif outcome.code not in (case.code if isinstance(case.code, tuple) else (case.code,)):
        found.append(f"exit code {outcome.code}, expected {case.code}")
    if outcome.seconds > case.seconds and outcome.ended:
        found.append(f"slow: {outcome.seconds:.1f} s")
    if outcome.gib > case.gib:
        found.append(f"memory: {outcome.gib:.1f} GiB")
    if "Traceback (most recent" in outcome.err + outcome.out:
        found.append("traceback")
    if outcome.executed:
        found.append("executed what it read")
    found += [f"files: {path}" for path in outcome.changed]
    lines = [line for line in outcome.err.splitlines() if not line.startswith(OWN_REPORTS)]
    if case.code == 0:
        return found + [f"noise: {line[:80]}" for line in lines[:1]]
    if outcome.out and not case.prints:
        found.append(f"stdout: {outcome.out[:80]!r}")
    if not outcome.ended or "traceback" in found:
        return found
    if len(lines) != 1:
        return [*found, f"{len(lines)} lines on stderr, expected one"]
    return found + sentence_faults(lines[0], case.says, case.never)


def snapshot(folder: Path) -> dict[str, str]:
    """{path: kind and content} of everything below a folder, links and pipes not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            state = os.lstat(path)
            text = f"{state.st_mode:o} "
            if stat.S_ISLNK(state.st_mode):
                text += os.readlink(path)
            elif stat.S_ISREG(state.st_mode) and os.access(path, os.R_OK):
                with open(path, "rb") as file:
                    text += hashlib.file_digest(file, "sha256").hexdigest()
            found[os.path.relpath(path, folder)] = text
    return found


def changes(before: Mapping, after: Mapping, may: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What differs between snapshots, but for the paths that may."""
    names = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
    kinds = {True: "changed", False: "created"}
    return tuple(
        f"{kinds[name in before] if name in after else 'removed'} {name}"
        for name in names
        if not any(fnmatch.fnmatch(name, pattern) for pattern in may)
    )


def shown(text: str, folder: Path) -> str:
    """An output as it would be in the working directory, without the machine's paths."""
    return re.sub(rf"{re.escape(str(folder))}/*", "", text)
