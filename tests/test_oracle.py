"""The comparison with the authors' numbers: passes on their file, fails on a file that is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
ORACLE = HERE / "data" / "oracle_tiny.npz"


@pytest.fixture(scope="module")
def compare(tmp_path_factory):
    """Run the command on a file; what XLA compiled for one run serves the next."""
    cache = tmp_path_factory.mktemp("compiled")

    def run(path, *options):
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return subprocess.run(
            [sys.executable, HERE / "oracle.py", path, *options],
            capture_output=True,
            text=True,
            env=environment,
            timeout=600,
        )

    return run


@pytest.fixture
def changed(tmp_path):
    """Write the file anew with some entries shifted: name -> (index, by how much)."""

    def write(**shifts):
        with np.load(ORACLE) as file:
            arrays = {name: file[name] for name in file.files}
        for name, (index, amount) in shifts.items():
            arrays[name][index] += amount
        np.savez(tmp_path / "changed.npz", **arrays)
        return tmp_path / "changed.npz"

    return write


def test_our_model_gives_the_authors_numbers(compare):
    result = compare(ORACLE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAIL" not in result.stdout and result.stdout.endswith("all within their limits\n")


@pytest.mark.slow
def test_scanned_layers_give_the_authors_numbers(compare):
    result = compare(ORACLE, "--scan_layers")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAIL" not in result.stdout and result.stdout.endswith("all within their limits\n")


@pytest.mark.slow
@pytest.mark.walk
def test_one_weight_off_by_a_thousandth_is_found(compare, changed):
    value = "s2/w/decoder.block.1.layer.1.EncDecAttention.v.weight"
    result = compare(changed(**{value: ((3, 5), 1e-3)}))
    assert result.returncode == 1
    failed = [line.split()[3] for line in result.stdout.splitlines() if line.startswith("FAIL")]
    assert "logits" in failed and "encoder_out" not in failed
    assert "FAIL stage 1" not in result.stdout


@pytest.mark.slow
def test_each_wrong_output_is_found(compare, changed):
    adapter = "decoder.block.0.layer.2.adapter_controller.adapters.superglue-cb.up_sampler.bias"
    result = compare(
        changed(
            **{
                "s1/out/ce": ((), 2e-5),
                "s2/out/gate/dec/1": ((0, 2), 2e-5),
                "s2/out/tsl/enc/0": ((), 2e-5),
                "s1/grad/task_shared": ((4, 1), 1e-4),
                f"s2/train/final/{adapter}": ((7,), 1e-3),
                "s2/train/losses": ((5,), 2e-3),
                "s1/train/lrs": ((2,), 1e-5),
                "s1/out/greedy_raw": ((0, 5), 1),
                "s2/out/greedy_generate": ((1, 1), 1),
            }
        )
    )
    assert result.returncode == 1
    failed = {line[5:65].strip() for line in result.stdout.splitlines() if line[:4] == "FAIL"}
    assert failed >= {
        "stage 1 ce",
        "stage 2 gate/dec/1",
        "stage 2 tsl/enc/0",
        "stage 1 gradient prompt/embedding",
        "stage 2 final decoder/layers_0/mlp/adapter/up/bias",
        "stage 2 losses of the steps",
        "stage 1 lrs of the steps",
        "stage 1 greedy_raw tokens",
        "stage 2 greedy_generate tokens",
    }
    assert "stage 2 logits" not in failed


@pytest.mark.slow
def test_a_file_that_is_none_is_one_sentence(compare, tmp_path):
    (tmp_path / "other.npz").write_bytes(b"not an archive")
    for path in (tmp_path / "missing.npz", tmp_path / "other.npz"):
        result = compare(path)
        assert result.returncode == 1 and "Traceback" not in result.stderr
        assert result.stderr.startswith("Expected an oracle file at")
