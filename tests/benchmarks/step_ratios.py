"""The stage-2 step compared with the stage-1 step, full fine-tuning and a matrix product.

    python tests/benchmarks/step_ratios.py --json --size small --batch 8

All steps of one size and batch run in turn in one process, in float32 with source length 256 and no
padding. Full fine-tuning is this package's own, with the same optimizer and dropout and no prompt.
FLOPs are those that XLA counts in each compiled step. A row's value is the ratio of minima at the
batch size with the worst ratio.
"""

import argparse

import systems
import timing

METHODS = ("pemt_source", "pemt_target", "full")
SOURCE = 256
TARGETS = {
    "mini": {"stage2_over_stage1": 1.32, "stage2_over_full": 0.85},
    "small": {"stage2_over_stage1": 1.32, "stage2_over_full": 0.85},
    "base": {"stage2_over_stage1": 1.25, "stage2_over_full": 0.85},
}
REPEATS = {("small", 8): 6, ("small", 32): 3, ("base", 8): 3, ("base", 32): 2}
SHARE = 0.60


def measure_size(size: str, batch_size: int, repeats: int, source: int = SOURCE) -> dict:
    """Return times, FLOPs and ratios of one size at one batch size."""
    t5, batch = systems.SIZES[size], systems.random_batch(batch_size, source)
    runs = {method: systems.Step(method, t5, batch) for method in METHODS}
    flops = {method: step.flops for method, step in runs.items()}
    runs["matmul"], flops["matmul"] = systems.matmul()
    seconds = timing.interleaved(runs, repeats)
    rates = {name: flops[name] / min(values) for name, values in seconds.items()}
    rates["matmul"] = flops["matmul"] / min(seconds["matmul"])
    about = {
        "gigaflops": {name: value / 1e9 for name, value in flops.items()},
        "gigaflops_per_second": {name: rate / 1e9 for name, rate in rates.items()},
    }
    ratios = {
        name: {
            **timing.compare(seconds, "pemt_target", below),
            "ratio_of_flops": flops["pemt_target"] / flops[below],
            **about,
        }
        for name, below in (("stage2_over_stage1", "pemt_source"), ("stage2_over_full", "full"))
    }
    return ratios | {"share_of_matmul_peak": rates["pemt_target"] / rates["matmul"]}


def measure(sizes=("small", "base"), batches=(8, 32), source: int = SOURCE) -> dict:
    """Return the rows of all sizes."""
    found, share = {}, {}
    for size in sizes:
        made = {n: measure_size(size, n, REPEATS.get((size, n), 3), source) for n in batches}
        for name, target in TARGETS[size].items():
            worst = max(values[name]["ratio_of_minima"] for values in made.values())
            details = {f"batch {n}": values[name] for n, values in made.items()}
            found[f"{name}_{size}"] = timing.row(worst, target, **details)
        for n, values in made.items():
            share[f"{size}, batch {n}"] = values["share_of_matmul_peak"]
    found["stage2_share_of_matmul_peak"] = timing.row(
        min(share.values()), SHARE, at_least=True, share=share
    )
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--size", nargs="+", default=("small", "base"), choices=sorted(TARGETS))
    options.add_argument("--batch", nargs="+", type=int, default=(8, 32))
    options.add_argument("--source", type=int, default=SOURCE, help="source tokens per example")
    chosen, _ = options.parse_known_args()
    timing.main(__doc__, lambda: measure(chosen.size, chosen.batch, chosen.source), options)
