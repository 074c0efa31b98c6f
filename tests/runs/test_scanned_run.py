"""A run with SCAN_LAYERS: what it leaves behind is what an unrolled run does."""

import pytest
from tiny_system import EXPERTS, leaves, world_fixture  # noqa: F401

from pemt_jax.common.errors import UsageError


@pytest.mark.slow
def test_a_run_goes_on_with_scanned_layers_and_is_published(world, tmp_path):
    options = dict(library=str(world.library), experts=EXPERTS)
    world.train(tmp_path, steps=10, **options)
    before = leaves(tmp_path, 10)
    metrics = world.train(tmp_path, steps=20, scan_layers=True, **options)
    shapes = {path: leaf["shape"] for path, leaf in leaves(tmp_path, 20).items()}
    assert shapes == {path: leaf["shape"] for path, leaf in before.items()}
    assert not any("/layers/" in path for path in shapes)
    whole = world.train(tmp_path / "whole", **options)
    assert metrics == pytest.approx(whole, rel=1e-3)
    with pytest.raises(UsageError, match="dropout_rate"):  # which makes it another run
        world.train(tmp_path, steps=20, dropout_rate=0.3, **options)
