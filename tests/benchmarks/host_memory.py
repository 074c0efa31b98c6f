"""Peak host memory of a run's start, against the bytes of its parameters as they are kept.

    python tests/benchmarks/host_memory.py --shape 3B

writes a random base of that shape in bfloat16 to a temporary folder, then, in a process of its own,
does what `train` does up to its first step: reads the base, takes its fingerprint, builds the model
of stage 1 and places everything on the device, which on a CPU is host memory too.
Prints JSON; the aim is a peak of at most 1 GiB above the parameters.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

from pemt_jax.common.lazy_array import LazyArray
from pemt_jax.config import PemtConfig
from pemt_jax.interop.hf import save_hf
from pemt_jax.interop.hf_names import parameter_table
from pemt_jax.planning.shapes import shape_named
from pemt_jax.run_config import ExpertsConfig, ModelConfig

VOCABULARY = 8100  # the packaged one
PROMPT = "Say whether a text is good or bad."


def write_base(folder: Path, shape: str) -> None:
    """Write a random T5 of a shape, array by array."""
    t5 = dataclasses.replace(shape_named(shape), vocab_size=VOCABULARY)
    random = np.random.default_rng(0)

    def lazy(size: tuple[int, ...]) -> LazyArray:
        def read() -> np.ndarray:
            return random.standard_normal(size, np.float32).astype(ml_dtypes.bfloat16)

        return LazyArray(size, np.dtype(ml_dtypes.bfloat16), read)

    save_hf(folder, t5, {e.path: lazy(e.shape) for e in parameter_table(t5)}, None)


def start(base: str) -> dict[str, float]:
    """Start a run of stage 1; return gibibytes."""
    import jax
    import optax

    from pemt_jax.runs.build_model import build_model
    from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY
    from pemt_jax.training.trainer import Trainer

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    config = ModelConfig(
        "pemt_source",
        base,
        options=PemtConfig(expert_rank=64),
        prompt_text=PROMPT,
        frozen_dtype="bfloat16",
    )
    built = build_model(config, DEFAULT_VOCABULARY, ExpertsConfig())
    trainable, frozen = built.split()
    built.params.clear()
    kept = sum(array.nbytes for array in (trainable | frozen).values())
    trainer = Trainer(
        built.model.loss_fn,
        trainable,
        frozen,
        optax.sgd(0.1),
        params_axes=built.params_axes,
        release=True,
    )
    jax.block_until_ready(trainer.frozen)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"parameters": kept / 2**30, "imports": before / 2**30, "peak": peak / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="3B")
    parser.add_argument("--base", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.base:
        print(json.dumps(start(options.base)))
        return
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        write_base(base, options.shape)
        command = [sys.executable, __file__, "--base", str(base)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    found["above"] = found["peak"] - found["parameters"]
    print(
        json.dumps(
            {"shape": options.shape}
            | {k: round(v, 2) for k, v in found.items() if isinstance(v, float)}
        )
    )


if __name__ == "__main__":
    main()
