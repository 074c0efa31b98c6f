"""Peak host memory of a run's start, against the bytes of its parameters as they are kept.

    python tests/benchmarks/host_memory.py --shape 3B

writes a random base of that shape in bfloat16 to a temporary folder, then does in processes of
their own what `train` does up to its first step: finds the fingerprint of the base, builds the
model of stage 1 and places everything on the devices, which on a CPU are host memory too. In turn:

    first start              one process that has to take the fingerprint
    one process              a later one, which finds it in the cache
    one process, SeqIO       with all that a run on SeqIO's tasks imports, TensorFlow above all
    two processes            on this machine, the backbone fully sharded over them; also with SeqIO

Prints JSON in GiB: the parameters of the model, the peak of resident memory (of it the anonymous
part, which is not the code of libraries), and the ratio of the peak to the parameters. Of two
processes the larger numbers count. It needs free memory of 1.5 times the parameters.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from pemt_jax.common.lazy_array import Index, LazyArray
from pemt_jax.config import PemtConfig
from pemt_jax.interop.hf import save_hf
from pemt_jax.interop.hf_names import parameter_table
from pemt_jax.planning.shapes import shape_named
from pemt_jax.run_config import MINI_T5, ExpertsConfig, ModelConfig

LAUNCH = Path(__file__).parents[2] / "launch" / "local_processes.sh"
VOCABULARY = 8100  # the packaged one
PROMPT = "Say whether a text is good or bad."
STARTS = {  # name: (processes, whether SeqIO is imported)
    "first start": (1, False),
    "one process": (1, False),
    "one process, SeqIO": (1, True),
    "two processes": (2, False),
    "two processes, SeqIO": (2, True),
}


def write_base(folder: Path, shape: str) -> None:
    """Write a random T5 of a shape, array by array."""
    t5 = dataclasses.replace(shape_named(shape), vocab_size=VOCABULARY)
    random = np.random.default_rng(0)

    def lazy(size: tuple[int, ...]) -> LazyArray:
        def read(index: Index) -> np.ndarray:
            del index  # a file is written array by array
            return random.standard_normal(size, np.float32).astype(ml_dtypes.bfloat16)

        return LazyArray(size, np.dtype(ml_dtypes.bfloat16), read)

    save_hf(folder, t5, {e.path: lazy(e.shape) for e in parameter_table(t5)}, None)


class Vocabulary:
    """The packaged vocabulary as `build_model` needs it, without SeqIO."""

    def __init__(self):
        import sentencepiece

        file = Path(MINI_T5) / "spiece.model"
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
        self.encode, self.eos_id, self.vocab_size = pieces.encode, pieces.eos_id(), VOCABULARY
        self.sha256 = hashlib.sha256(file.read_bytes()).hexdigest()


def resident() -> dict[str, int]:
    """Bytes of this process: the most it ever had (VmHWM), and those it has now by kind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return {
        name: int(values[name].split()[0]) * 1024
        for name in ("VmHWM", "VmRSS", "RssAnon", "RssFile")
    }


class AnonymousPeak(threading.Thread):
    """Looks at the anonymous memory every few milliseconds: the kernel keeps no peak of it."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes = 0
        self.start()

    def run(self) -> None:
        while True:
            self.bytes = max(self.bytes, resident()["RssAnon"])
            time.sleep(0.005)


def start(base: str, seqio: bool) -> dict[str, float]:
    """Start a run of stage 1; return gibibytes, and the seconds that it took without imports."""
    import jax
    import optax

    from pemt_jax.parallel import processes
    from pemt_jax.runs.build_model import build_model
    from pemt_jax.training.trainer import Trainer

    if seqio:
        import pemt_jax.runs.train  # noqa: F401
    imported, peak, began = resident()["VmRSS"], AnonymousPeak(), time.perf_counter()
    with processes.joined():
        config = ModelConfig(
            "pemt_source",
            base,
            options=PemtConfig(expert_rank=64),
            prompt_text=PROMPT,
            frozen_dtype="bfloat16",
        )
        built = build_model(config, Vocabulary(), ExpertsConfig())
        trainable, frozen = built.split()
        built.params.clear()
        kept = sum(array.nbytes for array in (trainable | frozen).values())
        trainer = Trainer(
            built.model.loss_fn,
            trainable,
            frozen,
            optax.sgd(0.1),
            params_axes=built.params_axes,
            fully_sharded=jax.process_count() > 1,
            release=True,
        )
        jax.block_until_ready((trainer.frozen, trainer.state))
        seconds, now = time.perf_counter() - began, resident()
        found = {
            "parameters": kept,
            "imports": imported,
            "peak": now["VmHWM"],
            "anonymous": max(peak.bytes, now["RssAnon"]),
            "after": now["VmRSS"],
        }
        return {name: value / 2**30 for name, value in found.items()} | {"seconds": seconds}


def measure(base: Path, cache: Path, processes: int, seqio: bool) -> dict[str, float]:
    """The largest numbers of the processes of one start."""
    command = [sys.executable, "-P", __file__, "--base", str(base), *["--seqio"] * seqio]
    if processes > 1:
        command = [str(LAUNCH), "--processes", str(processes), "--", *command]
    environment = os.environ | {"PEMT_JAX_CACHE": str(cache)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == processes, done.stdout
    most = {name: max(row[name] for row in rows) for name in rows[0]}
    return most | {"ratio": most["peak"] / most["parameters"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="3B")
    parser.add_argument("--base", help=argparse.SUPPRESS)
    parser.add_argument("--seqio", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.base:
        print(json.dumps(start(options.base, options.seqio)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        write_base(base, options.shape)
        time.sleep(2)  # the fingerprint of a base written just now is not kept
        for name, (processes, seqio) in STARTS.items():
            found = measure(base, Path(folder) / "cache", processes, seqio)
            rounded = {key: round(value, 2) for key, value in found.items()}
            print(json.dumps({"shape": options.shape, "start": name} | rounded), flush=True)


if __name__ == "__main__":
    main()
