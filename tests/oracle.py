"""Compare pemt_jax with numbers of the authors' own code: `python tests/oracle.py FILE.npz`.

The file holds, for both stages, every weight, one padded batch, and what the authors' PyTorch model
gives for them: logits, losses, prompts, gates, gradients, a few optimizer steps, decoded tokens.
Here the same weights go through our model with the reference options (README, "reference and
default behaviour").  Each quantity is printed with its largest error; the exit code is 1 when one
is above its limit.  All sizes come from the file.

Limits: forward 1e-5; gradients 2e-6 + 1e-4 relative; losses of the steps 1e-4 relative; tokens
exact.  Two allowances keep a correct model from failing on a file of larger numbers, since neither
side knows more than float32: an absolute limit is at least 1e-6 of the largest entry of its array,
and tokens are compared up to the first step at which the reference's best two logits are closer
than twice the forward limit.  Parameters after the steps have no common limit, because Adam turns
the sign of a gradient that is all rounding into a whole step: their limit is on the length of the
error relative to the length of the way that they went.
"""

import argparse
import json
import sys
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.interop.hf import ACTIVATIONS
from pemt_jax.interop.reference import from_reference, source_prompt_lengths
from pemt_jax.methods import METHODS, merge, split
from pemt_jax.models import PemtModel
from pemt_jax.network import Transformer
from pemt_jax.optimizers import make_optimizer, make_schedule

FORWARD, GRADIENT, GRADIENT_RELATIVE, LOSS_RELATIVE = 1e-5, 2e-6, 1e-4, 1e-4
NORM_RELATIVE, FINAL_RELATIVE = 1e-3, 1e-2
ROUNDING = 1e-6
METHOD_OF_STAGE = {1: "pemt_source", 2: "pemt_target"}


class Report:
    """Prints one line a quantity and remembers which failed."""

    def __init__(self):
        self.failed: list[str] = []

    def line(self, name: str, ok: bool, text: str) -> None:
        print(f"{'ok  ' if ok else 'FAIL'} {name:66} {text}", flush=True)
        if not ok:
            self.failed.append(name)

    def close(self, name: str, ours, reference, absolute: float, relative: float = 0.0) -> None:
        """|ours - reference| <= absolute + relative * |reference|, entry by entry."""
        ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
        if ours.shape != reference.shape:
            self.line(name, False, f"shape {ours.shape}, expected {reference.shape}")
            return
        size = np.abs(reference)
        absolute = max(absolute, ROUNDING * size.max(initial=0)) if absolute else 0.0
        error = np.abs(ours - reference)
        limit = f"{absolute:.1e}" + (f" + {relative:.0e} relative" if relative else "")
        self.line(name, bool(np.all(error <= absolute + relative * size)),
                  f"{error.max(initial=0):.2e}  (limit {limit})")

    def equal(self, name: str, ours, reference) -> None:
        """Exactly equal sets or arrays."""
        if isinstance(reference, set):
            odd = sorted(map(str, ours ^ reference))
            text = f"{len(reference)} names" if not odd else f"{len(odd)} differ, first {odd[0]}"
            self.line(name, not odd, text)
        else:
            self.line(name, np.array_equal(ours, reference),
                      f"{np.sum(np.asarray(ours) != reference)} of {np.size(reference)} differ")


def part(file: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries under `prefix`, without it."""
    return {name.removeprefix(prefix): file[name] for name in file if name.startswith(prefix)}


def build(file: Mapping[str, np.ndarray], settings: dict, stage: int) -> tuple[PemtModel, dict]:
    """The model of a stage with the reference options, and its flat parameters from the file."""
    shape = settings["shape"]
    t5 = T5Config(
        vocab_size=shape["vocab_size"], emb_dim=shape["d_model"], num_heads=shape["num_heads"],
        head_dim=shape["d_kv"], mlp_dim=shape["d_ff"], num_encoder_layers=shape["num_layers"],
        num_decoder_layers=shape["num_decoder_layers"],
        mlp_activations=ACTIVATIONS[settings["feed_forward_proj"]],
        dropout_rate=settings["dropout"],
        relpos_buckets=settings.get("relative_attention_num_buckets", 32),
        relpos_max_distance=settings.get("relative_attention_max_distance", 128),
    )  # fmt: skip
    tensors = part(file, f"s{stage}/w/")
    # The authors multiply an expert's output by alpha / rank, which is 1 in their runs.
    params = from_reference(t5, tensors)
    lengths = source_prompt_lengths(tensors)
    pemt = PemtConfig(
        prompt_length=len(tensors["task_shared"]), source_prompt_lengths=lengths,
        expert_names=tuple(f"source_{i}" for i in range(len(lengths))), source_expert=stage == 1,
        adapter_dim=settings["adapter_bottleneck"] if stage == 2 else 0,
        expert_rank=settings["lora_rank"], tsl_weight=settings["tsl_weight"],
        tsl_counts_padding=True, decoder_attends_padding=True, prompt_attention_dropout=0.1,
    )  # fmt: skip
    return PemtModel(t5, pemt), params


def read_batch(file: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The file's batch under T5X's names."""
    inputs, labels = file["in/input_ids"], file["in/labels"]
    if not np.array_equal(inputs != 0, file["in/attention_mask"] != 0):
        sys.exit("Expected an attention mask that is 1 where a token is not 0, found another.")
    targets = np.where(labels == -100, 0, labels)
    return {
        "encoder_input_tokens": inputs.astype(np.int32),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1].astype(np.int32),
        "decoder_target_tokens": targets.astype(np.int32),
        "decoder_loss_weights": (labels != -100).astype(np.int32),
    }


def check_forward(report, stage, model, params, batch, expected) -> None:
    """Logits, losses, encoder output, prompt, gates and sparsity losses."""
    nested = traverse_util.unflatten_dict(params, sep="/")
    logits, collected = jax.jit(model.apply)(nested, batch)
    loss, metrics = jax.jit(model.eval_fn)(nested, batch)
    prompt = model.module.apply({"params": nested}, method=Transformer.task_prompt)
    encoded = jax.jit(lambda p: model.module.apply(
        {"params": p}, batch["encoder_input_tokens"], np.ones(len(logits), np.float32),
        method=Transformer.encode))(nested)  # fmt: skip
    ours = {"logits": logits, "loss": loss, "ce": metrics["cross_entropy"].compute(),
            "encoder_out": encoded, "prompt": prompt}  # fmt: skip
    if stage == 2:
        ours["tsl_mean"] = metrics["task_sparsity_loss"].compute()
        for path, value in collected.items():
            stack, layer, _, kind = path.split("/")
            ours[f"{kind}/{stack[:3]}/{layer.removeprefix('layers_')}"] = value
    names = {n for n in expected if n in ours or n.startswith(("gate/", "tsl/"))}
    report.equal(f"stage {stage} forward quantities", set(ours), names)
    for name in sorted(names & set(ours)):
        report.close(f"stage {stage} {name}", ours[name], expected[name], FORWARD)


def check_training(report, stage, model, params, batch, settings, gradients, expected) -> None:
    """The trainable set, every gradient, and the optimizer steps on the one batch."""
    method = METHODS[METHOD_OF_STAGE[stage]]
    trainable, frozen = split(traverse_util.unflatten_dict(params, sep="/"), method)
    start = {path: np.asarray(value) for path, value in trainable.items()}
    gradients = from_reference(model.t5, gradients)
    report.equal(f"stage {stage} trainable set", set(trainable), set(gradients))

    plan = settings["train"]
    schedule = make_schedule("linear", plan["lr"], plan["warmup"], plan["steps"])
    b1, b2 = plan["betas"]
    optimizer = make_optimizer("adamw_hf", schedule, b1, b2, plan["eps"], clip_norm=plan["clip"])

    @jax.jit
    def step(trainable, opt_state):
        def loss_of(trainable):
            return model.eval_fn(merge(trainable, frozen), batch)[0]

        loss, grads = jax.value_and_grad(loss_of)(trainable)
        updates, opt_state = optimizer.update(grads, opt_state, trainable)
        updated = optax.apply_updates(trainable, updates)
        return updated, opt_state, grads, {"losses": loss, "grad_norms": optax.global_norm(grads)}

    state, history = optimizer.init(trainable), []
    for i in range(plan["steps"]):
        trainable, state, grads, values = step(trainable, state)
        history.append({**values, "lrs": schedule(jnp.asarray(i))})
        if i == 0:
            for path in sorted(set(grads) & set(gradients)):
                report.close(f"stage {stage} gradient {path}", grads[path], gradients[path],
                             GRADIENT, GRADIENT_RELATIVE)
    for name, relative in (("losses", LOSS_RELATIVE), ("grad_norms", NORM_RELATIVE),
                           ("lrs", LOSS_RELATIVE)):
        report.close(f"stage {stage} {name} of {plan['steps']} steps",
                     [values[name] for values in history], expected[name], 0.0, relative)
    final = from_reference(model.t5, part(expected, "final/"))
    report.equal(f"stage {stage} parameters after the steps", set(trainable), set(final))
    for path in sorted(set(trainable) & set(final)):
        error = np.asarray(trainable[path]) - final[path]
        way = np.linalg.norm(final[path] - start[path])
        ratio = np.linalg.norm(error) / max(way, ROUNDING)
        report.line(f"stage {stage} after the steps {path}", bool(ratio <= FINAL_RELATIVE),
                    f"{np.abs(error).max():.2e}  (of its way {ratio:.1e}, limit "
                    f"{FINAL_RELATIVE:.0e})")


def cached_logits(model, nested, batch, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Greedy tokens [B, steps] and their logits [B, steps, V] with the cache, past the end token."""
    tokens_BS = batch["encoder_input_tokens"]
    rows_B = np.ones(len(tokens_BS), np.float32)
    encoded = model.module.apply({"params": nested}, tokens_BS, rows_B, method=Transformer.encode)

    def decode(inputs, variables):
        return model.module.apply(
            {"params": nested, **variables}, encoded, tokens_BS, inputs, inputs, rows_B,
            decode=True, max_decode_length=steps, method=Transformer.decode, mutable=["cache"])

    shapes = jax.eval_shape(decode, jnp.zeros((len(rows_B), steps), jnp.int32), {})[1]
    cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    advance = jax.jit(decode)
    last, tokens, logits = jnp.zeros((len(rows_B), 1), jnp.int32), [], []
    for _ in range(steps):
        step_logits, cache = advance(last, cache)
        last = jnp.argmax(step_logits, axis=-1).astype(jnp.int32)
        tokens.append(last)
        logits.append(step_logits)
    return np.concatenate(tokens, axis=1), np.concatenate(logits, axis=1)


def check_decoding(report, stage, model, params, batch, expected) -> None:
    """Greedy tokens through the cache, with the end token ignored and obeyed."""
    nested = traverse_util.unflatten_dict(params, sep="/")
    raw = expected["greedy_raw"][:, 1:]
    reference_logits = expected["greedy_raw_logits"]
    steps = raw.shape[1]
    best_two = np.sort(reference_logits, axis=-1)[..., -2:]
    unsure = (best_two[..., 1] - best_two[..., 0]) < 2 * max(
        FORWARD, ROUNDING * np.abs(reference_logits).max())
    # A token is comparable while all earlier choices of its row, and its own, are beyond rounding.
    sure = np.cumsum(unsure, axis=1) == 0
    tokens, logits = cached_logits(model, nested, batch, steps)
    report.equal(f"stage {stage} greedy_raw tokens", tokens[sure], raw[sure])
    reached = np.pad(sure, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    report.close(f"stage {stage} greedy_raw_logits", logits[reached], reference_logits[reached],
                 FORWARD)

    generated = expected["greedy_generate"][:, 1:]
    generated = np.pad(generated, ((0, 0), (0, steps - generated.shape[1])))
    model = PemtModel(model.t5, model.pemt, max_decode_length=steps)
    ours = np.asarray(jax.jit(model.predict_batch)(nested, batch))
    report.equal(f"stage {stage} greedy_generate tokens", ours[sure], generated[sure])
    if not sure.all():
        print(f"     stage {stage}: {np.sum(~sure)} of {sure.size} tokens follow a tie and were not "
              "compared")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", help="an oracle file (.npz)")
    path = parser.parse_args(arguments).file
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
    with np.load(path) as archive:
        file = {name: archive[name] for name in archive.files}
    settings = json.loads(str(file["config_json"]))
    batch = read_batch(file)
    report = Report()
    stages = [stage for stage in METHOD_OF_STAGE if f"s{stage}/w/shared.weight" in file]
    if not stages:
        sys.exit(f"Expected the weights of a stage in {path}, found none.")
    for stage in stages:
        model, params = build(file, settings, stage)
        shapes = {name: array.shape for name, array in batch.items()}
        ours = jax.eval_shape(lambda s=shapes, m=model: m.get_initial_variables(
            jax.random.key(0), s)["params"])  # fmt: skip
        flat = traverse_util.flatten_dict(ours, sep="/")
        report.equal(f"stage {stage} parameter names and shapes",
                     {(name, value.shape) for name, value in flat.items()},
                     {(name, value.shape) for name, value in params.items()})
        expected = part(file, f"s{stage}/out/")
        report.equal(f"stage {stage} decoder inputs", batch["decoder_input_tokens"],
                     expected["decoder_input_ids"])
        check_forward(report, stage, model, params, batch, expected)
        check_training(report, stage, model, params, batch, settings,
                       part(file, f"s{stage}/grad/"), part(file, f"s{stage}/train/"))
        check_decoding(report, stage, model, params, batch, expected)
    print(f"{len(report.failed)} above their limit" if report.failed else "all within their limits")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
