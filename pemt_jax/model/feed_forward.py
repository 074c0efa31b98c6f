"""The feed-forward sublayer, the only part of a layer that the published PEMT changes.

It is T5's act(x W_i) W_o, then the trainable expert of stage 1 or the gated frozen experts of
stage 2 (experts.py), then the target adapter. Each layer stores its gate [B, E] and its sparsity
loss `tsl` [] in the collection "pemt" when that is mutable.
"""

import flax.linen as nn
import jax
from flax.linen.spmd import with_logical_constraint
from jax import Array

from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.model.experts import SublayerExperts, TargetAdapter
from pemt_jax.model.layers import Dense, Dropout, Vector

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
        gate_kernel_DE: Array | None = None,
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
          gate_kernel_DE: the stack's gate, where its layers share one.
          deterministic: whether to apply no dropout.
        """
        t5, pemt, dtype = self.t5, self.pemt, self.t5.compute_dtype
        sublayer = "encoder/mlp" if self.in_encoder else "decoder/mlp"
        experts = SublayerExperts(pemt, sublayer, dtype)
        on_input, on_output = experts.on(*t5.wi_names), experts.on("wo")
        # A shared gate reads states of the same width in every sublayer.
        before = on_input or (on_output and (not self.in_encoder or pemt.gate == "shared"))
        if pemt.num_experts and before:
            states = x_BLD[:, : pemt.prompt_length] if self.in_encoder else prompt_states_BPD
            assert states is not None
            experts.read_gate(states, "embed", prompt_weights_BP, gate_kernel_DE)
        hidden_BLF = None
        for activation, wi in zip(t5.mlp_activations, t5.wi_names, strict=True):
            axes = ("embed", "mlp")
            branch = Dense(t5.mlp_dim, axes, dtype, name=wi)(x_BLD)
            branch = ACTIVATION_FUNCTIONS[activation](experts.add(wi, x_BLD, branch, axes))
            hidden_BLF = branch if hidden_BLF is None else hidden_BLF * branch
        dropout = Dropout(t5.dropout_rate, t5.dropout_dims, deterministic=deterministic)
        assert hidden_BLF is not None
        if pemt.vectors == "ia3":
            hidden_BLF *= Vector("mlp", 1.0, dtype, name="scale")(t5.mlp_dim)
        hidden_BLF = dropout(hidden_BLF)
        hidden_BLF = with_logical_constraint(hidden_BLF, ("batch", "length", "mlp"))
        axes = ("mlp", "embed")
        z_BLD = Dense(t5.emb_dim, axes, dtype, name="wo")(hidden_BLF)
        if pemt.num_experts and on_output and not before:
            states = hidden_BLF[:, : pemt.prompt_length]
            experts.read_gate(states, "mlp", prompt_weights_BP, None)
        z_BLD = experts.add("wo", hidden_BLF, z_BLD, axes)
        if pemt.vectors == "bias":
            z_BLD += Vector("embed", 0.0, dtype, name="bias")(t5.emb_dim)
        if pemt.adapter_dim:
            z_BLD = TargetAdapter(pemt.adapter_dim, dtype, name="adapter")(z_BLD)
        experts.store(self, z_BLD, token_weights_BL)
        return z_BLD
