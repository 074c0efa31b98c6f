"""Scanned layers over unrolled ones: time to compile a step, and time of the step itself.

    python tests/benchmarks/scan_layers.py --json
    python tests/benchmarks/scan_layers.py --json --topology v5e:1x1 --size large

Both are the stage-2 step. By default it is compiled for this machine, and then run scanned and
unrolled in turn, in float32 with source length 256 and no padding; with --topology it is compiled
by the TPU's compiler (extra `tpu`), in bfloat16 with full rematerialisation, and not run. The time
to compile, lowering included, is measured once, without JAX's compilation cache. Values are ratios
of the process's CPU time, which other load on the machine changes least; of the steps, of minima.
"""

import argparse
import dataclasses
import time

import jax
import systems
import timing

BATCH, SOURCE, REPEATS = 8, 256, 6
TARGETS = {True: None, False: 0.25}  # of the time to compile, for this machine or a TPU


def clock() -> dict[str, float]:
    return {"CPU": time.process_time(), "wall": time.perf_counter()}


def since(start: dict[str, float]) -> dict[str, float]:
    return {name: now - start[name] for name, now in clock().items()}


def on_tpu(size: str, name: str) -> dict[str, dict]:
    """Return the seconds to lower and compile, and the memory, unrolled and scanned."""
    from pemt_jax.planning import compiling
    from pemt_jax.planning.job import job_of_shape
    from pemt_jax.planning.layout import Layout
    from pemt_jax.planning.shapes import shape_named
    from pemt_jax.planning.topology import open_topology

    mesh, found = Layout().mesh(open_topology(name).devices), {}
    for scan in (True, False):
        t5 = dataclasses.replace(
            shape_named(size), dtype="bfloat16", remat_policy="full", scan_layers=scan
        )
        job = job_of_shape(t5, "pemt_target", frozen_dtype="bfloat16", prng="rbg")
        start = clock()
        step = compiling.compile_step(*compiling.lower_train_step(job, mesh))
        found["scanned" if scan else "unrolled"] = {
            **since(start),
            "GiB": step["memory"]["total"] / 2**30,
        }
    return found


def here(size: str, batch: int) -> tuple[dict[str, dict], dict]:
    """Return what `on_tpu` returns, and the comparison of the steps, by clock."""
    steps, found = {}, {}
    rows = systems.random_batch(batch, SOURCE)
    for name, scan in (("scanned", True), ("unrolled", False)):
        t5 = dataclasses.replace(systems.SIZES[size], scan_layers=scan)
        step = steps[name] = systems.Step("pemt_target", t5, rows)
        found[name] = {"CPU": step.seconds_to_compile, "GiB": step.memory["total"] / 2**30}
    seconds: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in steps} for kind in clock()
    }
    for repeat in range(REPEATS + 1):
        for name, step in steps.items():
            start = clock()
            step()
            for kind, value in since(start).items() if repeat else ():
                seconds[kind][name].append(value)
    return found, {
        kind: timing.compare(values, "scanned", "unrolled") for kind, values in seconds.items()
    }


def measure(size: str, batch: int, topology: str | None) -> dict:
    jax.config.update("jax_enable_compilation_cache", False)
    compiled, rows = {}, {}
    if topology:
        compiled = on_tpu(size, topology)
    else:
        compiled, compared = here(size, batch)
        rows["scanned_over_unrolled_step"] = timing.row(
            compared["CPU"]["ratio_of_minima"], 1.05, **compared
        )
    ratio = compiled["scanned"]["CPU"] / compiled["unrolled"]["CPU"]
    rows["scanned_over_unrolled_compile"] = timing.row(ratio, TARGETS[topology is None], **compiled)
    return rows


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--size", default="small")
    options.add_argument("--batch", type=int, default=BATCH)
    options.add_argument("--topology", help="compile for this TPU slice instead, v5e:1x1")
    chosen, _ = options.parse_known_args()
    timing.main(__doc__, lambda: measure(chosen.size, chosen.batch, chosen.topology), options)
