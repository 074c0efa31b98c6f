"""The tiny system under T5X: its trainer in this process, its commands in others."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import tiny_system
from built import assemble
from t5x import partitioning, trainer

from pemt_jax import optimizers
from pemt_jax.data.batching import make_batch
from pemt_jax.library.artefact import Card
from pemt_jax.library.expert import save_expert
from pemt_jax.model.methods import METHODS, split
from pemt_jax.runs.build_model import BuiltModel
from pemt_jax.t5x import bridge as t5x_bridge
from pemt_jax.t5x import state as t5x_state
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY

GIN = """
from __gin__ import dynamic_registration
import tiny_system
from pemt_jax import config
EVAL_PERIOD = 10
SAVE_EVERY = 10
EVAL_STEPS = 1
LEARNING_RATE = 0.01
WARMUP_STEPS = 0
config.PemtConfig.expert_rank = 4
config.PemtConfig.adapter_dim = 4
"""


def make(
    folder: Path, method: str, dropout_rate: float = 0.0, linears: tuple[str, ...] = ("wo",)
) -> BuiltModel:
    """A model on a random base, with two random experts beside `linears` where it mixes any."""
    base, library = folder / "base", folder / "_".join(("library", *linears))
    if not base.exists():
        tiny_system.random_base(base)
    common = dict(base=str(base), dropout_rate=dropout_rate)
    common["options"] = dataclasses.replace(tiny_system.OPTIONS, expert_linears=linears)
    experts = ("nli", "qa") if METHODS[method].experts else ()
    for seed, name in enumerate(experts if not library.exists() else ()):
        text = f"Answer {name}."
        made = assemble("pemt_source", DEFAULT_VOCABULARY, prompt_text=text, **common)
        random = np.random.default_rng(seed)
        values = {
            path: random.normal(size=value.shape).astype(np.float32) / 4
            for path, value in split(made.nested(), made.method)[0].items()
        }
        save_expert(
            library,
            name,
            values,
            Card(
                kind="expert",
                method="pemt_source",
                task=name,
                description=text,
                base_fingerprint=made.identity["base"],
            ),
        )
    return assemble(
        method,
        DEFAULT_VOCABULARY,
        library=str(library),
        experts=experts,
        prompt_text=None if method == "full" else "Say the mood.",
        **common,
    )


def make_t5x_trainer(
    made: BuiltModel,
    optimizer=None,
    seed: int = 0,
    initializer=None,
    microbatches: int | None = None,
) -> trainer.Trainer:
    """T5X's trainer on one device, as t5x.train puts it together."""
    optimizer = optimizer or optimizers.make_optimizer(schedule=0.01)
    model = t5x_bridge.PemtT5X(made, optimizer)
    partitioner = partitioning.PjitPartitioner(
        num_partitions=1,
        logical_axis_rules=partitioning.standard_logical_axis_rules(
            additional_rules=t5x_bridge.logical_axis_rules()
        ),
    )
    states = (initializer or t5x_state.StateInitializer)(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes={name: value.shape for name, value in batch_at(0).items()},
        partitioner=partitioner,
    )
    return trainer.Trainer(
        model=model,
        train_state=states.from_scratch(jax.random.PRNGKey(0)),
        partitioner=partitioner,
        train_state_axes=states.train_state_axes,
        eval_names=[],
        summary_dir=None,
        rng=jax.random.PRNGKey(seed),
        learning_rate_fn=lambda step: 0.01,
        num_microbatches=microbatches,
    )


def batch_at(step: int) -> dict[str, np.ndarray]:
    rows = tiny_system.rows("mood", "train")[step % 3 : step % 3 + 8]
    pairs = [[np.array([*DEFAULT_VOCABULARY.encode(part), 1]) for part in row] for row in rows]
    return make_batch(pairs, 8, 16, 4)


def command(world, script: str, *flags: str, **macros) -> list[str]:
    """The command line of `python -m t5x.{script}`."""
    (world.folder / "t5x.gin").write_text(GIN)
    (world.folder / "tasks.gin").write_text("\n".join(GIN.splitlines()[:3]))
    macros = {"TASK_FEATURE_LENGTHS": tiny_system.LENGTHS, "BATCH_SIZE": 8} | macros
    files = flags or (f"pemt_jax/configs/t5x/{script}.gin", "tasks.gin")
    return [
        sys.executable,
        "-m",
        f"t5x.{script}",
        *(f"--gin_file={name}" for name in files),
        *(f"--gin.{name}={value!r}" for name, value in macros.items()),
    ]


def run(world, *arguments, devices: int = 1, expected_code: int = 0, **macros) -> str:
    """Run a command of T5X to its end; return what it said."""
    done = subprocess.run(
        command(world, *arguments, **macros),
        cwd=world.folder,
        capture_output=True,
        text=True,
        env=world.environment(devices),
        timeout=600,
    )
    assert done.returncode == expected_code, done.stderr[-3000:]
    return done.stderr


def under_t5x(world, name, stage, files=(), **macros):
    macros = {
        "MODEL_DIR": str(world.folder / name),
        "TRAIN_STEPS": 20,
        "MIXTURE_OR_TASK_NAME": "tiny_mood",
        "INITIAL_CHECKPOINT_PATH": str(world.base),
        "LIBRARY": str(world.folder / "t5x_library"),
    } | macros
    return ("train", *files, f"pemt_jax/configs/t5x/{stage}.gin", "t5x.gin"), macros


def train_once(world, name, stage, devices=1, files=(), **macros):
    """Train under T5X unless an earlier test has; return the run's folder."""
    if not (world.folder / name).exists():
        arguments, macros = under_t5x(world, name, stage, files, **macros)
        run(world, *arguments, devices=devices, **macros)
    return world.folder / name


def experts_of_t5x(world):
    for task in tiny_system.EXPERTS:
        train_once(world, f"t5x_{task}", "stage1", MIXTURE_OR_TASK_NAME=task)
    return world.folder / "t5x_library"


def target_of_t5x(world):
    experts_of_t5x(world)
    return train_once(world, "t5x_target", "stage2", EXPERTS=tiny_system.EXPERTS, SAVE_FROZEN=False)
