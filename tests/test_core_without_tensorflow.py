"""The core runs where jax, flax, optax, clu and numpy are installed and nothing else of ours.

A machine rented for its accelerator needs no TensorFlow, SeqIO or orbax to train steps or to time
them. Here a child process in which these imports fail stands for it.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest

TESTS = Path(__file__).parent
BENCHMARKS = TESTS / "benchmarks"
ABSENT = (
    *("tensorflow", "tensorflow_datasets", "tensorboard", "seqio", "sentencepiece", "orbax"),
    *("grain", "gin", "safetensors", "sklearn", "tqdm", "matplotlib", "torch", "transformers"),
)


def in_bare_process(code: str, *arguments: str) -> str:
    """Run `code` where the packages of ABSENT cannot be imported; return what it printed."""
    absent = f"import sys\nsys.modules |= dict.fromkeys({ABSENT!r})\n"  # None makes an import fail
    paths = f"sys.path[:0] = [{str(TESTS)!r}, {str(BENCHMARKS)!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", absent + paths + textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},  # compiles sooner
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def run_benchmark(script: str, *arguments: str):
    """What a benchmark prints in a bare process, read as JSON."""
    code = f"import runpy\nrunpy.run_path({str(BENCHMARKS / script)!r}, run_name='__main__')"
    return json.loads(in_bare_process(code, *arguments))


def test_every_module_of_the_core_imports():
    code = """
        import importlib, json, pkgutil
        import pemt_jax.model, pemt_jax.parallel

        rooms = (pemt_jax.model, pemt_jax.parallel)
        names = [f"{r.__name__}.{m.name}" for r in rooms for m in pkgutil.iter_modules(r.__path__)]
        names += ["pemt_jax", "pemt_jax.config", "pemt_jax.optimizers"]
        names += ["pemt_jax.training.step", "pemt_jax.training.trainer", "clu.metrics"]
        names += ["pemt_jax.interop.base", "pemt_jax.runs.build_model"]
        names += "step_ratios pieces tricks growth gpu_mfu memory systems timing".split()
        failed = {}
        for name in names:
            try:
                importlib.import_module(name)
            except ImportError as error:
                failed[name] = str(error)
        print(json.dumps([names, failed]))
    """
    names, failed = json.loads(in_bare_process(code))
    assert failed == {}
    assert {"pemt_jax.model.pemt_model", "pemt_jax.parallel.partitioning"} <= set(names)


def test_stage_2_steps_run():
    code = """
        import json
        import jax, jax.numpy as jnp
        from tiny_model import T5, TARGET, make_batch, random_params
        from pemt_jax.model.methods import get_method, split
        from pemt_jax.model.pemt_model import PemtModel
        from pemt_jax.optimizers import make_optimizer
        from pemt_jax.parallel import partitioning
        from pemt_jax.training import step as steps

        params, batch = random_params(T5, TARGET), make_batch([3, 6], [4, 2], S=6, T=5)
        trainable, frozen = split(params, get_method("pemt_target"))
        mesh, optimizer = partitioning.make_mesh(1, devices=jax.devices()[:1]), make_optimizer()
        shardings = [partitioning.parameter_shardings(x, {}, mesh) for x in (trainable, frozen)]
        train_step = steps.jit_train_step(
            PemtModel(T5, TARGET).loss_fn,
            optimizer,
            steps.state_shardings(trainable, optimizer, shardings[0], mesh),
            shardings[1],
            mesh,
        )
        state = steps.TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))
        losses = []
        for _ in range(2):
            batch = partitioning.place_batch(batch, mesh)
            state, metrics = train_step(state, frozen, batch, jax.random.key(0))
            losses.append(steps.compute_metrics({"loss": metrics["loss"]})["loss"])
        print(json.dumps([int(state.step), *losses]))
    """
    step, first, second = json.loads(in_bare_process(code))
    assert step == 2
    assert 0 < second < first


@pytest.mark.slow
def test_step_benchmark_runs():
    options = "--seconds_only --size mini --batch 1 --source 8 --repeats 2"
    seconds = run_benchmark("tricks.py", *options.split())
    assert len(seconds) == 2 and min(seconds) > 0


def test_accelerator_benchmark_runs():
    row = run_benchmark("gpu_mfu.py", "--json")["gpu_mfu"]
    assert row["details"]["device"] == jax.devices()[0].device_kind
    assert (row["value"] is None) == (jax.default_backend() == "cpu")
