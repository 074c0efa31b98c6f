"""A trainer whose model scans its layers: stacked frozen parameters, an unrolled run's state."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_model import T5, TARGET, initial_shapes, make_batch, random_params

from pemt_jax.checkpoints.manager import Checkpoints
from pemt_jax.common.layer_stacks import stack_layers
from pemt_jax.model.methods import METHODS, split
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.optimizers import make_optimizer
from pemt_jax.parallel import partitioning
from pemt_jax.parallel.stacked_layers import stack_on_devices, stacked_shapes
from pemt_jax.training.trainer import Trainer

DEEP = dataclasses.replace(T5, num_encoder_layers=2, num_decoder_layers=2, dropout_rate=0.1)
BATCH = make_batch([3, 6, 1, 5], [3, 5, 1, 2], S=6, T=5)


def make_trainer(scan_layers: bool) -> Trainer:
    t5 = dataclasses.replace(DEEP, scan_layers=scan_layers)
    trainable, frozen = split(random_params(t5, TARGET), METHODS["pemt_target"])
    return Trainer(
        PemtModel(t5, TARGET).loss_fn,
        trainable,
        frozen,
        make_optimizer(schedule=0.01),
        params_axes=initial_shapes(t5, TARGET)["params_axes"],
        scan_layers=scan_layers,
    )


def test_frozen_parameters_are_stacked_on_their_mesh_and_given_up():
    _, frozen = split(random_params(DEEP, TARGET), METHODS["pemt_target"])
    mesh, axes = partitioning.make_mesh(), initial_shapes(DEEP, TARGET)["params_axes"]
    shardings = partitioning.parameter_shardings(frozen, axes, mesh)
    placed = partitioning.place(frozen, shardings)
    shapes, expected = stacked_shapes(placed, shardings)
    stacked = stack_on_devices(placed)
    assert not placed and stacked.keys() == shapes.keys()
    for path, value in stack_layers(frozen, np.stack).items():
        np.testing.assert_array_equal(np.asarray(stacked[path]), value)
        assert stacked[path].shape == shapes[path].shape
        assert stacked[path].sharding == expected[path]
    assert expected == partitioning.parameter_shardings(stacked, axes, mesh)


@pytest.mark.slow
def test_a_run_is_resumed_with_and_without_scanned_layers_to_the_same_numbers(tmp_path: Path):
    plain, scanned = make_trainer(False), make_trainer(True)
    for _ in range(2):
        plain.step(BATCH)
    with Checkpoints(tmp_path, {}) as kept:
        kept.save(2, plain.state)
        scanned.restore(kept, 2)  # names, shapes and every leaf's sha256 are those of the manifest
    for trainer in (plain, scanned):
        for _ in range(3):
            trainer.step(BATCH)
    assert jax.tree.structure(scanned.state) == jax.tree.structure(plain.state)
    jax.tree.map(
        # Adam divides by the root of a gradient's square: rounding moves a step by little.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        scanned.state,
        plain.state,
    )
    assert any("/layers/" in path for path in scanned.frozen)
