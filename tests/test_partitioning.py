import os
import subprocess
import sys
import textwrap

import flax.linen.partitioning as flax_partitioning
import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from pemt_jax import partitioning
from pemt_jax.errors import UsageError
from pemt_jax.optimizers import make_optimizer

MESH_2X2 = AbstractMesh((2, 2), ("data", "model"))


def spec(axes, shape, mesh=MESH_2X2):
    return partitioning.parameter_spec(axes, shape, mesh)


def test_backbone_matrices_are_split_over_model():
    assert spec(("embed", "joined_kv"), (6, 8)) == PartitionSpec(None, "model")
    assert spec(("vocab", "embed"), (128, 6)) == PartitionSpec("model", None)
    assert spec(("embed",), (6,)) == PartitionSpec(None)


def test_pemt_parameters_are_replicated_but_for_mlp():
    assert spec(("experts", "mlp", "expert_rank"), (3, 64, 4)) == PartitionSpec(None, "model", None)
    assert spec(("prompt", "embed"), (5, 6)) == PartitionSpec(None, None)


def test_dimension_that_does_not_divide_is_replicated():
    assert spec(("heads", "relpos_buckets"), (3, 32)) == PartitionSpec(None, None)


def test_mesh_axis_is_used_once():
    assert spec(("mlp", "vocab"), (8, 8)) == PartitionSpec("model", None)


def test_unknown_logical_axis_is_one_sentence():
    with pytest.raises(UsageError, match="nearest: 'embed'"):
        spec(("embd",), (6,))


def test_shardings_follow_params_axes():
    mesh = partitioning.make_mesh()
    axes = {"mlp": {"wi": {"kernel_axes": flax_partitioning.AxisMetadata(("embed", "mlp"))}}}
    params = {"mlp/wi/kernel": np.zeros((4, 8)), "unnamed": np.zeros((2, 3))}
    found = partitioning.parameter_shardings(params, axes, mesh)
    assert found["mlp/wi/kernel"].spec == PartitionSpec(None, "model")
    assert found["unnamed"].spec == PartitionSpec(None, None)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_optimizer_slots_lie_where_their_parameters_lie(name):
    mesh = partitioning.make_mesh()
    params = {"mlp/wi/kernel": np.zeros((256, 512), "f4"), "norm/scale": np.zeros(256, "f4")}
    shardings = partitioning.parameter_shardings(
        params, {"mlp": {"wi": {"kernel_axes": ("embed", "mlp")}}}, mesh
    )
    state = jax.eval_shape(make_optimizer(name).init, params)
    found = partitioning.optimizer_shardings(state, shardings, mesh)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    if name == "adamw":
        assert found[1].mu["mlp/wi/kernel"].spec == PartitionSpec(None, "model")
        assert found[1].count.spec == PartitionSpec()


def test_mesh_must_use_every_device():
    with pytest.raises(UsageError, match="3 data x 1 model needs 3 devices.*1 found"):
        partitioning.make_mesh(3, 1)


def test_batch_that_cannot_be_dealt_is_one_sentence():
    with pytest.raises(UsageError, match="nearest: 8"):
        partitioning.check_batch_size(7, MESH_2X2)


def test_four_devices_hold_halves_of_matrices_and_batches():
    script = textwrap.dedent("""
        import numpy as np
        from pemt_jax import partitioning
        mesh = partitioning.make_mesh(model=2)
        assert dict(mesh.shape) == {"data": 2, "model": 2}
        params = {"mlp/wi/kernel": np.arange(32.0, dtype="f4").reshape(4, 8)}
        axes = {"mlp": {"wi": {"kernel_axes": ("embed", "mlp")}}}
        placed = partitioning.place(
            params, partitioning.parameter_shardings(params, axes, mesh))["mlp/wi/kernel"]
        assert {s.data.shape for s in placed.addressable_shards} == {(4, 4)}
        np.testing.assert_array_equal(placed, params["mlp/wi/kernel"])
        batch = partitioning.place_batch({"x": np.zeros((6, 3), "i4")}, mesh)["x"]
        assert {s.data.shape for s in batch.addressable_shards} == {(3, 3)}
    """)
    flags = "--xla_force_host_platform_device_count=4"
    subprocess.run(
        [sys.executable, "-c", script], check=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
