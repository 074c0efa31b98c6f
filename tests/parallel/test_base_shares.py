"""Several processes over one base: one hashes it, and each reads what its devices hold."""

import json

import pytest
from local_job import run_twice
from tiny_system import random_base, world_fixture  # noqa: F401

from pemt_jax.common.hashing import fingerprint
from pemt_jax.interop.base import load_base

SCRIPT = """
import json, sys
import jax, numpy as np
from pemt_jax.common import safetensors_file
from pemt_jax.interop import base as bases
from pemt_jax.parallel import partitioning, processes

read, hashed = {"now": 0}, []
plain_read, plain_hash = safetensors_file._read_bytes, bases.fingerprint

def counting(file, position, part):
    read["now"] += len(part)
    plain_read(file, position, part)

safetensors_file._read_bytes, safetensors_file.RUN_BYTES = counting, 1
bases.fingerprint = lambda stored: hashed.append(1) or plain_hash(stored)

with processes.joined():
    base = bases.identify_base(sys.argv[1 + jax.process_index()], lambda name: np.dtype("f4"))
    shardings = partitioning.parameter_shardings(
        base.params,
        {f"{name}_axes": (None, "embed")[-len(x.shape):] for name, x in base.params.items()},
        partitioning.make_mesh(),
        fully_sharded=True,
    )
    read["now"] = 0
    placed = partitioning.place(dict(base.params), shardings)
    share, whole = read["now"], {name: np.asarray(x) for name, x in base.params.items()}
    equal = all(
        np.array_equal(shard.data, whole[name][shard.index])
        for name, array in placed.items()
        for shard in array.addressable_shards
    )
    total = sum(x.nbytes for x in whole.values())
    print(json.dumps([len(hashed), base.fingerprint, share / total, equal]), flush=True)
"""


@pytest.mark.slow
def test_a_process_reads_its_share_of_a_base_that_one_of_them_hashed(world, tmp_path):  # noqa: F811
    base = random_base(tmp_path / "base")  # of which no fingerprint is kept yet
    done = run_twice(world, SCRIPT, base, base)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(hashed for hashed, *_ in rows) == [0, 1]
    assert {found for _, found, *_ in rows} == {fingerprint(load_base(base)[1])}
    for *_, share, equal in rows:
        assert equal and 0.5 < share < 0.51  # vectors are in both


@pytest.mark.slow
def test_processes_with_different_bases_under_one_path_say_so(world, tmp_path):  # noqa: F811
    """As with a base on local disks: the processes rely on the first one's fingerprint."""
    done = run_twice(world, SCRIPT, world.base, random_base(tmp_path / "other", seed=1))
    assert done.returncode == 1
    assert "The processes do not agree on the base: " in done.stderr
