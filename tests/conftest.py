"""Settings of all tests: the CPU, strict rank promotion, an expert small enough to write out."""

import logging
import os
import signal

# A shell that runs the suite in the background has it ignore Ctrl-C, and so would the processes
# that tests start and send one to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Only the tests that ask for them see real data sets; all others have hand-written examples.
RAW_DATA = os.environ.pop("PEMT_JAX_RAW_DATA", None)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from pemt_jax.library import expert as library  # noqa: E402
from pemt_jax.library.artefact import Card  # noqa: E402

TINY_BASE = "b" * 64


@pytest.fixture(autouse=True)
def strict_rank_promotion():
    """Broadcasting between ranks is an error in our own code, not in the libraries' set-up."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True)
def logs_reach_pytest():
    """Our programs keep their log to themselves, and some have run in this process."""
    logging.getLogger("pemt_jax").propagate = True


@pytest.fixture
def expert_arrays():
    """Make the flat trainables of stage 1 for one layer a stack."""

    def make(seed=0, D=6, F=10, R=3, P=4, layers=("encoder/layers_0", "decoder/layers_0")):
        rng = np.random.default_rng(seed)
        arrays = {"prompt/embedding": rng.normal(size=(P, D)).astype(np.float32)}
        for layer in layers:
            arrays[f"{layer}/mlp/expert/lora_a"] = rng.normal(size=(F, R)).astype(np.float32)
            arrays[f"{layer}/mlp/expert/lora_b"] = rng.normal(size=(R, D)).astype(np.float32)
        return arrays

    return make


@pytest.fixture
def save_expert(tmp_path, expert_arrays):
    """Save a small expert under tmp_path/library and return the library's folder."""

    def save(name, base_fingerprint=TINY_BASE, arrays=None, **shape):
        library.save_expert(
            tmp_path / "library",
            name,
            arrays or expert_arrays(**shape),
            Card(
                kind="expert",
                method="pemt_source",
                task=f"{name}_task",
                description=f"the {name}",
                base_fingerprint=base_fingerprint,
                base_name="tiny",
                metrics={"accuracy": 0.75},
                config={"rank": 3},
            ),
        )
        return tmp_path / "library"

    return save


@pytest.fixture
def real_data(monkeypatch):
    """The folder that PEMT_JAX_RAW_DATA named when the tests were started."""
    if not RAW_DATA:
        pytest.skip(
            "PEMT_JAX_RAW_DATA names no folder of data sets as their authors distribute them"
        )
    monkeypatch.setenv("PEMT_JAX_RAW_DATA", RAW_DATA)
    return RAW_DATA


@pytest.fixture(scope="session")
def tfds_folder(tmp_path_factory):
    """Prepared TFDS folders of a few rows for every data set of the registry."""
    import tiny_tfds

    return tiny_tfds.write_all(tmp_path_factory.mktemp("tensorflow_datasets"))


@pytest.fixture
def tiny_data(tfds_folder):
    """Let SeqIO look for TFDS data in the tiny folders."""
    import seqio

    seqio.set_tfds_data_dir_override(str(tfds_folder))
    yield tfds_folder
    seqio.set_tfds_data_dir_override(None)
