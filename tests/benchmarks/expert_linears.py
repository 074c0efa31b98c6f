"""The stage-2 step with banks beside different linear layers, over the step without experts.

    python tests/benchmarks/expert_linears.py --json --size small

Six experts of rank 16 beside wo, q and v, and all linear layers; the step without experts has the
same target adapter, prompt and layer norms. All steps run in turn in one process, in float32, with
8 rows of source length 256 without padding.
"""

import argparse
import dataclasses

import systems
import timing

BANKS = {"wo": ("wo",), "qv": ("q", "v"), "all": ("all",)}
RANK, ROWS, SOURCE, REPEATS = 16, 8, 256, 8
LIMITS = {"qv": 1.10}


def measure(size: str = "small") -> dict:
    """Return one row per bank: time over that of the step without experts."""
    t5, batch = systems.SIZES[size], systems.random_batch(ROWS, SOURCE)
    runs = {"none": systems.Step("adapter", t5, batch)}
    for name, linears in BANKS.items():
        pemt = systems.pemt_config("pemt_target", t5, rank=RANK)
        pemt = dataclasses.replace(pemt, expert_linears=linears)
        runs[name] = systems.Step("pemt_target", t5, batch, pemt)
    seconds = timing.interleaved(runs, REPEATS)
    found = {}
    for name in BANKS:
        details = timing.compare(seconds, name, "none")
        details["ratio_of_flops"] = runs[name].flops / runs["none"].flops
        found[f"bank_{name}_over_none"] = timing.row(
            details["ratio_of_minima"], LIMITS.get(name), **{f"{size}, batch {ROWS}": details}
        )
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--size", default="small", choices=sorted(systems.SIZES))
    timing.main(__doc__, lambda: measure(options.parse_known_args()[0].size), options)
