"""Step time of six source tasks in one job over the sum of six separate runs.

    python tests/benchmarks/six_sources.py --json

Stage 1 on the packaged mini T5 with the settings of configs/demo/stage1.gin and batches of equal
lengths; both methods are timed in turn, after compilation. Start-up (transfer, compilation, the
first step) is reported separately; the separate runs share one compilation, as commands do through
the cache on disk. `one_active` is a step in which five of the six tasks have ended; these should
cost nothing.
"""

import argparse
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import timing

from pemt_jax import optimizers
from pemt_jax.config import PemtConfig
from pemt_jax.run_config import ModelConfig
from pemt_jax.runs.build_model import build_model
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY
from pemt_jax.training.multitask.batches import MultitaskSource
from pemt_jax.training.multitask.trainer import MultitaskTrainer
from pemt_jax.training.trainer import Trainer

ROWS, INPUTS, TARGETS = 16, 32, 8


class Source(list):
    """The only batch of a task."""

    batch_size = ROWS

    def batch(self, step: int, local_rows: np.ndarray) -> dict[str, np.ndarray]:
        return self[step]


def random_batch(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    tokens = lambda length: random.integers(2, 8000, (ROWS, length)).astype(np.int32)  # noqa: E731
    return {
        "encoder_input_tokens": tokens(INPUTS),
        "decoder_input_tokens": tokens(TARGETS),
        "decoder_target_tokens": tokens(TARGETS),
        "decoder_loss_weights": np.ones((ROWS, TARGETS), np.int32),
    }


def measure(tasks: int, repeats: int, task_loop: str) -> dict:
    config = ModelConfig(
        "pemt_source",
        prompt_text="Say whether a text is good or bad.",
        options=PemtConfig(expert_rank=64),
        dropout_rate=0.1,
        broadcast_dropout=True,
    )
    made = build_model(config, DEFAULT_VOCABULARY)
    trainable, frozen = made.split()
    optimizer = optimizers.make_optimizer(schedule=1e-3)
    batches = [random_batch(task) for task in range(tasks)]
    loss_fn, axes = made.model.loss_fn, made.params_axes

    start = time.perf_counter()
    singles = [Trainer(loss_fn, trainable, frozen, optimizer, params_axes=axes)]

    def single() -> None:
        for batch in batches:
            jax.block_until_ready(singles[0].step(batch)["loss"])

    single()
    started = {"single_runs": time.perf_counter() - start}
    start = time.perf_counter()
    many = MultitaskTrainer(
        loss_fn, [trainable] * tasks, frozen, optimizer, ROWS, params_axes=axes, task_loop=task_loop
    )
    lengths = [made.model.pemt.prompt_length] * tasks
    joint = MultitaskSource(
        [Source([b]) for b in batches], [1] * tasks, many.slots, lengths, [np.arange(ROWS)] * tasks
    )[0]

    def step(active: list[bool]) -> None:
        jax.block_until_ready(many.step(joint, active)["loss"])

    step([True] * tasks)
    started["one_job"] = time.perf_counter() - start
    seconds = timing.interleaved(
        {
            "single_runs": single,
            "one_job": lambda: step([True] * tasks),
            "one_active": lambda: step([task == 0 for task in range(tasks)]),
        },
        repeats,
    )
    compared = timing.compare(seconds, "one_job", "single_runs")
    return {
        "six_sources_over_single": timing.row(
            compared["ratio_of_minima"],
            1.0,
            **compared,
            stretch_target=0.8,
            one_active_of_all=timing.compare(seconds, "one_active", "one_job")["ratio_of_minima"],
            start_up_seconds=started,
            tasks=tasks,
            rows=ROWS,
            inputs=INPUTS,
            targets=TARGETS,
            task_loop=task_loop,
            devices=len(jax.devices()),
        )
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--tasks", type=int, default=6)
    options.add_argument("--repeats", type=int, default=10)
    options.add_argument("--task_loop", default="map")
    chosen, _ = options.parse_known_args()
    timing.main(__doc__, lambda: measure(chosen.tasks, chosen.repeats, chosen.task_loop), options)
