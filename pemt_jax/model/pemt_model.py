"""PemtModel: the model's interface to training, evaluation and decoding, T5X's drivers or ours.

The protocol is T5X's (`loss_fn`, `eval_fn`, `predict_batch`, `predict_batch_with_aux`,
`score_batch`, `get_initial_variables`, `FEATURE_CONVERTER_CLS`, vocabularies), so a driver need not
know PEMT. A batch is T5X's: `encoder_input_tokens` [B, S], `decoder_input_tokens`,
`decoder_target_tokens` and `decoder_loss_weights` [B, T]; if prompts are padded on the left, also
`encoder_prompt_weights` [B, P], 0 for padding. A row whose loss weights are all zero only fills the
batch or the mesh: it counts in no loss, metric, mean gate or sparsity loss.
"""

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from flax import traverse_util
from jax import Array

from pemt_jax.common.errors import UsageError
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.model import decoding
from pemt_jax.model.losses import token_cross_entropy
from pemt_jax.model.network import Transformer
from pemt_jax.model.stack import stacked

Batch = Mapping[str, Array]
LAYER_GATE = "layer_gate/"


class PemtModel:
    """A T5 with the additions of a `PemtConfig`, its losses, metrics and decoding.

    Attributes:
      t5, pemt: the configurations.
      module: the Flax module.
      input_vocabulary, output_vocabulary: SeqIO vocabularies; the model itself does not use them.
      max_decode_length: maximum number of tokens to generate; None for the length of the batch's
        targets.
    """

    def __init__(
        self, t5: T5Config, pemt: PemtConfig, vocabulary=None, max_decode_length: int | None = None
    ):
        self.t5 = t5
        self.pemt = pemt
        self.module = Transformer(t5, pemt)
        self.input_vocabulary = self.output_vocabulary = vocabulary
        self.max_decode_length = max_decode_length

    @property
    def FEATURE_CONVERTER_CLS(self):  # T5X spells it so
        import seqio  # imports TensorFlow, which the model itself does not need

        return seqio.EncDecFeatureConverter

    def get_initial_variables(
        self,
        rng: Array,
        input_shapes: Mapping[str, tuple[int, ...]],
        input_types: Mapping[str, jnp.dtype] | None = None,
    ) -> dict:
        """Return {"params", "params_axes"} of newly initialised parameters.

        Args:
          rng: key of the initial values.
          input_shapes: shapes of the batch, by feature.
          input_types: ignored; tokens are int32.
        """
        tokens = {name: jnp.ones(shape, jnp.int32) for name, shape in input_shapes.items()}
        variables = self.module.init(
            {"params": rng},
            tokens["encoder_input_tokens"],
            tokens["decoder_input_tokens"],
            tokens["decoder_target_tokens"],
            jnp.ones((tokens["encoder_input_tokens"].shape[0],), jnp.float32),
        )
        return {name: variables[name] for name in ("params", "params_axes")}

    def apply(
        self, params: Mapping, batch: Batch, dropout_rng: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Return logits [B, T, V] and the flat collection "pemt": gates [B, E], losses [].

        Raises:
          UsageError: the batch is packed; the examples of a row would share one prompt and gate.
        """
        if "encoder_segment_ids" in batch:
            raise UsageError("Found a packed batch, expected one example per row (pack=False).")
        logits_BTV, collected = self.module.apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            batch["decoder_target_tokens"],
            row_weights(batch),
            batch.get("encoder_prompt_weights"),
            enable_dropout=dropout_rng is not None,
            rngs=None if dropout_rng is None else {"dropout": dropout_rng},
            mutable=["pemt"],
        )
        return logits_BTV, _flat(collected.get("pemt", {}))

    def loss_fn(
        self, params: Mapping, batch: Batch, dropout_rng: Array | None
    ) -> tuple[Array, dict[str, clu_metrics.Metric]]:
        """Return cross entropy + tsl_weight * mean over layers of TSL, and metrics.

        Args:
          params: nested parameters.
          batch: see the module's docstring.
          dropout_rng: key of the step's dropout; None for no dropout.
        """
        return self._loss(params, batch, dropout_rng)[:2]

    def _loss(self, params: Mapping, batch: Batch, dropout_rng: Array | None) -> tuple:
        """What `loss_fn` returns, and the flat collection "pemt"."""
        logits_BTV, collected = self.apply(params, batch, dropout_rng)
        targets_BT = batch["decoder_target_tokens"]
        weights_BT = batch["decoder_loss_weights"].astype(jnp.float32)
        ce, ce_BT = token_cross_entropy(
            logits_BTV, targets_BT, weights_BT, self.pemt.loss_normalization
        )
        tokens = jnp.sum(weights_BT)
        rows_B = row_weights(batch)
        rows = jnp.sum(rows_B)
        # On a CPU a comparison with the maximum is several times cheaper than the arg-max.
        label_logits_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
        correct_BT = (label_logits_BT >= jnp.max(logits_BTV, axis=-1)) * weights_BT
        tsl = [value for path, value in collected.items() if path.endswith("/tsl")]
        loss = ce
        metrics: dict[str, clu_metrics.Metric] = {
            "cross_entropy": average(jnp.sum(ce_BT * weights_BT), tokens),
            "token_accuracy": average(jnp.sum(correct_BT), tokens),
        }
        if tsl:
            mean_tsl = sum(tsl) / len(tsl)
            loss = ce + self.pemt.tsl_weight * mean_tsl
            metrics["task_sparsity_loss"] = average(mean_tsl * rows, rows)
            gate_BE = mean_gate(collected)
            for i, name in enumerate(self.pemt.expert_names):
                metrics[f"gate/{name}"] = average(jnp.sum(gate_BE[:, i] * rows_B), rows)
        metrics["loss"] = average(loss * rows, rows)
        return loss, metrics, collected

    def eval_fn(self, params: Mapping, batch: Batch) -> tuple[Array, dict]:
        """`loss_fn` without dropout."""
        return self.loss_fn(params, batch, None)

    def eval_fn_by_layer(self, params: Mapping, batch: Batch) -> tuple[Array, dict]:
        """`eval_fn` with each layer's mean gates too: `layer_gate/encoder/layers_0/mlp/NAME`."""
        loss, metrics, collected = self._loss(params, batch, None)
        rows_B = row_weights(batch)
        for path, gate_BE in collected.items():
            layer, _, kind = path.rpartition("/")
            for i, name in enumerate(self.pemt.expert_names if kind == "gate" else ()):
                mean = average(jnp.sum(gate_BE[:, i] * rows_B), jnp.sum(rows_B))
                metrics[f"{LAYER_GATE}{layer}/{name}"] = mean
        return loss, metrics

    def predict_batch(self, params: Mapping, batch: Batch, rng: Array | None = None) -> Array:
        """Return greedily decoded tokens [B, T], 0 after the end."""
        return self.predict_batch_with_aux(params, batch, rng)[0]

    def predict_batch_with_aux(
        self,
        params: Mapping,
        batch: Batch,
        rng: Array | None = None,
        decoder_params: Mapping | None = None,
        return_all_decodes: bool = False,
        num_decodes: int = 1,
    ) -> tuple[Array, dict[str, Array]]:
        """Decode with the cache.

        Args:
          params: nested parameters.
          batch: see the module's docstring; at most T tokens are generated unless
            `max_decode_length` is set.
          rng: ignored; decoding is deterministic.
          decoder_params: `alpha`, the exponent of beam search's length penalty.
          return_all_decodes: whether to return all [B, num_decodes, T], best last as in T5X, or
            only the best.
          num_decodes: 1 for greedy search, otherwise the number of beams.

        Returns:
          Tokens [B, T], or [B, num_decodes, T] with `return_all_decodes`, and a dict: "scores", the
          log probabilities (of beams divided by the length penalty), and for a model with experts
          "gate", the mean over all gates of the encoder and decoder [B, E], as in `eval_fn`.
        """
        del rng
        if self.t5.scan_layers:
            params = stacked(params)  # here, not in each step of the search
        length = self.max_decode_length or batch["decoder_target_tokens"].shape[1]
        rows_B = row_weights(batch)
        tokens_BS = batch["encoder_input_tokens"]
        prompt_BP = batch.get("encoder_prompt_weights")
        encoded_BMD, collected = self.module.apply(
            {"params": params},
            tokens_BS,
            rows_B,
            prompt_BP,
            method=Transformer.encode,
            mutable=["pemt"],
        )
        repeat = lambda x: jnp.repeat(x, num_decodes, axis=0)  # noqa: E731
        encoded_NMD, tokens_NS, rows_N = repeat(encoded_BMD), repeat(tokens_BS), repeat(rows_B)
        prompt_NP = None if prompt_BP is None else repeat(prompt_BP)

        def decode(inputs_NT, cache, *, mutable):
            variables = {"params": params, **({"cache": cache} if cache is not None else {})}
            return self.module.apply(
                variables,
                encoded_NMD,
                tokens_NS,
                inputs_NT,
                inputs_NT,
                rows_N,
                prompt_NP,
                decode=True,
                max_decode_length=length,
                method=Transformer.decode,
                mutable=mutable,
            )

        def next_logits(tokens_N, cache, position):
            del position  # the cache has its own index
            logits_N1V, variables = decode(tokens_N[:, None], cache, mutable=["cache"])
            return logits_N1V[:, 0], variables["cache"]

        start_NT = jnp.zeros((tokens_NS.shape[0], length), jnp.int32)
        shapes = jax.eval_shape(lambda: decode(start_NT, None, mutable=["cache"])[1]["cache"])
        cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        aux = {}
        if self.pemt.num_experts:
            # The decoder's gates read the encoder's output, so the first token's are those of all;
            # the compiler drops the rest of this step.
            decoded = _flat(decode(start_NT[:, :1], cache, mutable=["cache", "pemt"])[1]["pemt"])
            decoded = {path: gate_NE[::num_decodes] for path, gate_NE in decoded.items()}
            aux["gate"] = mean_gate(_flat(collected.get("pemt", {})) | decoded)
        if num_decodes == 1:
            tokens, scores = decoding.greedy_search(next_logits, cache, rows_N, length)
            tokens, scores = tokens[:, None], scores[:, None]
        else:
            alpha = (decoder_params or {}).get("alpha", 0.6)
            tokens, scores = decoding.beam_search(
                next_logits, cache, rows_B, length, num_decodes, alpha
            )
            tokens, scores = tokens[:, ::-1], scores[:, ::-1]
        if return_all_decodes:
            return tokens, aux | {"scores": scores}
        return tokens[:, -1], aux | {"scores": scores[:, -1]}

    def score_batch(self, params: Mapping, batch: Batch, return_intermediates: bool = False):
        """Return the log likelihood [B] of the targets.

        With `return_intermediates` also T5X's {"decoder": {"token_scores", "target_tokens",
        "loss_weights"}}, each a tuple of one array [B, T].
        """
        logits_BTV, _ = self.apply(params, batch)
        targets_BT = batch["decoder_target_tokens"]
        weights_BT = batch["decoder_loss_weights"].astype(jnp.float32)
        _, ce_BT = token_cross_entropy(logits_BTV, targets_BT, weights_BT)
        scores_BT = -ce_BT * weights_BT
        scores_B = jnp.sum(scores_BT, axis=1)
        if not return_intermediates:
            return scores_B
        return scores_B, {
            "decoder": {
                "token_scores": (scores_BT,),
                "target_tokens": (targets_BT,),
                "loss_weights": (batch["decoder_loss_weights"],),
            }
        }


def _flat(collected: Any) -> dict[str, Array]:
    """The collection "pemt" by '/'-joined path."""
    return cast(dict[str, Array], traverse_util.flatten_dict(collected, sep="/"))


def row_weights(batch: Batch) -> Array:
    """Return [B]: 1 for examples, 0 for rows that only fill the batch."""
    return jnp.any(batch["decoder_loss_weights"] > 0, axis=1).astype(jnp.float32)


def mean_gate(collected: Mapping[str, Array]) -> Array:
    """Return gate_BE averaged over the layers in the flat collection "pemt"."""
    gates = [value for path, value in collected.items() if path.endswith("/gate")]
    return cast(Array, sum(gates) / len(gates))


def average(total: Array, count: Array) -> clu_metrics.Average:
    """Return the metric `total / count`, which merges over steps and devices."""
    # clu's stub does not show that it is a dataclass.
    return clu_metrics.Average(total=total, count=count)  # pyright: ignore[reportCallIssue]
