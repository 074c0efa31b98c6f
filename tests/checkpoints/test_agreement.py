"""Two processes that see different faults of the same checkpoints decide alike."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.walk]

# Each process makes one decision per fault and prints them as JSON.
SCRIPT = textwrap.dedent("""
    import contextlib, errno, json, pathlib, sys
    import jax, numpy as np
    import orbax.checkpoint as ocp
    from pemt_jax.parallel import processes

    address, index, base = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])

    class Restored:
        def restore(self, checkpoints, step):
            self.state = checkpoints.restore(step, state_of(0))

    def state_of(value):
        values = np.random.default_rng(value).normal(size=(2, 5000)).astype("f4")
        parts = jax.make_array_from_callback(values.shape, sharding, lambda i: values[i])
        whole = jax.device_put(values, everywhere)
        return {"trainable": {"parts": parts, "whole": whole}}

    @contextlib.contextmanager
    def replaced(owner, name, function):
        before = getattr(owner, name)
        setattr(owner, name, lambda *a, **k: function(before, *a, **k))
        yield
        setattr(owner, name, before)

    def failing(restore, *args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    def no_manifest(read, checkpoint):
        return None if checkpoint.name == "2" else read(checkpoint)

    def other_bytes(record, array):  # of the arrays that are read first, or of all
        reads.append(1)
        found = record(array)
        return found | {"sha256": "0"} if len(reads) <= 2 or name == "every checkpoint" else found

    def outcome():
        folder = base / name
        with Checkpoints(folder, {"run": 1}, "acc") as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, state_of(step), {"acc": step})
        if name in ("flip", "best") and index == 0:
            # The part that process 1 wrote, and it alone reads.
            file = max((folder / "2/state/ocdbt.process_1/d").iterdir(), key=size)
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        processes.barrier()
        fault = {
            "unreadable": (ocp.PyTreeCheckpointHandler, "restore", failing),
            "manifest": (disk, "read_manifest", no_manifest),
            "other bytes": (manifest, "leaf_record", other_bytes),
            "every checkpoint": (manifest, "leaf_record", other_bytes),
        }.get(name)
        trainer = Restored()
        with replaced(*fault) if fault and index == 1 else contextlib.nullcontext():
            try:
                with Checkpoints(folder, {"run": 1}, "acc") as checkpoints:
                    if name == "best":
                        step = checkpoints.restore_best(2, state_of(0)["trainable"])[0]
                    else:
                        step = restore_newest(trainer, checkpoints)[0]
            except PemtError as error:
                step = f"{type(error).__name__}: {error}"
        processes.barrier()
        return [step, sorted(path.name for path in folder.iterdir())]

    def size(path):
        return path.stat().st_size

    with processes.joined(address, 2, index):
        from pemt_jax.checkpoints import folder as disk
        from pemt_jax.checkpoints import manifest
        from pemt_jax.checkpoints.manager import Checkpoints
        from pemt_jax.checkpoints.newest import restore_newest
        from pemt_jax.common.errors import PemtError
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        outcomes = {}
        for name in (
            "none", "flip", "best", "unreadable", "manifest", "other bytes", "every checkpoint"
        ):
            reads = []
            outcomes[name] = outcome()
        print(json.dumps(outcomes))
""")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """{fault: [what process 0 decided, what process 1 decided]}, and the folder of them."""
    base = tmp_path_factory.mktemp("two processes")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, address, str(index), str(base)],
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=150) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], outputs
    first, second = (json.loads(stdout) for stdout, _ in outputs)
    return base, {name: [first[name], second[name]] for name in first}


def test_processes_restore_the_newest_checkpoint(outcomes):
    assert outcomes[1]["none"] == [[2, ["1", "2"]]] * 2


@pytest.mark.parametrize("fault", ["flip", "best", "manifest", "other bytes"])
def test_damage_that_one_process_finds_is_set_aside_by_all(outcomes, fault):
    assert outcomes[1][fault] == [[1, ["1", "2.damaged"]]] * 2


def test_a_read_that_fails_in_one_process_ends_all_and_sets_nothing_aside(outcomes):
    base, found = outcomes
    sentence = f"PemtError: {base}/unreadable/2 cannot be read: Input/output error."
    assert found["unreadable"] == [[sentence, ["1", "2"]]] * 2


def test_when_one_process_finds_every_checkpoint_damaged_all_end(outcomes):
    base, found = outcomes
    (sentence, kept), other = found["every checkpoint"]
    assert [sentence, kept] == other and kept == ["1", "2"]
    assert sentence.startswith(
        f"DamagedCheckpoint: Checkpoint {base}/every checkpoint/2 is damaged"
    )
