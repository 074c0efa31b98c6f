"""The gain of each optimisation of a stage-2 step: the step without it over the step as it is.

    python tests/benchmarks/tricks.py --json --size small

Each alternative is the code one would write without the optimisation, patched in for one
compilation. All steps then run in turn in one process. Alternatives with different random numbers
are marked as such. Huge pages are a setting of the environment, so processes with and without them
run in turn.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import systems
import timing

from pemt_jax.model import feed_forward, layers
from pemt_jax.model.experts import ExpertMixture


class FormedExperts(ExpertMixture):
    """The authors' method: each expert's output [B, L, D] is computed and weighted by the gate."""

    @nn.compact
    def __call__(self, hidden_BLF, gate_BE):
        lora_a_FER, lora_b_ERD = bank(self, hidden_BLF.shape[-1])
        outputs = [hidden_BLF @ lora_a_FER[:, i] @ lora_b_ERD[i] for i in range(self.num_experts)]
        e_BLED = jnp.stack(outputs, axis=2)
        return jnp.einsum("be,bled->bld", gate_BE, e_BLED), e_BLED, lora_b_ERD


class BankByEinsum(ExpertMixture):
    """Einsums over the axes of the bank, for which XLA transposes it in every step."""

    @nn.compact
    def __call__(self, hidden_BLF, gate_BE):
        lora_a_FER, lora_b_ERD = bank(self, hidden_BLF.shape[-1])
        channels_BLER = jnp.einsum("blf,fer->bler", hidden_BLF, lora_a_FER)
        gated_BLER = channels_BLER * gate_BE[:, None, :, None]
        return jnp.einsum("bler,erd->bld", gated_BLER, lora_b_ERD), channels_BLER, lora_b_ERD


def bank(module: ExpertMixture, width: int):
    """Return the frozen factors, with the names that ExpertMixture gives them."""
    init = nn.initializers.normal(0.03)
    shapes = {
        "lora_a": (width, module.num_experts, module.rank),
        "lora_b": (module.num_experts, module.rank, module.features),
    }
    axes = {
        "lora_a": ("mlp", "experts", "expert_rank"),
        "lora_b": ("experts", "expert_rank", "embed"),
    }
    return [
        layers.param_with_axes(name, init, shape, jnp.float32, axes=axes[name], module=module)
        for name, shape in shapes.items()
    ]


def formed_cosines(z_BLD, e_BLED, _):
    """Return cos(z, e_i) from the experts' outputs."""
    dot_BLE = jnp.einsum("bld,bled->ble", z_BLD, e_BLED)
    norms_BLE = jnp.linalg.norm(e_BLED, axis=-1) * jnp.linalg.norm(z_BLD, axis=-1)[..., None]
    return dot_BLE / jnp.maximum(norms_BLE, 1e-8)


def plain_attention(self, scores_BHLM, value_BMHK, deterministic):
    """Return Drop(softmax(scores)) values as papers write it."""
    weights_BHLM = jax.nn.softmax(scores_BHLM, axis=-1)
    dropout = nn.Dropout(self.dropout_rate, self.dropout_dims, deterministic=deterministic)
    return jnp.einsum("bhlm,bmhk->blhk", dropout(weights_BHLM), value_BMHK)


def alternatives(t5) -> dict:
    """Return {trick: (patches, T5Config, options of systems.Step)} for the step without it."""
    each = dataclasses.replace(t5, broadcast_dropout=False)
    patch = mock.patch.object
    return {
        "experts in rank space": (
            [
                patch(feed_forward, "ExpertMixture", FormedExperts),
                patch(feed_forward, "expert_cosines", formed_cosines),
            ],
            t5,
            {},
        ),
        "bank as a matrix": ([patch(feed_forward, "ExpertMixture", BankByEinsum)], t5, {}),
        "softmax divides last": ([patch(layers.Attention, "_weighted", plain_attention)], t5, {}),
        "one mask per example (other random numbers)": ([], each, {}),
        "one mask per example, against rbg masks (other random numbers)": (
            [],
            each,
            {"prng": "rbg"},
        ),
    }


@contextlib.contextmanager
def patched(patches) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def measure(size: str, batch_size: int, source: int, repeats: int, pages: int) -> dict:
    t5, batch = systems.SIZES[size], systems.random_batch(batch_size, source)
    steps = {"as it is": systems.Step("pemt_target", t5, batch)}
    for trick, (patches, shape, options) in alternatives(t5).items():
        with patched(patches):
            steps[trick] = systems.Step("pemt_target", shape, batch, **options)
    seconds = timing.interleaved(steps, repeats, settle=1)
    without = {
        trick: timing.compare(seconds, trick, "as it is")
        | {
            "temporary_bytes": {
                trick: steps[trick].memory["temporary"],
                "as it is": steps["as it is"].memory["temporary"],
            }
        }
        for trick in list(steps)[1:]
    }
    if pages:
        without["huge pages"] = huge_pages(size, batch_size, source, repeats, pages)
    worth = {trick: found["ratio_of_minima"] for trick, found in without.items()}
    return {"tricks": timing.row(None, None, step_without_over_step=worth, without=without)}


def huge_pages(size: str, batch_size: int, source: int, repeats: int, processes: int) -> dict:
    """Time the step in separate processes, in turn with and without huge pages."""
    seconds = {"huge pages": [], "as it is": []}
    for _ in range(processes):
        for name, pages in (
            ("huge pages", dict.fromkeys(timing.HUGE_PAGES, "")),
            ("as it is", timing.HUGE_PAGES),
        ):
            done = subprocess.run(
                [
                    sys.executable,
                    __file__,
                    "--seconds_only",
                    "--size",
                    size,
                    "--batch",
                    str(batch_size),
                    "--source",
                    str(source),
                    "--repeats",
                    str(repeats),
                ],
                env=os.environ | pages,
                stdout=subprocess.PIPE,
                check=True,
            )
            seconds[name] += json.loads(done.stdout.splitlines()[-1])
    return timing.compare(seconds, "huge pages", "as it is")


def main() -> None:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--size", default="small", choices=sorted(systems.SIZES))
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--source", type=int, default=256)
    options.add_argument("--repeats", type=int, default=8)
    options.add_argument("--pages", type=int, default=2, help="processes with and without them")
    options.add_argument(
        "--seconds_only",
        action="store_true",
        help="only print the seconds of repeats of the step as it is",
    )
    chosen, _ = options.parse_known_args()
    if chosen.seconds_only:
        batch = systems.random_batch(chosen.batch, chosen.source)
        step = systems.Step("pemt_target", systems.SIZES[chosen.size], batch)
        print(json.dumps(timing.interleaved({"": step}, chosen.repeats)[""]))
        return
    timing.main(
        __doc__,
        lambda: measure(chosen.size, chosen.batch, chosen.source, chosen.repeats, chosen.pages),
        options,
    )


if __name__ == "__main__":
    main()
