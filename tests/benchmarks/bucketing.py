"""Examples per second with GLUE-like lengths: bucketed batches over batches padded to 256.

    python tests/benchmarks/bucketing.py --json

Lengths are log-normal with mean 40 and a tail to 256. Both sides make their batches as a run would
and have a prompt of 31 tokens. The steps of all shapes are timed in turn and weighted by the number
of batches of an epoch that have the shape.
"""

import argparse
import collections

import numpy as np
import systems
import timing

from pemt_jax.data.batching import BatchSource
from pemt_jax.data.buckets import choose_buckets
from pemt_jax.data.tokenized import Ragged, TokenizedSplit

ROWS, BATCH, LONGEST, BUCKETS = 10_000, 32, 256, 8


def glue_like_lengths(rows: int = ROWS) -> np.ndarray:
    """Return lengths with mean 40, a median of about 30 and a tail that is cut off at 256."""
    drawn = np.random.default_rng(0).lognormal(np.log(30), 0.76, rows)
    return np.clip(drawn, 4, LONGEST).astype(int)


def random_split(lengths: np.ndarray, vocabulary: int = 8100) -> TokenizedSplit:
    """Return examples of random tokens with the given lengths, and labels of two tokens."""
    random = np.random.default_rng(0)
    inputs = random.integers(2, vocabulary, lengths.sum(), np.int32)
    targets = random.integers(2, vocabulary, 2 * len(lengths), np.int32)
    columns = {
        "inputs": Ragged(inputs, np.cumsum([0, *lengths])),
        "targets": Ragged(targets, 2 * np.arange(len(lengths) + 1)),
    }
    return TokenizedSplit(
        "random",
        "train",
        {"inputs": LONGEST, "targets": 8},
        columns,
        columns["targets"],
        {},
        None,
        "",
    )


def shapes_of_epoch(split: TokenizedSplit, buckets) -> tuple[collections.Counter, dict]:
    """Return {input length: number of batches of an epoch} and one batch of each length."""
    source = BatchSource([(1.0, split)], BATCH, seed=0, buckets=buckets, target_buckets=(8,))
    counts, batches = collections.Counter(), {}
    for step in range(source.steps_per_epoch):
        batch = source[step]
        length = batch["encoder_input_tokens"].shape[1]
        counts[length] += 1
        batches.setdefault(length, batch)
    return counts, batches


def measure(size: str = "small", repeats: int = 3) -> dict:
    lengths = glue_like_lengths()
    split = random_split(lengths)
    buckets = choose_buckets(lengths, BUCKETS, LONGEST)
    counts, batches = shapes_of_epoch(split, buckets)
    padded_counts, padded = shapes_of_epoch(split, (LONGEST,))
    steps = {
        n: systems.Step("pemt_target", systems.SIZES[size], b)
        for n, b in (batches | padded).items()
    }
    seconds = timing.interleaved(steps, repeats)

    def examples_per_second(counts: collections.Counter, pick) -> float:
        return ROWS / sum(times * pick(seconds[n]) for n, times in counts.items())

    ratio, rates = {}, {}
    for name, pick in (("medians", np.median), ("minima", min)):
        rates[name] = {
            "bucketed": examples_per_second(counts, pick),
            "padded": examples_per_second(padded_counts, pick),
        }
        ratio[name] = rates[name]["bucketed"] / rates[name]["padded"]
    return {
        "bucketed_over_padded": timing.row(
            ratio["minima"],
            3.0,
            at_least=True,
            ratio=ratio,
            examples_per_second=rates,
            mean_length=float(lengths.mean()),
            buckets=buckets,
            batches_of_each=dict(counts),
            seconds={str(n): timing.summary(values) for n, values in seconds.items()},
        )
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--size", default="small", choices=sorted(systems.SIZES))
    chosen, _ = options.parse_known_args()
    timing.main(__doc__, lambda: measure(chosen.size), options)
