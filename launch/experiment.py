"""The runs of the demo, each a call of a public command, and what they measured."""

import contextlib
import dataclasses
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from pemt_jax.cli import command
from pemt_jax.cli.exit_codes import exit_code_of
from pemt_jax.cli.startup import startup
from pemt_jax.common.hashing import fingerprint
from pemt_jax.evaluate import evaluate
from pemt_jax.interop.base import load_base
from pemt_jax.library import artefact
from pemt_jax.library.expert import expert_names
from pemt_jax.library.hub import push_expert
from pemt_jax.library.transfer import add_expert, copy_expert, remove_expert
from pemt_jax.parallel import processes
from pemt_jax.run_config import MINI_T5
from pemt_jax.train import train

SOURCES = ("vader_movies", "vader_tweets", "vader_nyt", "vader_domain")
TARGET = "vader_amazon"
# Steps where stage1.gin's 1,000, which the film reviews need, are more than enough.
STEPS = {"vader_tweets": 240, "vader_nyt": 600, "vader_domain": 240}
PACKAGED = Path(MINI_T5).with_name("demo_library")  # experts that ship with the package


class CommandFailed(Exception):
    """A command failed with the exit code that is the argument, and has said why."""


def program(main: Callable[[], None]) -> int:
    """Call `main`; return its exit code, that of a command which failed in it included."""

    def action() -> int | None:
        try:
            return main()
        except CommandFailed as error:
            return error.args[0]

    return exit_code_of(action)


class Experiment:
    """Runs under one folder; a run that has ended is not made again.

    Args:
      folder: where runs and the expert library are.
    """

    def __init__(self, folder: str | os.PathLike):
        startup()
        self.folder = Path(folder)
        self.library = self.folder / "library"
        self.trained = 0  # runs made anew
        # Runs that differ by seed or examples only share their compiled steps.
        jax.config.update("jax_compilation_cache_dir", str((self.folder / "compiled").absolute()))
        self.base = fingerprint(load_base(MINI_T5)[1])

    def command(self, main, *files: str, **macros) -> None:
        """Call a gin main as its command line would be.

        Raises:
          CommandFailed: it failed.
        """
        flags = [f"--gin_file={file}" for file in files]
        flags += [f"--gin.{name}={value}" for name, value in macros.items()]
        print(f"\n$ python -m pemt_jax.{main.__name__} {shlex.join(flags)}", flush=True)
        code = command.run(main, flags, "importing TensorFlow and the tasks")
        if code:
            raise CommandFailed(code)

    def train(self, name: str, file: str, task: str, **macros) -> None:
        """Train a run, unless it has ended before on the same base."""
        run = self.folder / name
        card = run / "artefact"
        if not card.is_dir() or artefact.read_card(card).base_fingerprint != self.base:
            self.trained += 1
            self.command(
                train,
                file,
                MIXTURE_OR_TASK_NAME=task,
                MODEL_DIR=run,
                LIBRARY=self.library,
                **macros,
            )

    def test(self, name: str) -> dict[str, float]:
        """Metrics of a finished run on the target's test split."""
        return self._on_target(name, "test")

    def _on_target(self, name: str, split: str) -> dict[str, float]:
        path = self.folder / name / "evaluation" / f"{TARGET}-{split}.json"
        if not path.is_file():
            self.command(
                evaluate,
                MODEL_DIR=self.folder / name,
                MIXTURE_OR_TASK_NAME=TARGET,
                SPLIT=split,
                BUCKETS="(64,)",
            )
        return json.loads(path.read_text(encoding="utf-8"))

    def best_single_expert(self) -> str:
        """The source whose expert, as it is, answers the target's validation examples best."""
        return max(SOURCES, key=lambda task: accuracy(self._on_target(task, "validation")))

    def source(self, task: str) -> None:
        """Stage 1 on one source task."""
        steps = {"TRAIN_STEPS": STEPS[task]} if task in STEPS else {}
        self.train(task, "demo/stage1.gin", task, **steps)

    def packaged_source(self, task: str) -> None:
        """The packaged expert of a source task, in the library and as a finished run."""
        folder = self.folder / task
        if processes.is_first() and not folder.is_dir():
            artefact.read_artefact(PACKAGED / task, self.base)
            if task not in expert_names(self.library):
                add_expert(self.library, PACKAGED / task)
            copy_expert(PACKAGED / task, folder / "artefact", task)
        processes.barrier()

    def export(self, library: Path) -> None:
        """Write the experts to another library in bfloat16, replacing those of their names there.

        The metrics of their cards are those of the rounded weights.
        """
        from pemt_jax import api  # brings TensorFlow, which a command silences first

        library.mkdir(parents=True, exist_ok=True)
        for task in SOURCES:
            place = library / task
            if processes.is_first():
                if task in expert_names(library):
                    remove_expert(library, task)
                push_expert(self.library, task, str(library), "bfloat16")
            processes.barrier()
            metrics = api.open_model(place).evaluate("validation")
            if processes.is_first():
                card = dataclasses.replace(
                    artefact.read_card(place), metrics=artefact.finite_metrics(metrics)
                )
                artefact.write_card(place / artefact.CARD, card)
                shown = [f"{k} {v}" for k, v in artefact.brief(card.metrics).items()]
                print(f"{place}: {', '.join(shown)}", flush=True)

    def few_shot(self, method: str, shots: int, seed: int, rate: float, **macros) -> str:
        """Stage 2 ("pemt") or the adapter without experts on few examples; the run's name."""
        name = f"{method}_{shots}_seed{seed}_rate{rate:g}"
        if method == "pemt":
            macros |= {"METHOD": "pemt_target"}
        elif method == "adapter":
            macros |= {"METHOD": "adapter", "EXPERTS": "()"}
        self.train(
            name,
            "demo/stage2.gin",
            f"{TARGET}_{shots}_seed{seed}",
            SEED=seed,
            LEARNING_RATE=rate,
            **macros,
        )
        return name


def accuracy(metrics: dict[str, float]) -> float:
    """Accuracy from 0 to 1, as in the demo's files; a task's own is in percent."""
    return metrics["accuracy"] / 100


def gates(metrics: dict[str, float]) -> dict[str, float]:
    """Mean gate weight of each expert."""
    return {k.removeprefix("gate/"): v for k, v in metrics.items() if k.startswith("gate/")}


class Stopwatch:
    """Seconds since it was made, and of the phases that it was told of."""

    def __init__(self):
        self.start = time.monotonic()
        self.phases: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Context of a phase."""
        start = self.seconds
        yield
        self.phases[name] = round(self.seconds - start, 1)

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.start, 1)


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has started and that have ended."""
    return round(sum(os.times()[:4]), 1)


def matmul_gflops(size: int = 2048, repeats: int = 5) -> float:
    """Billion float32 operations per second of a square matrix product, the best of the repeats."""
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return round(2e-9 * size**3 / min(seconds), 1)
