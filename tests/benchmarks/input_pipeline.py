"""Batches per second of the input pipeline over batches per second of a training step.

    python tests/benchmarks/input_pipeline.py --json

The pipeline is run alone, as a run reads it. The step has the demo's shape (the packaged mini T5,
batch 8, inputs up to 64 tokens), which is the fastest there is. The data are the demo's task and
100,000 random examples with GLUE-like lengths; the value is the smaller ratio of the two.
"""

import argparse
import time

import systems
import timing
from bucketing import glue_like_lengths, random_split

from pemt_jax import tasks  # noqa: F401  (registers the demo's tasks)
from pemt_jax.data.batching import BatchSource, train_iterator
from pemt_jax.data.token_cache import open_mixture

BATCH, STEPS, WARM = 8, 500, 20


def seconds_per_batch(source: BatchSource) -> float:
    """Return the mean seconds per batch, without the first ones, which plan the epoch."""
    batches = train_iterator(source, 0, STEPS + WARM)
    for _ in range(WARM):
        next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return (time.perf_counter() - start) / STEPS


def measure(demo_task: str = "vader_movies", size: str = "mini", repeats: int = 3) -> dict:
    lengths = {"inputs": 64, "targets": 8}
    sources = {
        demo_task: BatchSource(
            open_mixture(demo_task, "train", lengths), BATCH, seed=0, buckets=(32, 64)
        ),
        "100,000 rows": BatchSource(
            [(1.0, random_split(glue_like_lengths(100_000)))], BATCH, seed=0
        ),
    }
    step = systems.Step("pemt_target", systems.SIZES[size], systems.random_batch(BATCH, 32))
    made = {name: [] for name in sources}
    steps = []
    step()
    for _ in range(repeats):
        for name, source in sources.items():
            made[name].append(seconds_per_batch(source))
        steps += timing.interleaved({"step": step}, 10)["step"]
    ratio = {name: min(steps) / min(values) for name, values in made.items()}
    return {
        "input_over_step": timing.row(
            min(ratio.values()),
            5.0,
            at_least=True,
            ratio=ratio,
            step_seconds=timing.summary(steps),
            batch_seconds={name: timing.summary(values) for name, values in made.items()},
        )
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--task", default="vader_movies", help="a task of the demo")
    chosen, _ = options.parse_known_args()
    timing.main(__doc__, lambda: measure(chosen.task), options)
