"""Published figures of TPU chips, and the slices they are rented in.

Sources: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of docs.cloud.google.com/tpu/docs
(peak bfloat16 compute, HBM bandwidth, interconnect: half of the bidirectional figure is what a chip
sends). The page of v4 has no interconnect: 6 links of 400 Gbit/s each way, as glennklockwood.com
has it ("TPUv4"). `hbm` is not the published capacity but what libtpu 0.0.42 says is available to a
program, in the sentence by which it refuses one.
"""

import dataclasses
import math
import re

from pemt_jax.common.errors import UsageError, nearest

GIB = 2**30
LARGEST = 8960  # chips of a pod of v5p, the largest of them


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      hbm: bytes that a program can use.
      peak: bfloat16 FLOP/s; float32 matrices are multiplied in bfloat16 too, by default.
      bandwidth: bytes/s of HBM.
      ici: bytes/s that a chip sends to its neighbours, all links together.
      slices: topologies by number of chips.
      variant: what the compiler calls a chip whose cores are one device.
    """

    name: str
    hbm: float
    peak: float
    bandwidth: float
    ici: float
    slices: tuple[str, ...]
    variant: str = "default"

    def slice_of(self, chips: int) -> str | None:
        """The topology of so many chips, "v5e:4x4", or None."""
        for shape in self.slices:
            if math.prod(map(int, shape.split("x"))) == chips:
                return f"{self.name}:{shape}"
        return None


SLICES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# One chip of v4 or v5p is not rented, but tells what a chip holds.
SLICES_3D = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 30.75 * GIB, 275e12, 1200e9, 300e9, SLICES_3D, "megacore"),
        Chip("v5e", 15.75 * GIB, 197e12, 819e9, 200e9, SLICES_2D),
        Chip("v5p", 95.74 * GIB, 459e12, 2765e9, 600e9, SLICES_3D, "megacore"),
        Chip("v6e", 31.25 * GIB, 918e12, 1638e9, 400e9, SLICES_2D),
    )
}


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Return the chip and the sizes of "v5e:4x4" or "v4:2x2x1".

    Raises:
      UsageError: no such chip, or sizes that it has no slices of.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise UsageError(
            f"There is no chip {kind!r} as in topology {name!r}, expected one of "
            f"{', '.join(CHIPS)}{nearest(kind, CHIPS)}."
        )
    chip = CHIPS[kind]
    number = re.compile(r"\d{1,9}", re.ASCII)
    sizes = tuple(int(size) if number.fullmatch(size) else 0 for size in shape.split("x"))
    # Hosts of 2 x 2 chips make up a slice, and cubes of 4 x 4 x 4 a large one.
    whole = all(size in (1, 2) or (size and size % 4 == 0) for size in sizes)
    if len(sizes) != len(chip.slices[0].split("x")) or not whole:
        raise UsageError(
            f"Topology {name!r} has the sizes {shape!r}, expected sizes like those "
            f"of {kind}:{chip.slices[3]}."
        )
    if math.prod(sizes) > LARGEST:
        raise UsageError(
            f"Topology {name!r} has {math.prod(sizes)} chips, expected at most {LARGEST}."
        )
    return chip, sizes
