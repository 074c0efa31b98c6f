"""What a sentence for a user must be, as far as a program can tell."""

import re

LONGEST = 400  # characters of a sentence, paths of the case's folder not counted
# What Python and libraries say and a user should not have to read.
INTERNAL = ("<class ", "NoneType", "Errno", " object at 0x", "<function ", "Traceback")


def sentence_faults(
    line: str, says: tuple[str, ...] = (), never: tuple[str, ...] = ()
) -> list[str]:
    """What is wrong with a sentence, `error: ` included; it has the words `says`, not `never`."""
    found = []
    if not line.startswith("error: ") or len(line) < 20:
        found.append("no sentence")
    if not line.endswith("."):
        found.append("no full stop")
    if line.endswith(".."):
        found.append("ends with two full stops")
    if len(line) > LONGEST:
        found.append(f"{len(line)} characters")
    if not line.isprintable():
        found.append("control characters")
    if re.match(r"[^']*'([^']+)'.*\(nearest: '\1'\)", line):
        found.append("names as nearest what was found")
    found += [f"internal: {word}" for word in INTERNAL if word in line]
    found += [
        f"does not say {words!r}"
        for words in says
        if not any(word.lower() in line.lower() for word in words.split("|"))
    ]
    return found + [f"untrue: {word!r}" for word in never if word in line]
