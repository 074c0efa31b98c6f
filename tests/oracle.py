"""Compare pemt_jax with numbers of the authors' own code: `python tests/oracle.py FILE.npz`.

The file holds, for both stages, every weight, one padded batch, and what the authors' PyTorch model
gives for them: logits, losses, prompts, gates, gradients, a few optimizer steps, decoded tokens.
Here the same weights go through our model with the reference options (configs/README.md,
"Reference and default behaviour").  Each quantity is printed with its largest error; the exit code
is 1 when one is above its limit.  All sizes come from the file.

Limits: forward 1e-5; gradients 2e-6 + 1e-4 relative; losses of the steps 1e-4 relative, gradient
norms 1e-3; parameters after the steps 1e-2 of the way they went; tokens exact.  Both sides compute
in float32, and in a larger model that alone can be more: one relu input of a million that rounds to
the other side of zero moves a gradient by 1e-5, and Adam makes a whole step of it.  So a limit is
widened to WIDENED times what our own model's result moves by when every weight is changed by a part
in a million, measured on the file itself.  For the same reason a row's tokens are compared up to
the first step at which the best two logits of the reference are closer than rounding.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.interop.reference import SOURCE_PROMPT, from_reference
from pemt_jax.model.methods import METHODS, merge, split
from pemt_jax.model.network import Transformer
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.optimizers import make_optimizer, make_schedule

FORWARD, GRADIENT, GRADIENT_RELATIVE = 1e-5, 2e-6, 1e-4
LOSS_RELATIVE, NORM_RELATIVE, OF_THE_WAY = 1e-4, 1e-3, 1e-2
NUDGE, NUDGED_RUNS, WIDENED = 2.0**-22, 6, 4
METHOD_OF_STAGE = {1: METHODS["pemt_source"], 2: METHODS["pemt_target"]}
Arrays = dict[str, np.ndarray]


def source_prompt_lengths(tensors: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Rows of each source prompt among the authors' tensors, in expert order."""
    lengths = {
        int(match[1]): len(tensor)
        for name, tensor in tensors.items()
        if (match := SOURCE_PROMPT.fullmatch(name))
    }
    return tuple(lengths[i] for i in sorted(lengths))


class Report:
    """Prints one line a quantity and remembers which failed."""

    def __init__(self):
        self.failed: list[str] = []
        self.stage = 0

    def line(self, name: str, ok: bool, text: str) -> None:
        print(f"{'ok  ' if ok else 'FAIL'} stage {self.stage} {name:58} {text}", flush=True)
        if not ok:
            self.failed.append(name)

    def close(self, name: str, ours, reference, limit, spread=0.0) -> None:
        """|ours - reference| <= limit, or WIDENED times the spread, in every entry."""
        ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
        if ours.shape != reference.shape:
            self.line(name, False, f"shape {ours.shape}, expected {reference.shape}")
            return
        error = np.abs(ours - reference)
        limit = np.broadcast_to(np.maximum(limit, WIDENED * spread), error.shape)
        text = f"{error.max(initial=0):.2e}"
        if error.size:
            worst = np.unravel_index(np.argmax(error / limit), error.shape)
            text += f"  (spread {spread:.1e}, worst {error[worst]:.1e}, limit {limit[worst]:.1e})"
        self.line(name, bool(np.all(error <= limit)), text)

    def equal(self, name: str, ours, reference) -> None:
        """Exactly equal sets or arrays."""
        if isinstance(reference, set):
            odd = sorted(map(str, ours ^ reference))
            text = f"{len(reference)} names" if not odd else f"{len(odd)} differ, first {odd[0]}"
            self.line(name, not odd, text)
        else:
            ours, reference = np.asarray(ours), np.asarray(reference)
            ok = np.array_equal(ours, reference)
            text = f"shape {ours.shape}, expected {reference.shape}"
            if ours.shape == reference.shape:
                text = f"{np.sum(ours != reference)} of {reference.size} differ"
            self.line(name, ok, text)


def part(file: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    """The entries under `prefix`, without it."""
    return {name.removeprefix(prefix): file[name] for name in file if name.startswith(prefix)}


def build(
    file: Mapping[str, np.ndarray], settings: dict, stage: int, scan_layers: bool
) -> tuple[PemtModel, Arrays]:
    """The model of a stage with the reference options, and its flat parameters from the file."""
    shape = settings["shape"]
    t5 = T5Config(
        vocab_size=shape["vocab_size"],
        emb_dim=shape["d_model"],
        num_heads=shape["num_heads"],
        head_dim=shape["d_kv"],
        mlp_dim=shape["d_ff"],
        num_encoder_layers=shape["num_layers"],
        num_decoder_layers=shape["num_decoder_layers"],
        dropout_rate=settings["dropout"],
        relpos_buckets=settings.get("relative_attention_num_buckets", 32),
        relpos_max_distance=settings.get("relative_attention_max_distance", 128),
        scan_layers=scan_layers,
    )
    tensors = part(file, f"s{stage}/w/")
    lengths = source_prompt_lengths(tensors)
    params = from_reference(t5, tensors)
    tsl_weight = settings["tsl_weight"]
    if stage == 2 and not any("/gate/" in path for path in params):
        # With one source the authors' code has neither gate nor sparsity loss: its weight is 1.
        tsl_weight = 0.0
        for path in [path for path in params if "/expert/" in path]:
            axis = 1 if path.endswith("lora_a") else 0
            params[path.replace("/expert/", "/experts/")] = np.expand_dims(params.pop(path), axis)
            width = t5.mlp_dim if path.startswith("encoder") else t5.emb_dim
            gate = f"{path.rpartition('/expert/')[0]}/gate/kernel"
            params[gate] = np.zeros((width, 1), np.float32)
    pemt = PemtConfig(
        prompt_length=len(tensors["task_shared"]),
        source_prompt_lengths=lengths,
        expert_names=tuple(f"source_{i}" for i in range(len(lengths))),
        source_expert=stage == 1,
        adapter_dim=settings["adapter_bottleneck"] if stage == 2 else 0,
        expert_rank=settings["lora_rank"],
        tsl_weight=tsl_weight,
        tsl_counts_padding=True,
        decoder_attends_padding=True,
        prompt_attention_dropout=0.1,
    )
    return PemtModel(t5, pemt), params


def read_batch(file: Mapping[str, np.ndarray]) -> Arrays:
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


def forward_function(model: PemtModel, batch: Arrays) -> Callable:
    """A function of nested parameters to what the model computes, under the file's names."""
    rows_B = np.ones(len(batch["encoder_input_tokens"]), np.float32)

    def forward(nested):
        logits, collected = model.apply(nested, batch)
        variables = {"params": nested}
        values = {
            "logits": logits,
            "prompt": model.module.apply(variables, method=Transformer.task_prompt),
            "encoder_out": model.module.apply(
                variables, batch["encoder_input_tokens"], rows_B, method=Transformer.encode
            ),
        }
        for path, value in collected.items() if model.pemt.tsl_weight else ():
            stack, layer, _, kind = path.split("/")
            values[f"{kind}/{stack[:3]}/{layer.removeprefix('layers_')}"] = value
        return values

    return jax.jit(forward)


def training_function(model: PemtModel, batch: Arrays, plan: dict) -> Callable:
    """A function of (trainable, frozen) to losses, gradients and what the steps make of them."""
    schedule = make_schedule("linear", plan["lr"], plan["warmup"], plan["steps"])
    b1, b2 = plan["betas"]
    optimizer = make_optimizer("adamw_hf", schedule, b1, b2, plan["eps"], clip_norm=plan["clip"])

    @jax.jit
    def step(trainable, frozen, opt_state):
        def loss_of(trainable):
            return model.eval_fn(merge(trainable, frozen), batch)

        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        updates, opt_state = optimizer.update(grads, opt_state, trainable)
        values = {
            "loss": loss,
            "ce": metrics["cross_entropy"].compute(),
            "norm": optax.global_norm(grads),
        }
        if model.pemt.num_experts and model.pemt.tsl_weight:
            values["tsl_mean"] = metrics["task_sparsity_loss"].compute()
        return optax.apply_updates(trainable, updates), opt_state, grads, values

    def train(trainable, frozen):
        state = jax.jit(optimizer.init)(trainable)
        history = []
        for i in range(plan["steps"]):
            trainable, state, grads, values = step(trainable, frozen, state)
            history.append(values)
            if i == 0:
                gradients = {f"gradient {path}": grad for path, grad in grads.items()}
        first = {name: value for name, value in history[0].items() if name != "norm"}
        final = {f"final {path}": value for path, value in trainable.items()}
        return (
            first
            | gradients
            | final
            | {
                "losses": [values["loss"] for values in history],
                "grad_norms": [values["norm"] for values in history],
                "lrs": [schedule(jnp.asarray(i)) for i in range(plan["steps"])],
            }
        )

    return train


def decoding_function(model: PemtModel, batch: Arrays, raw: np.ndarray) -> Callable:
    """A function of (parameters, encoder output) to the logits of each step, by the cache.

    It is fed the tokens that the reference chose, past the end token too.
    """
    tokens_BS = batch["encoder_input_tokens"]
    rows_B, steps = np.ones(len(tokens_BS), np.float32), raw.shape[1] - 1

    @jax.jit
    def advance(nested, encoded, cache, inputs):
        return model.module.apply(
            {"params": nested, **cache},
            encoded,
            tokens_BS,
            inputs,
            inputs,
            rows_B,
            decode=True,
            max_decode_length=steps,
            method=Transformer.decode,
            mutable=["cache"],
        )

    def decode(nested, encoded):
        empty = jax.eval_shape(advance, nested, encoded, {}, np.zeros_like(raw[:, 1:], np.int32))[1]
        cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), empty)
        logits = []
        for i in range(steps):
            step_logits, cache = advance(nested, encoded, cache, raw[:, i : i + 1].astype(np.int32))
            logits.append(step_logits)
        return np.concatenate(logits, axis=1)

    return decode


def check_tokens(report: Report, model, nested, batch, logits, expected: Arrays, limit) -> None:
    """Greedy tokens with the end token ignored, and as `predict_batch` gives them."""
    raw, reference = expected["greedy_raw"][:, 1:], expected["greedy_raw_logits"]
    steps = raw.shape[1]
    best_two = np.sort(reference, axis=-1)[..., -2:]
    sure = (best_two[..., 1] - best_two[..., 0]) > 2 * limit
    report.equal("greedy_raw tokens", np.argmax(logits, axis=-1)[sure], raw[sure])
    sure = np.cumprod(sure, axis=1) > 0  # here a choice depends on all before it
    generated = expected["greedy_generate"][:, 1:]
    generated = np.pad(generated, ((0, 0), (0, steps - generated.shape[1])))
    model = PemtModel(model.t5, model.pemt, max_decode_length=steps)
    ours = np.asarray(jax.jit(model.predict_batch)(nested, batch))
    report.equal("greedy_generate tokens", ours[sure], generated[sure])
    if not sure.all():
        print(f"     {np.sum(~sure)} of {sure.size} tokens follow a tie and were not compared")


def check_stage(
    report: Report, stage: int, file: Arrays, settings: dict, batch: Arrays, scan_layers: bool
) -> None:
    """Everything that the file has of one stage."""
    report.stage = stage
    model, params = build(file, settings, stage, scan_layers)
    expected = part(file, f"s{stage}/out/")
    shapes = {name: array.shape for name, array in batch.items()}
    fresh = jax.eval_shape(lambda: model.get_initial_variables(jax.random.key(0), shapes)["params"])
    report.equal(
        "parameter names and shapes",
        {(name, value.shape) for name, value in flatten_dict(fresh, sep="/").items()},
        {(name, value.shape) for name, value in params.items()},
    )
    report.equal("decoder inputs", batch["decoder_input_tokens"], expected["decoder_input_ids"])
    forward = forward_function(model, batch)
    decode = decoding_function(model, batch, expected["greedy_raw"])
    train = training_function(model, batch, settings["train"])

    def evaluate(flat: Arrays) -> Arrays:
        nested = unflatten_dict(flat, sep="/")
        values = forward(nested) | train(*split(nested, METHOD_OF_STAGE[stage]))
        values["greedy_raw_logits"] = decode(nested, values["encoder_out"])
        return {name: np.asarray(value, np.float64) for name, value in values.items()}

    ours = evaluate(params)
    spread = dict.fromkeys(ours, 0.0)
    for seed in range(NUDGED_RUNS):
        rng = np.random.default_rng(seed)
        nudged = evaluate(
            {
                path: array * (1 + NUDGE * rng.uniform(-1, 1, array.shape)).astype(np.float32)
                for path, array in params.items()
            }
        )
        for name, value in nudged.items():
            spread[name] = max(spread[name], np.abs(value - ours[name]).max(initial=0))

    names = {n for n in expected if n in ours or n.startswith(("gate/", "tsl/"))}
    others = ("gradient ", "final ", "losses", "grad_norms", "lrs")  # these follow
    report.equal("forward quantities", {n for n in ours if not n.startswith(others)}, names)
    for name in sorted(names & set(ours)):
        report.close(name, ours[name], expected[name], FORWARD, spread[name])

    gradients = from_reference(model.t5, part(file, f"s{stage}/grad/"))
    trained = {name.removeprefix("final ") for name in ours if name.startswith("final ")}
    if not model.pemt.tsl_weight:
        trained = {path for path in trained if "/gate/" not in path}
    report.equal("trainable set", trained, set(gradients))
    for path in sorted(trained & set(gradients)):
        name, reference = f"gradient {path}", gradients[path]
        limit = GRADIENT + GRADIENT_RELATIVE * np.abs(reference)
        report.close(name, ours[name], reference, limit, spread[name])

    after = part(file, f"s{stage}/train/")
    for name, relative in (
        ("losses", LOSS_RELATIVE),
        ("grad_norms", NORM_RELATIVE),
        ("lrs", LOSS_RELATIVE),
    ):
        # A learning rate of 0 is compared as one of a billionth.
        limit = relative * np.maximum(np.abs(after[name]), 1e-9)
        report.close(f"{name} of the steps", ours[name], after[name], limit, spread[name])
    final = from_reference(model.t5, part(after, "final/"))
    report.equal("parameters after the steps", trained, set(final))
    for path in sorted(trained & set(final)):
        way = np.abs(final[path] - params[path]).max()
        report.close(
            f"final {path}",
            ours[f"final {path}"],
            final[path],
            OF_THE_WAY * max(way, 1e-9),
            spread[f"final {path}"],
        )

    limit = max(FORWARD, WIDENED * spread["greedy_raw_logits"])
    nested = unflatten_dict(params, sep="/")
    check_tokens(report, model, nested, batch, ours["greedy_raw_logits"], expected, limit)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", help="an oracle file (.npz)")
    parser.add_argument("--scan_layers", action="store_true", help="scan the layers")
    options = parser.parse_args(arguments)
    path = options.file
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        with np.load(path) as archive:
            file = {name: archive[name] for name in archive.files}
        settings = json.loads(str(file["config_json"]))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"Expected an oracle file at {path}, but {type(error).__name__}: {error}.")
    batch = read_batch(file)
    report = Report()
    for stage in METHOD_OF_STAGE:
        check_stage(report, stage, file, settings, batch, options.scan_layers)
    failed = len(report.failed)
    print(f"{failed} above their limit" if failed else "all within their limits")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
