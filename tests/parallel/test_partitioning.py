import functools
import json
import os
import subprocess
import sys
import textwrap

import flax.linen.partitioning as flax_partitioning
import jax
import mesh_runs
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from tiny_model import equations, initial_shapes, make_batch, random_params

from pemt_jax.common.errors import UsageError
from pemt_jax.model import methods
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.optimizers import make_optimizer
from pemt_jax.parallel import partitioning
from pemt_jax.parallel.activation_constraints import axis_rules, constrained
from pemt_jax.training.evaluator import Evaluator
from pemt_jax.training.step import TrainState, jit_train_step

MESH_2X2 = AbstractMesh((2, 2), ("data", "model"))


MESH_2X2X2 = AbstractMesh((2, 2, 2), ("data", "expert", "model"))


def spec(axes, shape, mesh=MESH_2X2, fully_sharded=False):
    return partitioning.parameter_spec(axes, shape, mesh, fully_sharded)


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


def test_experts_are_split_over_their_axis_or_else_their_ranks():
    axes = ("experts", "mlp", "expert_rank")
    assert spec(axes, (6, 64, 4), MESH_2X2X2) == PartitionSpec("expert", "model", None)
    assert spec(axes, (5, 64, 4), MESH_2X2X2) == PartitionSpec(None, "model", "expert")
    assert spec(axes, (5, 64, 3), MESH_2X2X2) == PartitionSpec(None, "model", None)


def test_fully_sharded_splits_the_matrices_of_the_backbone_over_data_too():
    full = functools.partial(spec, fully_sharded=True)
    assert full(("embed", "mlp"), (8, 16)) == PartitionSpec("data", "model")
    both = PartitionSpec(("data", "expert"), "model")
    assert full(("embed", "mlp"), (8, 16), MESH_2X2X2) == both
    # Six rows go into two, not into four; nothing divides five.
    assert full(("embed", "mlp"), (6, 16), MESH_2X2X2) == PartitionSpec("data", "model")
    assert full(("embed", "mlp"), (5, 16)) == PartitionSpec(None, "model")
    # Neither vectors nor what PEMT adds.
    assert full(("embed",), (8,)) == PartitionSpec(None)
    assert full(("embed", "adapter"), (8, 16)) == PartitionSpec(None, None)


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


def test_a_batch_is_filled_up_to_what_the_mesh_divides():
    found = [partitioning.padded_rows(rows, MESH_2X2X2) for rows in (1, 4, 7)]
    assert found == [4, 4, 8]
    with pytest.raises(UsageError, match="batch of 0 rows, expected 1 or more"):
        partitioning.check_batch_size(0)


def test_only_what_its_mesh_axis_divides_is_constrained():
    params = {"a": np.zeros((3, 8)), "b": np.zeros((2, 8, 4))}
    axes = {"a_axes": ("heads", "mlp"), "b_axes": ("experts", "mlp", "expert_rank")}
    rules = dict(axis_rules(params, axes, MESH_2X2X2))
    assert rules["batch"] == ("data", "expert")
    assert (rules["heads"], rules["mlp"], rules["experts"]) == (None, "model", "expert")


def test_the_activations_of_a_model_are_constrained_to_the_mesh():
    """What the modules name does nothing until rules are set."""
    t5, pemt = mesh_runs.SMALL, mesh_runs.STAGES["pemt_target"]
    model, axes = PemtModel(t5, pemt), initial_shapes(t5, pemt)["params_axes"]
    batch = make_batch([3, 6], [3, 4], 6, 4)

    def constraints(function):
        jaxpr = jax.make_jaxpr(lambda params: function(params, batch, None))(
            random_params(t5, pemt)
        )
        return {
            tuple(equation.params["sharding"].spec)
            for equation in equations(jaxpr)
            if equation.primitive.name == "sharding_constraint"
        }

    rows = ("data",)
    expected = {(rows, None, None), (rows, None, "model"), (rows, None, "model", None)}

    def found(function):
        return {
            (rows if spec[0] == "data" else spec[0], *spec[1:]) if spec else spec
            for spec in constraints(function)
        }

    assert expected <= found(constrained(model.loss_fn, MESH_2X2, axes))
    # And so are those of the steps that are compiled.
    trainable, frozen = methods.split(random_params(t5, pemt), methods.get_method("pemt_target"))
    optimizer, everywhere = make_optimizer(), NamedSharding(MESH_2X2, PartitionSpec())
    state = TrainState(np.int32(0), trainable, optimizer.init(trainable))
    step = jit_train_step(
        model.loss_fn,
        optimizer,
        jax.tree.map(lambda _: everywhere, state),
        dict.fromkeys(frozen, everywhere),
        MESH_2X2,
        axes,
    )
    assert expected <= found(lambda params, batch, _: step(state, frozen, batch, jax.random.key(0)))
    evaluator = Evaluator(model.predict_batch, model.eval_fn, None, MESH_2X2, axes)
    for evaluate in (evaluator._eval, evaluator._both):
        assert expected <= found(lambda params, batch, _, run=evaluate: run(params, batch))
    assert not constraints(constrained(model.loss_fn, partitioning.make_mesh(), axes))


def test_devices_hold_parts_of_matrices_and_batches_and_read_each_part_once():
    script = textwrap.dedent("""
        import jax
        import numpy as np
        from pemt_jax.common.lazy_array import LazyArray
        from pemt_jax.parallel import partitioning
        mesh = partitioning.make_mesh(model=2, devices=jax.devices()[:4])
        assert dict(mesh.shape) == {"data": 2, "model": 2}
        params = {"mlp/wi/kernel": np.arange(32.0, dtype="f4").reshape(4, 8)}
        axes = {"mlp": {"wi": {"kernel_axes": ("embed", "mlp")}}}
        placed = partitioning.place(
            params, partitioning.parameter_shardings(params, axes, mesh))["mlp/wi/kernel"]
        assert {s.data.shape for s in placed.addressable_shards} == {(4, 4)}
        np.testing.assert_array_equal(placed, params["mlp/wi/kernel"])
        batch = partitioning.place_batch({"x": np.zeros((6, 3), "i4")}, mesh)["x"]
        assert {s.data.shape for s in batch.addressable_shards} == {(3, 3)}

        mesh, reads = partitioning.make_mesh(model=2), []
        assert dict(mesh.shape) == {"data": 4, "model": 2}
        params = {
            "embedder/embedding": np.arange(64.0, dtype="f4").reshape(8, 8),
            "mlp/wi/kernel": np.arange(512.0, dtype="f4").reshape(32, 16).T,
            "norm/scale": np.arange(5.0, dtype="f4"),
        }
        axes["embedder"] = {"embedding_axes": ("vocab", "embed")}
        axes["norm"] = {"scale_axes": ("embed",)}
        unread = {
            path: LazyArray(x.shape, x.dtype, lambda i, x=x: reads.append(x[i].size) or x[i])
            for path, x in params.items()
        }
        unread["mlp/wi/kernel"] = unread["mlp/wi/kernel"].T.astype("bfloat16").T
        for fully_sharded, parts in ((False, (2, 2, 1)), (True, (8, 8, 1))):
            shardings = partitioning.parameter_shardings(unread, axes, mesh, fully_sharded)
            reads.clear()
            placed = partitioning.place(unread, shardings)
            expected = [x.size // n for x, n in zip(params.values(), parts) for _ in range(n)]
            assert reads == expected, (reads, expected)
            for path, value in placed.items():
                assert value.dtype == unread[path].dtype and value.sharding == shardings[path]
                np.testing.assert_array_equal(value, params[path].astype(value.dtype))
    """)
    flags = "--xla_force_host_platform_device_count=8"
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )


def on_eight_devices(folder, fully_sharded, stages, *meshes):
    """Run ten steps of the stages on meshes DATAxMODELxEXPERT, one device first."""
    mesh_runs.run(folder, "one", partitioning.make_mesh(), stages)
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = subprocess.run(
        [sys.executable, mesh_runs.__file__, folder, str(fully_sharded), ",".join(stages), *meshes],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def assert_as_on_one_device(folder, mesh, stages):
    for stage in stages:
        one, more = (
            json.loads((folder / stage / name / "losses.json").read_text())
            for name in ("one", mesh)
        )
        assert len(one) == 10 and one[-1] < one[0]
        np.testing.assert_allclose(more, one, rtol=1e-5, err_msg=f"{stage} {mesh}")
        one, more = (mesh_runs.state(folder, stage, name) for name in ("one", mesh))
        for path, value in one.items():
            np.testing.assert_allclose(more[path], value, rtol=0, atol=1e-4, err_msg=path)


@pytest.fixture
def fewer_optimizations():
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
def test_a_mesh_of_three_axes_gives_the_numbers_of_one_device(tmp_path, fewer_optimizations):
    on_eight_devices(tmp_path, True, ["pemt_target"], "2x2x2")
    assert_as_on_one_device(tmp_path, "2x2x2", ["pemt_target"])


FACTORISATIONS = [
    f"{data}x{model}x{8 // data // model}"
    for data in (1, 2, 4, 8)
    for model in (1, 2, 4, 8)
    if data * model <= 8
]


@pytest.mark.slow
@pytest.mark.parametrize("fully_sharded", [False, True])
def test_every_factorisation_of_eight_devices_gives_the_numbers_of_one(
    tmp_path, fewer_optimizations, fully_sharded
):
    assert len(FACTORISATIONS) == 10
    on_eight_devices(tmp_path, fully_sharded, mesh_runs.STAGES, *FACTORISATIONS)
    for mesh in FACTORISATIONS:
        assert_as_on_one_device(tmp_path, mesh, mesh_runs.STAGES)


@pytest.mark.slow
def test_an_expert_axis_and_full_sharding_save_memory():
    script = textwrap.dedent("""
        import mesh_runs
        from pemt_jax.parallel import partitioning
        held = {}
        for name, sizes, sharded in (("data", (4, 1, 1), False), ("expert", (2, 1, 2), False),
                                     ("sharded", (4, 1, 1), True)):
            mesh = partitioning.make_mesh(*sizes)
            held[name] = mesh_runs.frozen_bytes("pemt_target", mesh, sharded)
            assert held[name] == mesh_runs.frozen_bytes("pemt_target", mesh, sharded, tasks=2)
        for path, size in held["data"].items():
            bank = path.endswith(("lora_a", "lora_b")) or path.startswith("source_prompts")
            assert held["expert"][path] == size // (2 if bank else 1), path
            assert held["sharded"][path] == size // (1 if bank else 4), path
    """)
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.path.dirname(mesh_runs.__file__),
        },
    )
