"""How the stage-2 step grows with experts, rank, prompt length and source length.

    python tests/benchmarks/growth.py --json

The model has two layers per stack and T5-small's widths. Each step's FLOPs are reported with its
time: if the time grows faster, something other than the matrix products grows. The value is the
growth of time from 1 to 32 experts divided by the growth of FLOPs.
"""

import argparse
import dataclasses

import systems
import timing

SWEEPS = {
    "experts": (1, 2, 4, 8, 16, 32),
    "rank": (16, 64, 128),
    "prompt": (8, 31, 100),
    "source": (64, 128, 256),
}


def measure(size: str = "small", batch: int = 8, repeats: int = 5, sweeps=tuple(SWEEPS)) -> dict:
    t5 = dataclasses.replace(systems.SIZES[size], num_encoder_layers=2, num_decoder_layers=2)
    details = {}
    for sweep in sweeps:
        steps = {}
        for value in SWEEPS[sweep]:
            lengths = {"source": value} if sweep == "source" else {"source": 128}
            options = {} if sweep == "source" else {sweep: value}
            steps[value] = systems.Step(
                "pemt_target",
                t5,
                systems.random_batch(batch, **lengths),
                systems.pemt_config("pemt_target", t5, **options),
            )
        seconds = timing.interleaved(steps, repeats)
        details[sweep] = {
            str(value): {**timing.summary(seconds[value]), "gigaflops": step.flops / 1e9}
            for value, step in steps.items()
        }
    value = None
    if "experts" in details:
        one, most = (details["experts"][str(n)] for n in (1, 32))
        value = (most["min"] / one["min"]) / (most["gigaflops"] / one["gigaflops"])
    return {"growth_with_experts": timing.row(value, None, **details)}


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--size", default="small", choices=sorted(systems.SIZES))
    options.add_argument("--sweep", nargs="+", default=tuple(SWEEPS), choices=SWEEPS)
    chosen, _ = options.parse_known_args()
    timing.main(__doc__, lambda: measure(chosen.size, sweeps=chosen.sweep), options)
