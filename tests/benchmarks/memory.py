"""Peak memory of stage 2 over our own full fine-tuning, by XLA's memory analysis.

    python tests/benchmarks/memory.py --json

Nothing is run: parameters, state and temporary buffers of the compiled step, T5-base, batch
8 x 256, both sides without rematerialisation and then both with it. Frozen parameters are kept in
bfloat16 and computed with in float32; float32 frozen parameters are given beside it. The value is
the larger of the two ratios.
"""

import argparse
import dataclasses

import systems
import timing


def measure(size: str = "base", policies=("none", "full")) -> dict:
    batch, details, ratios = systems.random_batch(8, 256), {}, {}
    for policy in policies:
        t5 = dataclasses.replace(systems.SIZES[size], remat_policy=policy)

        def bytes_of(method: str, t5=t5, **options) -> dict[str, int]:
            return systems.Step(method, t5, batch, loaded=False, **options).memory

        full = bytes_of("full")
        stage2 = bytes_of("pemt_target", frozen_dtype="bfloat16")
        details[f"rematerialisation {policy}"] = {"full": full, "stage 2, bfloat16": stage2}
        ratios[policy] = stage2["total"] / full["total"]
    return {"stage2_memory_over_full": timing.row(
        max(ratios.values()), 0.65, ratios=ratios, bytes=details
    )}  # fmt: skip


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--size", default="base", choices=sorted(systems.SIZES))
    chosen, _ = options.parse_known_args()
    timing.main(__doc__, lambda: measure(chosen.size), options)
