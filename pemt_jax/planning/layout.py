"""How a run is laid over the chips of a slice: what `train` takes as its mesh and its sharding."""

import dataclasses
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, Mesh

from pemt_jax.parallel import partitioning


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of the mesh's axes, and whether the backbone is split over data too.

    See partitioning.py for what each axis splits.
    """

    data: int = 1
    model: int = 1
    expert: int = 1
    fully_sharded: bool = False

    @classmethod
    def over(
        cls,
        devices: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm]  # jaxlib's stub
        model: int,
        expert: int,
        fully_sharded: bool,
    ) -> "Layout":
        """The layout whose data axis takes the devices that are left, as `train` lays a run out."""
        sizes = partitioning.make_mesh(None, model, expert, devices).shape
        return cls(sizes["data"], model, expert, fully_sharded)

    @property
    def chips(self) -> int:
        return self.data * self.model * self.expert

    @property
    def row_parts(self) -> int:
        """The number of chips over which a batch is sharded."""
        return partitioning.padded_rows(1, self.abstract_mesh)

    @property
    def abstract_mesh(self) -> AbstractMesh:
        """The mesh without devices, which is enough to say how parameters are sharded."""
        return AbstractMesh((self.data, self.expert, self.model), ("data", "expert", "model"))

    def mesh(
        self,
        devices: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm]  # jaxlib's stub
    ) -> Mesh:
        """The mesh over devices; UsageError when they are not as many."""
        return partitioning.make_mesh(self.data, self.model, self.expert, devices)

    def describe(self) -> str:
        """For people: "4 data x 2 model, fully sharded"."""
        expert = f" x {self.expert} expert" if self.expert > 1 else ""
        return (
            f"{self.data} data{expert} x {self.model} model"
            + ", fully sharded" * self.fully_sharded
        )
