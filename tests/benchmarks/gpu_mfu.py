"""Fraction of an accelerator's peak reached by a stage-2 step: T5-base, bfloat16, batch 128 x 256.

    python tests/benchmarks/gpu_mfu.py --json

If JAX finds no accelerator, or one whose peak is not listed here, the value is null. FLOPs are
those that XLA counts in the compiled step. Only jax, flax, optax, clu and numpy are needed.
"""

import dataclasses

import jax
import systems
import timing

# Dense bfloat16 FLOP/s of one chip, from the manufacturers' data sheets.
PEAK = {
    "H100 80GB HBM3": 989e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def measure() -> dict:
    device = jax.devices()[0]
    peak = next((peak for name, peak in PEAK.items() if name in device.device_kind), None)
    if peak is None:
        return {"gpu_mfu": timing.row(None, 0.35, at_least=True, device=device.device_kind)}
    t5 = dataclasses.replace(systems.SIZES["base"], dtype="bfloat16")
    step = systems.Step(
        "pemt_target", t5, systems.random_batch(128, 256), frozen_dtype="bfloat16", prng="rbg"
    )
    seconds = timing.interleaved({"step": step}, 20, warmup=3)["step"]
    return {
        "gpu_mfu": timing.row(
            step.flops / min(seconds) / peak,
            0.35,
            at_least=True,
            device=device.device_kind,
            seconds=timing.summary(seconds),
            teraflops=step.flops / 1e12,
        )
    }


if __name__ == "__main__":
    timing.main(__doc__, measure)
