"""The table that tests of a sweep change."""

import pytest
from tiny_sweep import config


@pytest.fixture
def made(tmp_path):
    """Make the configuration of a sweep of runs that only look trained."""
    file = tmp_path / "target.gin"
    file.write_text("train.train.seed = 0\n")
    return lambda folder=tmp_path / "sweep", **values: config(folder, **{"file": file} | values)
