"""The feed-forward sublayer, the only part of a layer that PEMT changes.

It is T5's act(x W_i) W_o, then the trainable expert of stage 1 or the gated frozen experts of
stage 2, then the target adapter. Each layer stores its gate [B, E] and its sparsity loss `tsl` []
in the collection "pemt" when that is mutable.
"""

import flax.linen as nn
import jax
from flax.linen.spmd import with_logical_constraint
from jax import Array

from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.model.experts import ExpertMixture, SourceExpert, TargetAdapter
from pemt_jax.model.gate import CorrelationGate
from pemt_jax.model.layers import Dense, Dropout
from pemt_jax.model.losses import expert_cosines, task_sparsity_loss

ACTIVATION_FUNCTIONS = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}


class FeedForward(nn.Module):
    """Drop(act(x W_i)) W_o, then the expert or the gated experts, then the target adapter."""

    t5: T5Config
    pemt: PemtConfig
    in_encoder: bool

    @nn.compact
    def __call__(
        self,
        x_BLD: Array,
        prompt_states_BPD: Array | None,
        token_weights_BL: Array | None,
        prompt_weights_BP: Array | None = None,
        *,
        deterministic: bool,
    ) -> Array:
        """Return the sublayer's output z [B, L, D], before its residual dropout.

        Args:
          x_BLD: normalised input.
          prompt_states_BPD: encoder output at the prompt positions, read by the decoder's gates;
            the encoder's gates read this layer's own activation.
          token_weights_BL: 1 for tokens that the sparsity loss counts; None if it is not computed.
          prompt_weights_BP: 0 for left padding of a prompt; None if no prompt is padded.
          deterministic: whether to apply no dropout.
        """
        t5, pemt, dtype = self.t5, self.pemt, self.t5.compute_dtype
        hidden_BLF = None
        for i, name in enumerate(t5.mlp_activations):
            wi = "wi" if len(t5.mlp_activations) == 1 else f"wi_{i}"
            branch = Dense(t5.mlp_dim, ("embed", "mlp"), dtype, name=wi)(x_BLD)
            branch = ACTIVATION_FUNCTIONS[name](branch)
            hidden_BLF = branch if hidden_BLF is None else hidden_BLF * branch
        dropout = Dropout(t5.dropout_rate, t5.dropout_dims, deterministic=deterministic)
        hidden_BLF = dropout(hidden_BLF)
        hidden_BLF = with_logical_constraint(hidden_BLF, ("batch", "length", "mlp"))
        z_BLD = Dense(t5.emb_dim, ("mlp", "embed"), dtype, name="wo")(hidden_BLF)
        if pemt.source_expert:
            z_BLD += SourceExpert(
                pemt.expert_rank, t5.emb_dim, pemt.lora_b_init, dtype, name="expert"
            )(hidden_BLF)
        if pemt.num_experts:
            states, axis = hidden_BLF[:, : pemt.prompt_length], "mlp"
            if not self.in_encoder:
                assert prompt_states_BPD is not None
                states, axis = prompt_states_BPD, "embed"
            gate_BE = CorrelationGate(pemt.num_experts, axis, pemt.gate_temperature, name="gate")(
                states, prompt_weights_BP
            )
            mixture_BLD, channels_BLER, lora_b_ERD = ExpertMixture(
                pemt.num_experts, pemt.expert_rank, t5.emb_dim, dtype, name="experts"
            )(hidden_BLF, gate_BE)
            z_BLD += mixture_BLD
        if pemt.adapter_dim:
            z_BLD = TargetAdapter(pemt.adapter_dim, dtype, name="adapter")(z_BLD)
        if pemt.num_experts and self.is_mutable_collection("pemt"):
            self.put_variable("pemt", "gate", gate_BE)
            assert token_weights_BL is not None  # None in decoding alone, without this collection
            cosines_BLE = expert_cosines(z_BLD, channels_BLER, lora_b_ERD)
            tsl = task_sparsity_loss(cosines_BLE, gate_BE, token_weights_BL)
            self.put_variable("pemt", "tsl", tsl)
        return z_BLD
