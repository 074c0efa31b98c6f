"""The messages between devices that a compiled step sends, read from the compiler's own text."""

import dataclasses
import math
import re

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
# %name = SHAPE kind(...): an asynchronous one has a -start, which is counted, and a -done.
LINE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation: its kind, the bytes of its result on one device, the shapes of that."""

    kind: str
    bytes: int
    shapes: tuple[str, ...]


def find_collectives(text: str) -> list[Collective]:
    """Return the collectives of a compiled module's text (`compiled.as_text()`).

    One in a loop's body is counted once. The result of an all-gather is what a device receives,
    that of an all-reduce what it sends and receives at least once each.
    """
    found = []
    for line in text.splitlines():
        match = LINE.search(line)
        if not match:
            continue
        result, kind, start = match.groups()
        shapes = SHAPE.findall(result)
        if start and kind in ("all-gather", "collective-permute"):
            # (operands, results, ...) of the asynchronous form; the results are the second half.
            shapes = [shape for shape in shapes if shape[1]]
            shapes = shapes[len(shapes) // 2 :]
        sizes = [
            BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n)
            for dtype, dims in shapes
        ]
        found.append(Collective(kind, sum(sizes), tuple(f"{d}[{n}]" for d, n in shapes)))
    return found


def by_kind(found: list[Collective]) -> dict[str, dict[str, int]]:
    """Return {kind: {"count", "bytes", "largest"}}, bytes of one device."""
    table: dict[str, dict[str, int]] = {}
    for item in found:
        row = table.setdefault(item.kind, {"count": 0, "bytes": 0, "largest": 0})
        row["count"] += 1
        row["bytes"] += item.bytes
        row["largest"] = max(row["largest"], item.bytes)
    return table


def sent_bytes(table: dict[str, dict[str, int]]) -> int:
    """The least that a device sends: twice the result of an all-reduce, once that of others."""
    return sum(row["bytes"] * (2 if kind == "all-reduce" else 1) for kind, row in table.items())
