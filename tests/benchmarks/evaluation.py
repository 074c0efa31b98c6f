"""Evaluation of the demo's trained target: fixed decoding over early stop and buckets.

    python tests/benchmarks/evaluation.py --json --demo runs/demo

Greedy predictions of the target's test split are timed in turn: as `evaluate` makes them, and with
8 tokens generated for every example and inputs padded to 256 (and to 128). This needs a trained
model, because a random one never ends a sequence; without the demo's run the value is null. The
predictions of both sides are compared.
"""

import argparse
from pathlib import Path
from unittest import mock

import timing
from built import open_run

from pemt_jax import tasks  # noqa: F401  (registers the demo's tasks)
from pemt_jax.data.batching import DEFAULT_BUCKETS, eval_batches
from pemt_jax.data.token_cache import open_split
from pemt_jax.model import decoding  # noqa: F401  (registers the demo's tasks)
from pemt_jax.parallel import partitioning  # noqa: F401  (registers the demo's tasks)
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY
from pemt_jax.training.evaluator import Evaluator

DEMO, TASK, BATCH, NEVER = "runs/demo", "vader_amazon", 128, -1


def measure(demo: str = DEMO, repeats: int = 3) -> dict:
    run = next(iter(sorted(Path(demo).glob("pemt_*"))), None)
    if run is None:
        return {
            "evaluation_over_fixed": timing.row(
                None, 3.0, at_least=True, missing=f"no run in {demo}: run ./launch/demo.sh first"
            )
        }
    made, _ = open_run(str(run), DEFAULT_VOCABULARY)
    mesh = partitioning.make_mesh()
    params = made.placed(mesh)
    split = open_split(TASK, "test", {"inputs": 256, "targets": 8})
    runs, predicted = {}, {}
    for name, buckets, end in (
        ("early stop and buckets", DEFAULT_BUCKETS, decoding.EOS),
        ("fixed, padded to 256", (256,), NEVER),
        ("fixed, padded to 128", (128,), NEVER),
    ):
        batches = list(eval_batches(split, BATCH, buckets, (8,)))
        evaluator = Evaluator(
            made.model.predict_batch, made.model.eval_fn, DEFAULT_VOCABULARY, mesh
        )
        with mock.patch.object(decoding, "EOS", end):  # read while the loop is traced
            predicted[name] = evaluator.predict(params, batches)
        runs[name] = lambda e=evaluator, b=batches: e.predict(params, b)
    seconds = timing.interleaved(runs, repeats)
    first, *others = runs
    ratios = {name: timing.compare(seconds, name, first) for name in others}
    differ = sum(text != predicted[others[0]][row] for row, text in predicted[first].items())
    return {
        "evaluation_over_fixed": timing.row(
            ratios[others[0]]["ratio_of_minima"],
            3.0,
            at_least=True,
            ratios=ratios,
            rows=len(split),
            predictions_that_differ=differ,
        )
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--demo", default=DEMO, help="folder written by the demo")
    chosen, _ = options.parse_known_args()
    timing.main(__doc__, lambda: measure(chosen.demo), options)
