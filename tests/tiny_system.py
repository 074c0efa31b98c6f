"""A whole system small enough for tests: a random T5 of width 16, tasks from Python lists, runs.

The tasks register when this module is imported, by a test or by a gin file (`import tiny_system`).
`World` is a folder with a base, a library of two experts and finished runs, each made at first use
by the package's own commands, once a test session.
"""

import dataclasses
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gin
import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf
from flax import traverse_util

from pemt_jax import evaluate, optimizers, predict, train
from pemt_jax.cli import command as cli
from pemt_jax.common.weights import load_weights
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.data.batching import make_batch
from pemt_jax.interop.hf import load_hf, save_hf
from pemt_jax.library.expert import load_expert, stack_experts
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.runs import train as runs_train
from pemt_jax.runs.initialization import initial_parameters
from pemt_jax.tasks import vocabulary
from pemt_jax.tasks.descriptions import register_description
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY
from pemt_jax.training.trainer import Trainer

T5 = T5Config(
    vocab_size=8100,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.1,
)
OPTIONS = PemtConfig(expert_rank=4, adapter_dim=4)
LENGTHS = {"inputs": 16, "targets": 4}
BUCKETS = (16,)  # each step is compiled once
EXPERTS = ("tiny_topic", "tiny_mood")  # an order of our own: no sorting gives it
MAINS = {"train": train.train, "evaluate": evaluate.evaluate, "predict": predict.predict}

MOODS = {"positive": ("good", "great", "fine", "happy"), "negative": ("bad", "dull", "poor", "sad")}
TOPICS = ("film", "book", "song")
SIZES = {"train": 22, "validation": 9, "test": 8}  # in batches of 8 only the last fills them

# A gin file as a user writes one; the macros fill train's other arguments.
GIN = """
from __gin__ import dynamic_registration

import tiny_system
from pemt_jax import config
from pemt_jax import optimizers
from pemt_jax import train

train.train:
    model_dir = %MODEL_DIR
    mixture_or_task_name = %MIXTURE_OR_TASK_NAME
    task_feature_lengths = {'inputs': 16, 'targets': 4}
    train_steps = %TRAIN_STEPS
    batch_size = %BATCH_SIZE
    method = %METHOD
    initial_checkpoint_path = %INITIAL_CHECKPOINT_PATH
    options = @config.PemtConfig()
    optimizer = @optimizers.make_optimizer()
    eval_every = 10
    eval_batch_size = 8
    buckets = (16,)
    log_every = 1

MODEL_DIR = %gin.REQUIRED
MIXTURE_OR_TASK_NAME = %gin.REQUIRED
INITIAL_CHECKPOINT_PATH = %gin.REQUIRED
METHOD = 'pemt_source'
TRAIN_STEPS = 20
BATCH_SIZE = 8
LEARNING_RATE = 0.01

config.PemtConfig.expert_rank = 4
config.PemtConfig.adapter_dim = 4
optimizers.make_optimizer.schedule = %LEARNING_RATE
"""


def rows(what: str, split: str) -> list[tuple[str, str]]:
    """(inputs, targets) of a split; the splits of a task have no row in common."""
    start = 100 * list(SIZES).index(split)
    found = []
    for i in range(start, start + SIZES[split]):
        mood = list(MOODS)[i % 2]
        word, topic = MOODS[mood][i // 2 % 4], TOPICS[i // 3 % 3]
        text = f"{what}: the {word} {topic} number {i}" + " is here" * (i % 2)
        found.append((text, mood if what == "mood" else topic))
    return found


def add_task(
    name: str, examples: Callable[[str], list[tuple[str, str]]], splits=tuple(SIZES), metrics=True
) -> None:
    """Register a task over (inputs, targets); `metrics=False` for one that only has a loss."""

    def dataset(split, shuffle_files=False, seed=None):
        inputs, targets = zip(*examples(split), strict=True) if examples(split) else ((), ())
        return tf.data.Dataset.from_tensor_slices(
            {"inputs": tf.constant(inputs, tf.string), "targets": tf.constant(targets, tf.string)}
        )

    feature = seqio.Feature(DEFAULT_VOCABULARY, add_eos=True)
    # Named for its rows, so that a cache of tokens never outlives a change of them.
    dataset.__qualname__ = repr([examples(split) for split in splits])
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=splits),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
        output_features={"inputs": feature, "targets": feature},
        metric_fns=[accuracy] if metrics else [],
    )


def accuracy(targets, predictions):
    return {"accuracy": float(np.mean([t == p for t, p in zip(targets, predictions, strict=True)]))}


def _register() -> None:
    add_task("tiny_mood", functools.partial(rows, "mood"))
    add_task("tiny_topic", functools.partial(rows, "topic"))
    add_task("tiny_text", functools.partial(rows, "topic"), metrics=False)
    add_task("tiny_train_only", functools.partial(rows, "topic"), splits=("train",))
    add_task("tiny_empty", lambda split: rows("mood", split) if split == "validation" else [])
    add_task("tiny_wordy", lambda split: [("mood: a film", "a very " + "very " * 9 + "good film")])
    seqio.MixtureRegistry.add("tiny_both", [("tiny_mood", 2.0), ("tiny_topic", 1.0)])
    seqio.MixtureRegistry.add("tiny_half", [("tiny_mood", 1.0), ("tiny_train_only", 1.0)])
    for name in ("tiny_mood", "tiny_topic", "tiny_train_only", "tiny_empty", "tiny_wordy"):
        register_description(name, f"Say the {name.removeprefix('tiny_')} of a text.")


_register()


def random_base(folder: Path, t5: T5Config = T5, seed: int = 0) -> Path:
    """Write a random T5 as a Hugging Face folder."""
    params, _ = initial_parameters(PemtModel(t5, PemtConfig()), seed)
    save_hf(folder, t5, params, "float32")
    return folder


def optimizer(learning_rate=0.01):
    """The rate does not depend on the number of steps, so a run may be given more of them."""
    return optimizers.make_optimizer(schedule=learning_rate)


@dataclasses.dataclass(frozen=True)
class World:
    """Where the tiny system lives."""

    folder: Path

    @property
    def pretrained(self) -> Path:
        """A finished run of method full from nothing, on both tasks."""
        return _once(
            self.folder / "pretrained",
            lambda folder: self.train(
                folder,
                "tiny_both",
                40,
                method="full",
                initial_checkpoint_path=None,
                t5=T5,
                eval_every=None,
            ),
        )

    @property
    def base(self) -> Path:
        """A T5 that has seen the tasks: some of its predictions are right."""
        return self.pretrained / "base"

    @property
    def library(self) -> Path:
        """Two experts, trained by two runs of stage 1."""
        return _once(self.folder / "library", self._train_experts)

    @property
    def target(self) -> Path:
        """A finished run of stage 2 on tiny_mood."""
        return _once(
            self.folder / "target",
            lambda folder: self.train(
                folder, method="pemt_target", library=str(self.library), experts=EXPERTS
            ),
        )

    @property
    def gin_file(self) -> Path:
        return _once(self.folder / "tiny.gin", lambda path: path.write_text(GIN))

    @property
    def source(self) -> Path:
        """The finished run of stage 1 on tiny_mood, which made the expert of that name."""
        return (self.library and self.folder) / "stage1" / "tiny_mood"

    def _train_experts(self, library: Path) -> None:
        for name in EXPERTS:
            assert not self.command(
                "train",
                *self.train_flags(
                    self.folder / "stage1" / name, MIXTURE_OR_TASK_NAME=name, LIBRARY=library
                ),
            )

    def train(self, model_dir: Path, task: str = "tiny_mood", steps: int = 20, **options):
        """Call the command's function with the tiny system's defaults."""
        gin.clear_config()  # what a command before has left
        if "initial_checkpoint_path" not in options:
            options |= {"initial_checkpoint_path": str(self.base)}
        defaults = dict(
            task_feature_lengths=LENGTHS,
            batch_size=8,
            optimizer=optimizer(),
            method="pemt_target",
            options=OPTIONS,
            eval_every=10,
            eval_batch_size=8,
            buckets=BUCKETS,
            log_every=1,
            library=str(self.folder / "library"),
        )
        return train.train(
            model_dir=str(model_dir),
            mixture_or_task_name=task,
            train_steps=steps,
            **(defaults | options),
        )

    def command(self, main: str, *flags: str) -> int:
        """Run a command in this process as from a shell and return its exit code."""
        return cli.run(MAINS[main], list(flags))

    def train_flags(self, model_dir: Path, **macros) -> list[str]:
        """Flags of a training command."""
        macros = {
            "MODEL_DIR": model_dir,
            "MIXTURE_OR_TASK_NAME": "tiny_mood",
            "INITIAL_CHECKPOINT_PATH": self.base,
            "LIBRARY": model_dir.parent / "library",
        } | macros
        return [
            f"--gin_file={self.gin_file}",
            *(f"--gin.{name}={value}" for name, value in macros.items() if value is not None),
        ]

    def environment(self, devices: int = 1) -> dict[str, str]:
        """Of a subprocess: its caches are those of this process."""
        return os.environ | {
            "PYTHONPATH": str(Path(__file__).parent),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }

    def python(self, *arguments, devices: int = 1, **options) -> subprocess.CompletedProcess:
        """Run Python in a process of its own."""
        options = {"capture_output": True, "text": True, "timeout": 300} | options
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(devices),
            **options,
        )

    def by_hand(self, model_dir: Path, split: str = "test") -> list[dict]:
        """What a target run says of each row of its task, found without pemt_jax.runs or batches.

        Rows are alone in their batches, and padded to a length that the package has no bucket of.
        A dict a row: input, target, prediction, score (its log probability), cross_entropy (sum
        over the target's tokens), tokens (their number), mean_gate [E].
        """
        card = json.loads((model_dir / "artefact" / "card.json").read_text())
        t5, params = load_hf(self.base)
        experts = [load_expert(self.library, expert["name"]) for expert in card["experts"]]
        params |= stack_experts(experts, PemtConfig(**card["config"]["pemt"]))
        params |= load_weights(model_dir / "artefact" / "weights.safetensors")
        params = traverse_util.unflatten_dict(params, sep="/")
        model = PemtModel(t5, PemtConfig(**card["config"]["pemt"]))
        decode = jax.jit(model.predict_batch_with_aux)
        evaluate_row = jax.jit(model.eval_fn)
        found = []
        for text, target in rows(card["task"].removeprefix("tiny_"), split):
            pair = [np.array([*DEFAULT_VOCABULARY.encode(part), 1]) for part in (text, target)]
            batch = make_batch([pair], 1, 12, LENGTHS["targets"])
            tokens, aux = jax.device_get(decode(params, batch))
            metrics = jax.device_get(evaluate_row(params, batch)[1])
            tokens = tokens[0].tolist()
            tokens = tokens[: tokens.index(1)] if 1 in tokens else tokens
            found.append(
                {
                    "input": text,
                    "target": target,
                    "prediction": DEFAULT_VOCABULARY.decode(tokens),
                    "score": aux["scores"][0],
                    "cross_entropy": metrics["cross_entropy"].total,
                    "tokens": metrics["cross_entropy"].count,
                    "mean_gate": [metrics[f"gate/{expert.name}"].total for expert in experts],
                }
            )
        return found


def _once(path: Path, make: Callable[[Path], object]) -> Path:
    if not path.exists():
        make(path)
    return path


def jax_settings(folder: Path) -> dict[str, object]:
    """With which a process has the bits of the commands that `World` and forking.py start."""
    return {
        "jax_compilation_cache_dir": str(folder / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_disable_most_optimizations": True,  # of the compiler, which takes most of the time
    }


@pytest.fixture(name="world")
def world_fixture(tmp_path_factory, monkeypatch):
    """The tiny system of this session; its caches of tokens and compiled steps are its own."""
    folder = tmp_path_factory.getbasetemp() / "tiny_system"
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("PEMT_JAX_CACHE", str(folder / "cache"))
    settings = jax_settings(folder)
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    vocabulary.prefer(None)
    gin.clear_config()
    yield World(folder)
    vocabulary.prefer(None)
    gin.clear_config()
    for name, value in before.items():
        jax.config.update(name, value)


class Recorder:
    """Watches the trainers that `train` makes: their batches, and what was frozen.

    `after` is called once, with the trainer, when so many updates were made.
    """

    def __init__(
        self, world, monkeypatch, updates: int | None = None, after: Callable | None = None
    ):
        assert world.library  # made before anyone watches
        self.trainers, self.batches = [], []
        recorder = self

        class Watched(Trainer):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                recorder.trainers.append(self)
                self.first_trainable = jax.device_get(self.state.trainable)

            def step(self, batch):
                metrics = super().step(batch)
                recorder.batches.append(digest(batch))
                if len(recorder.batches) == updates:
                    after(self)
                return metrics

        monkeypatch.setattr(runs_train, "Trainer", Watched)


def stop(_) -> None:
    """Ask this process to stop, as a machine that is taken away does."""
    signal.raise_signal(signal.SIGTERM)


def digest(arrays) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].shape}".encode() + arrays[name].tobytes())
    return found.hexdigest()


def leaves(model_dir: Path, step: int) -> dict[str, dict]:
    """{path: {sha256, shape, dtype}} of a checkpoint: equal exactly where all bits are."""
    path = model_dir / "checkpoints" / str(step) / "manifest" / "metadata"
    return json.loads(path.read_text())["leaves"]


def snapshot(folder: Path) -> dict[str, str]:
    """{path: sha256} of every file, and the folders."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }
