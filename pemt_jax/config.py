"""The two configurations of a model: the T5 backbone, and what PEMT adds to it.

Both are frozen dataclasses of plain values, so that gin, flags and JSON only fill them in and a
run can be described in its card.  Field names of `T5Config` are T5X's. A whole run is described by
run_config.TrainConfig.
"""

import dataclasses
from pathlib import Path

import ml_dtypes  # noqa: F401  (with it NumPy knows bfloat16 by name)
import numpy as np

from pemt_jax.common.errors import UsageError, nearest
from pemt_jax.common.user_input.linears import ExpertLinears
from pemt_jax.common.user_input.types import check_fields

MINI_T5 = str(Path(__file__).parent / "assets" / "mini_t5")  # the base that ships with the package
ACTIVATIONS = {"relu", "gelu", "linear", "silu"}
DTYPES = {"float32", "bfloat16"}
REMAT_POLICIES = {"none", "minimal", "full"}


def base_path(name: str) -> str:
    """Where a base is: the packaged one for "mini_t5", unless a folder here has that name."""
    return MINI_T5 if name == "mini_t5" and not Path(name).exists() else name


def _one_of(field: str, value: str, allowed: set[str]) -> None:
    if value not in allowed:
        raise UsageError(
            f"{field} is {value!r}, expected one of {sorted(allowed)}{nearest(value, allowed)}."
        )


def _as_tuple(values) -> tuple:
    """A tuple of a list; a plain string is meant as the only one of its kind."""
    return tuple(values) if isinstance(values, list | tuple) else (values,)


def _in_range(field: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise UsageError(f"{field} is {value}, expected {expected}.")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Shape of a T5; the defaults are T5 1.0 base.

    T5 1.0 has `mlp_activations=("relu",)` and `logits_via_embedding=True`; T5 1.1, its LM-adapted
    form, mT5, ByT5 and FLAN have `("gelu", "linear")` and an output projection of their own; UL2
    has `("silu", "linear")`, umT5 a position bias in each layer, `relpos_per_layer`.
    `scale_decoder_outputs` is whether the logits are of the decoder's output / sqrt(D); None for
    what T5 does, where they share the embedding. transformers has models of all four kinds.
    `dtype` is what activations are computed in; norms and softmax are always float32.
    `broadcast_dropout` draws one dropout mask for all positions of an example, as T5X's networks
    do; False draws one per position, as the authors' code does, for 10 to 25 % more time per CPU
    step.
    `remat_policy` trades time for memory: what of a layer is computed again in the backward pass
    instead of kept, "minimal" all but the results of weight matrices, "full" all of it; the
    numbers are the same, to the order of a compiler's sums.
    `scan_layers` compiles one layer per stack instead of all of them: the same parameters, dropout
    masks and numbers, to the order of a compiler's sums, in a fraction of the time to compile.
    """

    vocab_size: int = 32128
    emb_dim: int = 768
    num_heads: int = 12
    head_dim: int = 64
    mlp_dim: int = 3072
    num_encoder_layers: int = 12
    num_decoder_layers: int = 12
    mlp_activations: tuple[str, ...] = ("relu",)
    logits_via_embedding: bool = True
    dropout_rate: float = 0.1
    broadcast_dropout: bool = True
    dtype: str = "float32"
    remat_policy: str = "none"
    scan_layers: bool = False
    relpos_buckets: int = 32
    relpos_max_distance: int = 128
    relpos_per_layer: bool = False
    scale_decoder_outputs: bool | None = None

    def __post_init__(self):
        object.__setattr__(self, "mlp_activations", _as_tuple(self.mlp_activations))
        check_fields(self)
        if self.scale_decoder_outputs == self.logits_via_embedding:  # one value for one model
            object.__setattr__(self, "scale_decoder_outputs", None)
        for name in self.mlp_activations:
            _one_of("T5Config.mlp_activations", name, ACTIVATIONS)
        _one_of("T5Config.dtype", self.dtype, DTYPES)
        _one_of("T5Config.remat_policy", self.remat_policy, REMAT_POLICIES)
        for name in ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim"):
            _in_range(
                f"T5Config.{name}", getattr(self, name), getattr(self, name) >= 1, "1 or more"
            )
        _in_range("T5Config.dropout_rate", self.dropout_rate, 0 <= self.dropout_rate < 1, "[0, 1)")

    @property
    def scales_decoder_outputs(self) -> bool:
        scaled = self.scale_decoder_outputs
        return self.logits_via_embedding if scaled is None else scaled

    @property
    def compute_dtype(self):
        return np.dtype(self.dtype)

    @property
    def dropout_dims(self) -> tuple[int, ...]:
        """Axes along which a dropout mask is repeated: the positions, or the queries."""
        return (-2,) if self.broadcast_dropout else ()

    @property
    def wi_names(self) -> tuple[str, ...]:
        """The input layers of a feed-forward sublayer, one per activation function."""
        gated = len(self.mlp_activations) > 1
        return tuple(f"wi_{i}" if gated else "wi" for i in range(len(self.mlp_activations)))

    def linears(self) -> dict[str, tuple[int, int]]:
        """The widths (in, out) of each linear layer that can have experts, by T5X's path."""
        joined_kv = self.num_heads * self.head_dim
        attention = {name: (self.emb_dim, joined_kv) for name in ("query", "key", "value")}
        attention |= {"out": (joined_kv, self.emb_dim)}
        mlp = {name: (self.emb_dim, self.mlp_dim) for name in self.wi_names}
        mlp |= {"wo": (self.mlp_dim, self.emb_dim)}
        stacks = {
            "encoder": (self.num_encoder_layers, ("attention",)),
            "decoder": (self.num_decoder_layers, ("self_attention", "encoder_decoder_attention")),
        }
        return {
            f"{stack}/layers_{i}/{sublayer}/{name}": widths
            for stack, (layers, attentions) in stacks.items()
            for i in range(layers)
            for sublayer in (*attentions, "mlp")
            for name, widths in (mlp if sublayer == "mlp" else attention).items()
        }


REFERENCE_OPTIONS = {  # of PemtConfig: what the authors' code does
    "prompt_init": "normal",
    "lora_b_init": "uniform",
    "tsl_counts_padding": True,
    "decoder_attends_padding": True,
    "prompt_attention_dropout": 0.1,
    "loss_normalization": "tokens",
}

# The gate's kinds (model/gate.py), of which the second group computes one per token; how source
# prompts are used (model/prompts.py); vectors in the backbone (model/layers.py).
TOKEN_GATES = {"token", "arrow"}
GATES = {"prompt", "shared", "constant", "uniform", "none", *TOKEN_GATES}
PROMPTS = {"mixed", "own", "attention", "product"}
VECTORS = {"none", "bias", "ia3"}


@dataclasses.dataclass(frozen=True)
class PemtConfig:
    """What PEMT adds to the backbone; the default adds nothing.

    A method (methods.py) fills in which modules exist; the rest are choices of the user.  Where
    the authors' code does something else than we do by default, the field has a value that
    reproduces it (configs/README.md).

    Attributes:
      prompt_length: P, tokens of the task's description; 0 for no prompt.
      source_prompt_lengths: lengths of the frozen source prompts, in the order of `expert_names`.
      expert_names: the frozen experts, in order; their number is E.
      source_expert: whether there is a trainable low-rank expert.
      expert_linears: the linear layers that have experts, see `ExpertLinears`; the published
        model has them on the feed-forward output, `wo`. Where two words include a layer, the
        later one counts.
      expert_rank: R, where `expert_linears` names no rank.
      adapter_dim: width of the target adapter; 0 for none.
      tsl_weight: factor of the task sparsity loss.
      gate: how experts are weighted (model/gate.py): "prompt", published; "shared", one linear map
        for all layers of a stack; "constant", a trained vector per layer; "uniform", 1/E; "token",
        a linear map of each token; "arrow", tokens and the experts' prototypes; "none", the layers
        have no experts and only the prompts of the sources are used.
      gate_top_k: the number of experts with a weight above 0, per gate; 0 for all.
      gate_temperature: tau in gate = softmax(a W / tau).
      prompt_mixing: how the source prompts enter the target's (model/prompts.py): "mixed",
        published; "own", not at all; "attention" of each input, ATTEMPT; "product", not at all, but
        the target's is multiplied by a matrix of rank one, MPT.
      vectors: trained vectors in every sublayer of the backbone: "none"; "bias", added to outputs;
        "ia3", multiplied into keys, values and the feed-forward activation.
      lora_b_init: "zero", or "uniform" as the authors' code (the model then starts perturbed).
      prompt_init: "vocab" rows of the description's tokens, or "normal" N(0, 1) rows, which is
        what the authors' code really does.
      tsl_counts_padding: whether the sparsity loss counts padding tokens, as the authors' does.
      decoder_attends_padding: whether decoder padding is attended causally, as the authors' is.
      prompt_attention_dropout: dropout on the attention between prompts; None for the model's
        rate, 0.1 always in the authors' code.
      loss_normalization: "tokens", mean over target tokens; "sequences", mean over rows of it.
    """

    prompt_length: int = 0
    source_prompt_lengths: tuple[int, ...] = ()
    expert_names: tuple[str, ...] = ()
    source_expert: bool = False
    expert_linears: tuple[str, ...] = ("wo",)
    expert_rank: int = 64
    adapter_dim: int = 0
    tsl_weight: float = 0.1
    gate: str = "prompt"
    gate_top_k: int = 0
    gate_temperature: float = 1.0
    prompt_mixing: str = "mixed"
    vectors: str = "none"
    lora_b_init: str = "zero"
    prompt_init: str = "vocab"
    tsl_counts_padding: bool = False
    decoder_attends_padding: bool = False
    prompt_attention_dropout: float | None = None
    loss_normalization: str = "tokens"

    def __post_init__(self):
        for field in ("source_prompt_lengths", "expert_names", "expert_linears"):
            object.__setattr__(self, field, _as_tuple(getattr(self, field)))
        check_fields(self)
        _one_of("PemtConfig.gate", self.gate, GATES)
        _one_of("PemtConfig.prompt_mixing", self.prompt_mixing, PROMPTS)
        _one_of("PemtConfig.vectors", self.vectors, VECTORS)
        _one_of("PemtConfig.lora_b_init", self.lora_b_init, {"zero", "uniform"})
        _one_of("PemtConfig.prompt_init", self.prompt_init, {"vocab", "normal"})
        _one_of("PemtConfig.loss_normalization", self.loss_normalization, {"tokens", "sequences"})
        for field, holds, expected in (
            ("expert_rank", self.expert_rank >= 1, "1 or more"),
            ("adapter_dim", self.adapter_dim >= 0, "0 or more"),
            ("gate_top_k", self.gate_top_k >= 0, "0 or more"),
            ("gate_temperature", self.gate_temperature > 0, "more than 0"),
            ("tsl_weight", self.tsl_weight >= 0, "0 or more"),
            ("prompt_attention_dropout", 0 <= (self.prompt_attention_dropout or 0) < 1, "[0, 1)"),
        ):
            _in_range(f"PemtConfig.{field}", getattr(self, field), holds, expected)
        if len(self.source_prompt_lengths) != len(self.expert_names):
            raise UsageError(
                f"PemtConfig has {len(self.source_prompt_lengths)} source prompts for "
                f"{len(self.expert_names)} experts, expected one prompt an expert."
            )
        if self.source_expert and self.prompt_mixing == "product":
            raise UsageError(
                "PemtConfig.prompt_mixing is 'product' and the method trains an expert, whose "
                "prompt is one matrix, expected method 'mpt'."
            )
        if self.expert_names and not self.prompt_length:
            raise UsageError(
                "PemtConfig has experts and prompt_length 0, expected a prompt for the gate."
            )

        _in_range(
            "PemtConfig.expert_linears",
            len(self.expert_linears),
            self.expert_linears != (),
            "1 or more layers",
        )
        for word in self.expert_linears:
            ExpertLinears.read(word)

    @property
    def num_experts(self) -> int:
        """E, the experts in the layers; without a gate, the sources have but prompts."""
        return 0 if self.gate == "none" else len(self.expert_names)

    def rank_of(self, kind: str) -> int:
        """The rank of experts on the linear layers of a kind ("encoder/mlp/wo"); 0 for none."""
        rank = 0
        for linears in map(ExpertLinears.read, self.expert_linears):
            if linears.include(kind):
                rank = linears.rank or self.expert_rank
        return rank
