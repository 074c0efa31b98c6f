"""What PEMT adds to a T5: a source expert, a gated mixture of them, a target adapter.

An expert is a low-rank pair of matrices beside a linear layer x W of the T5: e = (x A) B. In the
published model that is the feed-forward output W_o; here it is any set of linear layers
(`PemtConfig.expert_linears`). Stage 1 trains one pair per layer; stage 2 keeps E frozen ones in one
stacked bank and adds their mixture,

    y = x W + sum_i g_i (x A_i) B_i,      g = gate of the sublayer.

All linear layers of a sublayer (attention, or feed-forward) share one gate. It reads the prompt
positions of, in the encoder, the sublayer's normalised input, or the feed-forward activation where
W_o alone has experts, as published; in the decoder, the encoder's output. gate.py has other gates;
those per token are of each linear layer, and read its own input. An expert that lacks a
layer, or has a lower rank than others, is filled up with zeros, which changes no output. The
sparsity loss (losses.py) counts the sublayers whose output projection, W_o or attention's, has
experts: z is the sublayer's output, e_i what expert i adds to it.

The bank costs one matmul to E*R channels, a multiplication by the gate and one matmul back; the E
outputs [E, B, L, D] are never computed, in the loss neither. The authors' code has one module per
expert.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jax import Array

from pemt_jax.config import TOKEN_GATES, PemtConfig
from pemt_jax.model.gate import example_gate, token_gate
from pemt_jax.model.layers import Dense
from pemt_jax.model.losses import expert_cosines, task_sparsity_loss


def uniform(bound: float):
    """Return an initialiser that draws from U(-bound, bound)."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class SourceExpert(nn.Module):
    """The trainable expert of stage 1: [B, L, F] -> [B, L, D], alpha / R = 1.

    F and D are the widths of the linear layer that it is beside. A is drawn from U(+-1/sqrt(F)).
    B is zero, so that training starts from the pretrained model, or drawn from U(+-1/sqrt(R)) as in
    the authors' code.
    """

    rank: int
    features: int
    b_init: str
    dtype: jnp.dtype = jnp.float32
    axes: tuple[str, str] = ("mlp", "embed")

    @nn.compact
    def __call__(self, hidden_BLF: Array) -> Array:
        width = hidden_BLF.shape[-1]
        init_b = nn.initializers.zeros
        if self.b_init == "uniform":
            init_b = uniform(1 / math.sqrt(self.rank))
        lora_a_FR = param_with_axes(
            "lora_a",
            uniform(1 / math.sqrt(width)),
            (width, self.rank),
            jnp.float32,
            axes=(self.axes[0], "expert_rank"),
        )
        lora_b_RD = param_with_axes(
            "lora_b",
            init_b,
            (self.rank, self.features),
            jnp.float32,
            axes=("expert_rank", self.axes[1]),
        )
        channels_BLR = jnp.dot(hidden_BLF, lora_a_FR.astype(self.dtype))
        return jnp.dot(channels_BLR, lora_b_RD.astype(self.dtype))


class ExpertMixture(nn.Module):
    """The frozen bank of stage 2; its weights come from the expert library.

    The memory layout of both factors is that of the matrices [F, E*R] and [E*R, D] used in the
    products, so no step has to transpose the bank (which took a seventh of a small CPU step).
    """

    num_experts: int
    rank: int
    features: int
    dtype: jnp.dtype = jnp.float32
    axes: tuple[str, str] = ("mlp", "embed")

    @nn.compact
    def __call__(self, hidden_BLF: Array, gate: Array) -> tuple[Array, Array, Array]:
        """Return sum_i g_i e_i [B, L, D], the channels [B, L, E, R], and the bank's B [E, R, D].

        Args:
          hidden_BLF: input of the linear layer.
          gate: [B, E], or per token [B, L, E].
        """
        width, experts, rank = hidden_BLF.shape[-1], self.num_experts, self.rank
        lora_a_FER = param_with_axes(
            "lora_a",
            uniform(1 / math.sqrt(width)),
            (width, experts, rank),
            jnp.float32,
            axes=(self.axes[0], "experts", "expert_rank"),
        ).astype(self.dtype)
        lora_b_ERD = param_with_axes(
            "lora_b",
            nn.initializers.zeros,
            (experts, rank, self.features),
            jnp.float32,
            axes=("experts", "expert_rank", self.axes[1]),
        ).astype(self.dtype)
        # Matrix products, not einsums over E and R: XLA would transpose the bank for those.
        channels_BLC = jnp.dot(hidden_BLF, lora_a_FER.reshape(width, experts * rank))
        gate = jnp.repeat(gate.astype(self.dtype), rank, axis=-1)
        gated_BLC = channels_BLC * (gate[:, None, :] if gate.ndim == 2 else gate)
        mixture_BLD = jnp.dot(gated_BLC, lora_b_ERD.reshape(experts * rank, self.features))
        channels_BLER = channels_BLC.reshape(*channels_BLC.shape[:2], experts, rank)
        return mixture_BLD, channels_BLER, lora_b_ERD


@dataclasses.dataclass
class SublayerExperts:
    """The experts of one sublayer, used within its module, in which their parameters then lie.

    Attributes:
      pemt: the configuration.
      sublayer: of which stack and kind: "encoder/attention".
      dtype: what is computed in.
      gate_BE: None until it is read; per token, none is.
    """

    pemt: PemtConfig
    sublayer: str
    dtype: jnp.dtype = jnp.float32
    gate_BE: Array | None = None
    _output: tuple[Array, Array] | None = None  # channels and B of the output projection's bank
    _per_token: dict[str, Array] = dataclasses.field(default_factory=dict)  # by linear layer

    def on(self, *names: str) -> bool:
        """Whether any of these linear layers has experts."""
        return any(self.pemt.rank_of(f"{self.sublayer}/{name}") for name in names)

    def read_gate(
        self,
        states_BPX: Array,
        axis: str,
        prompt_weights_BP: Array | None,
        shared_kernel_XE: Array | None,
    ) -> None:
        """Compute the gate, unless it is one per token; see `example_gate`."""
        if self.pemt.gate not in TOKEN_GATES:
            self.gate_BE = example_gate(
                self.pemt, states_BPX, axis, prompt_weights_BP, shared_kernel_XE
            )

    def add(self, name: str, x: Array, y: Array, axes: tuple[str, str]) -> Array:
        """Return y, the output of linear layer `name` for x, with what its experts add.

        `axes` are the logical axes of the layer's kernel. The parameters of W_o's experts are
        "expert" and "experts", as they have always been; those of another layer bear its name.
        """
        pemt, rank = self.pemt, self.pemt.rank_of(f"{self.sublayer}/{name}")
        prefix = "" if name == "wo" else f"{name}_"
        features = y.shape[-1]
        if rank and pemt.source_expert:
            y += SourceExpert(
                rank, features, pemt.lora_b_init, self.dtype, axes, name=f"{prefix}expert"
            )(x)
        if rank and pemt.num_experts:
            gate = self.gate_BE
            if gate is None:
                gate = self._per_token[name] = token_gate(pemt, x, axes[0], f"{prefix}gate")
            mixture, channels_BLER, lora_b_ERD = ExpertMixture(
                pemt.num_experts, rank, features, self.dtype, axes, name=f"{prefix}experts"
            )(x, gate)
            y += mixture
            if name in ("wo", "out"):
                self._output = channels_BLER, lora_b_ERD
        return y

    def store(self, module: nn.Module, z_BLD: Array, token_weights_BL: Array | None) -> None:
        """Put the gate and, where there is one, the sparsity loss into the collection "pemt".

        Args:
          module: the sublayer's.
          z_BLD: its output.
          token_weights_BL: 1 for tokens that the loss counts; None in decoding, without a loss.
        """
        if not module.is_mutable_collection("pemt"):
            return
        gate_BE = self._mean_gate(token_weights_BL) if self._per_token else self.gate_BE
        if gate_BE is None:
            return
        module.put_variable("pemt", "gate", gate_BE)
        if self._output is not None and token_weights_BL is not None:
            cosines_BLE = expert_cosines(z_BLD, *self._output)
            tsl = task_sparsity_loss(cosines_BLE, gate_BE, token_weights_BL)
            module.put_variable("pemt", "tsl", tsl)

    def _mean_gate(self, token_weights_BL: Array | None) -> Array:
        """The mean over linear layers and, where they are known, the tokens that count.

        Cross attention's keys and values are of the memory's tokens, all of which count here.
        """
        means = []
        for name, gate_BLE in self._per_token.items():
            of_memory = "encoder_decoder" in self.sublayer and name in ("key", "value")
            if token_weights_BL is None or of_memory:
                means.append(jnp.mean(gate_BLE, axis=1))
                continue
            weights_BL = token_weights_BL.astype(jnp.float32)
            tokens_B1 = jnp.maximum(jnp.sum(weights_BL, axis=1, keepdims=True), 1)
            means.append(jnp.einsum("ble,bl->be", gate_BLE, weights_BL) / tokens_B1)
        return jnp.mean(jnp.stack(means), axis=0)


class TargetAdapter(nn.Module):
    """Bottleneck y + gelu(y W_down + b_down) W_up + b_up after the feed-forward output.

    Kernels are drawn from N(0, 0.01^2), biases are zero, gelu is the tanh approximation, and there
    is no norm.
    """

    bottleneck: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, y_BLD: Array) -> Array:
        init = nn.initializers.normal(stddev=0.01)
        down = Dense(self.bottleneck, ("embed", "adapter"), self.dtype, init, True, name="down")
        up = Dense(y_BLD.shape[-1], ("adapter", "embed"), self.dtype, init, True, name="up")
        return y_BLD + up(jax.nn.gelu(down(y_BLD), approximate=True))
