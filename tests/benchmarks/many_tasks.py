"""Time of a step of six tasks in one job over the sum of the steps of six runs of their own.

    python tests/benchmarks/many_tasks.py --json many_tasks.json

Six stage-1 tasks on the packaged mini T5 with the settings of configs/demo/stage1.gin and random
batches of equal lengths. Both ways are timed after compilation and in turns, a round of each, so
that other work on the machine falls on both; the row `six_sources_over_single` is the median ratio
of the rounds. Start-up, which is placing, compiling and the first step, is reported apart.
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from pemt_jax import assembly, many_batches, methods, optimizers
from pemt_jax.config import PemtConfig
from pemt_jax.many_tasks import ManyTrainer
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY
from pemt_jax.train_step import Trainer


def batch_of(task: int, step: int, rows: int, inputs: int, targets: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng([task, step])
    tokens = lambda length: random.integers(2, 8000, (rows, length)).astype(np.int32)  # noqa: E731
    return {"encoder_input_tokens": tokens(inputs), "decoder_input_tokens": tokens(targets),
            "decoder_target_tokens": tokens(targets),
            "decoder_loss_weights": np.ones((rows, targets), np.int32)}


class Source:
    """Random batches by step number."""

    def __init__(self, task: int, flags: argparse.Namespace):
        self.task, self.flags, self.batch_size = task, flags, flags.rows

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        return batch_of(self.task, step, self.flags.rows, self.flags.inputs, self.flags.targets)


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="file to write the numbers to")
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2, help="of each task in a round")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--inputs", type=int, default=32)
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--task_loop", default="map")
    flags = parser.parse_args()
    made = assembly.assemble(
        "pemt_source", DEFAULT_VOCABULARY, prompt_text="Say whether a text is good or bad.",
        options=PemtConfig(expert_rank=64), dropout_rate=0.1, broadcast_dropout=True)
    trainable, frozen = methods.split(made.nested(), made.method)
    optimizer = optimizers.make_optimizer(schedule=1e-3)
    tasks = range(flags.tasks)
    sources = [Source(task, flags) for task in tasks]

    # Runs of their own share one compiled step here, as six commands share a compilation cache.
    start = time.perf_counter()
    alone = Trainer(made.model.loss_fn, trainable, frozen, optimizer, params_axes=made.params_axes)

    def single_steps(first: int) -> None:
        for task in tasks:
            for step in range(first, first + flags.steps):
                metrics = alone.step(sources[task][step])
            jax.block_until_ready(metrics["loss"])

    single_steps(0)
    start_single = time.perf_counter() - start
    start = time.perf_counter()
    many = ManyTrainer(made.model.loss_fn, [trainable] * flags.tasks, frozen, optimizer,
                       flags.rows, params_axes=made.params_axes, task_loop=flags.task_loop)
    ends = [1 << 30] * flags.tasks
    joint = many_batches.ManyBatchSource(
        sources, ends, many.slots, [made.model.pemt.prompt_length] * flags.tasks)

    def many_steps(first: int, active=None) -> None:
        for step in range(first, first + flags.steps):
            metrics = many.step(joint[step], active or [True] * flags.tasks)
        jax.block_until_ready(metrics["loss"])

    many_steps(0)
    start_many = time.perf_counter() - start
    one_active = [task == 0 for task in tasks]
    singles, manies, ones = [], [], []
    for round_ in range(1, flags.rounds + 1):
        singles.append(timed(lambda first=round_ * flags.steps: single_steps(first)))
        manies.append(timed(lambda first=round_ * flags.steps: many_steps(first)))
        ones.append(timed(lambda first=round_ * flags.steps: many_steps(first, one_active)))
    ratio = lambda a, b: statistics.median(x / y for x, y in zip(a, b, strict=True))  # noqa: E731
    found = {
        "six_sources_over_single": round(ratio(manies, singles), 3),
        "one_active_of_six_over_all": round(ratio(ones, manies), 3),
        "seconds_a_step_of_all_single": round(statistics.median(singles) / flags.steps, 4),
        "seconds_a_step_of_the_job": round(statistics.median(manies) / flags.steps, 4),
        "start_up_seconds_single": round(start_single, 1),
        "start_up_seconds_job": round(start_many, 1),
        "devices": len(jax.devices()),
        **{name: value for name, value in vars(flags).items() if name != "json"},
    }
    print(json.dumps(found, indent=1))
    if flags.json:
        with open(flags.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
