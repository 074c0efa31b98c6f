"""The runs of the demo and the study, each a call of a public command, and what they measured."""

import json
import shlex
import sys
import time
from pathlib import Path

import jax

from pemt_jax.cli import command
from pemt_jax.common.hashing import fingerprint
from pemt_jax.evaluate import evaluate
from pemt_jax.interop.base import load_base
from pemt_jax.library import artefact
from pemt_jax.run_config import MINI_T5
from pemt_jax.train import train

SOURCES = ("vader_movies", "vader_tweets", "vader_nyt", "vader_domain")
POOLED = "vader_sources"
TARGET = "vader_amazon"
# Steps where stage1.gin's 2,000, which the film reviews need, are more than enough.
STEPS = {"vader_tweets": 1000, "vader_nyt": 1600, "vader_domain": 400}


class Experiment:
    """Runs under one folder; a run that has ended is not made again.

    Args:
      folder: where runs and the expert library are.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.library = self.folder / "library"
        self.trained = 0  # runs made anew
        # Runs that differ by seed or examples only share their compiled steps.
        jax.config.update("jax_compilation_cache_dir", str((self.folder / "compiled").absolute()))
        self.base = fingerprint(load_base(MINI_T5)[1])

    def command(self, main, *files: str, **macros) -> None:
        """Call a gin main as its command line would be; end the program when it fails."""
        flags = [f"--gin_file={file}" for file in files]
        flags += [f"--gin.{name}={value}" for name, value in macros.items()]
        print(f"\n$ python -m pemt_jax.{main.__name__} {shlex.join(flags)}", flush=True)
        code = command.run(main, flags)
        if code:
            sys.exit(code)

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
                BUCKETS="(32, 64)",
            )
        return json.loads(path.read_text(encoding="utf-8"))

    def best_single_expert(self) -> str:
        """The source whose expert, as it is, answers the target's validation examples best."""
        return max(SOURCES, key=lambda task: accuracy(self._on_target(task, "validation")))

    def validation(self, name: str) -> float:
        """Accuracy of a finished run's best checkpoint on validation."""
        return accuracy(artefact.read_card(self.folder / name / "artefact").metrics)

    def source(self, task: str) -> None:
        """Stage 1 on one source task."""
        steps = {"TRAIN_STEPS": STEPS[task]} if task in STEPS else {}
        self.train(task, "demo/stage1.gin", task, **steps)

    def few_shot(self, method: str, shots: int, seed: int, rate: float, **macros) -> str:
        """Stage 2, or what it is compared with, on a few target examples; the run's name."""
        name = f"{method}_{shots}_seed{seed}_rate{rate:g}"
        if method == "pemt":
            macros |= {"METHOD": "pemt_target"}
        elif method == "adapter":
            macros |= {"METHOD": "adapter", "EXPERTS": "()"}
        elif method == "lora":
            macros |= {"METHOD": "lora", "EXPERTS": "()", "INITIAL_EXPERT": POOLED}
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
    """Accuracy from 0 to 1, as in the demo's and the study's files; a task's own is in percent."""
    return metrics["accuracy"] / 100


def gates(metrics: dict[str, float]) -> dict[str, float]:
    """Mean gate weight of each expert."""
    return {k.removeprefix("gate/"): v for k, v in metrics.items() if k.startswith("gate/")}


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self):
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.start, 1)
