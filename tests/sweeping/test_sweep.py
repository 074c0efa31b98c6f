"""A sweep: what is run, chosen and tested; and again after it was stopped."""

import json
import time

import pytest
import tiny_system
from tiny_sweep import config, lines, sweep
from tiny_system import world_fixture  # noqa: F401

from pemt_jax.cli import command as cli
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.evaluate import evaluate


def test_smoke(world, tmp_path):
    t=time.time(); world.library; print("lib", time.time()-t)
    t=time.time()
    made = config(world, tmp_path / "sweep")
    print(sweep(made), time.time()-t)
    for line in lines(tmp_path / "sweep"): print(line)
    print((tmp_path/"sweep"/"costs.jsonl").read_text())
    t=time.time()
    print(sweep(made), time.time()-t)
