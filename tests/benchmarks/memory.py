"""Peak memory of stage 2 over our own full fine-tuning, by XLA's memory analysis.

    python tests/benchmarks/memory.py --json

Nothing is run. Counted are parameters, state and temporary buffers of the compiled step of T5-base
with batch 8 x 256, both sides first without and then with rematerialisation. It is compiled for
this machine in float32 (and, for information, with frozen parameters in bfloat16, of which XLA
makes float32 copies here) and, if libtpu is installed, for a TPU v5e chip with activations and
frozen parameters in bfloat16. The value is the largest ratio. XLA's CPU compiler removes the
repeated computations of rematerialisation, so the policies differ on the TPU only.
"""

import argparse
import dataclasses
import importlib.util

import systems
import timing

ROWS, SOURCE = 8, 256


def here(size: str, policy: str) -> dict[str, dict]:
    """Return the bytes by kind on this machine."""
    t5 = dataclasses.replace(systems.SIZES[size], remat_policy=policy)
    batch = systems.random_batch(ROWS, SOURCE)

    def bytes_of(method: str, **options) -> dict[str, int]:
        return systems.Step(method, t5, batch, loaded=False, **options).memory

    return {
        "full": bytes_of("full"),
        "stage 2": bytes_of("pemt_target"),
        "stage 2, frozen in bfloat16": bytes_of("pemt_target", frozen_dtype="bfloat16"),
    }


def on_tpu(size: str, policy: str) -> dict[str, dict]:
    """Return the bytes by kind on one TPU chip."""
    # The planner imports TensorFlow, which `here` does not need.
    from pemt_jax.planning import compiling
    from pemt_jax.planning.job import job_of_shape
    from pemt_jax.planning.layout import Layout
    from pemt_jax.planning.topology import open_topology

    topology, found = open_topology("v5e:1x1"), {}
    for name, method in (("full", "full"), ("stage 2", "pemt_target")):
        t5 = dataclasses.replace(systems.SIZES[size], remat_policy=policy, dtype="bfloat16")
        job = job_of_shape(
            t5,
            method,
            batch_size=ROWS,
            inputs=SOURCE,
            targets=systems.TARGET,
            frozen_dtype="bfloat16",
            prng="rbg",
        )
        step = compiling.compile_step(
            *compiling.lower_train_step(job, Layout().mesh(topology.devices))
        )
        found[name] = step["memory"]
    return found


def measure(size: str = "base", policies=("none", "full")) -> dict:
    ratios, details = {}, {}
    places = {"CPU": here}
    if importlib.util.find_spec("libtpu"):
        places["TPU v5e"] = on_tpu
    for place, bytes_of in places.items():
        for policy in policies:
            name = f"{place}, rematerialisation {policy}"
            details[name] = bytes_of(size, policy)
            ratios[name] = details[name]["stage 2"]["total"] / details[name]["full"]["total"]
    return {
        "stage2_memory_over_full": timing.row(
            max(ratios.values()), 0.65, ratios=ratios, bytes=details
        )
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--size", default="base", choices=sorted(systems.SIZES))
    chosen, _ = options.parse_known_args()
    timing.main(__doc__, lambda: measure(chosen.size), options)
