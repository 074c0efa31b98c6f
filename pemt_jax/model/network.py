"""The encoder-decoder: T5 with T5X's parameter names, and what PEMT adds.

Three places differ from T5, and only where a `PemtConfig` asks for them: the prompt precedes the
embedded text in the encoder, linear layers have experts (experts.py), and the feed-forward output
has a target adapter.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.model.layers import Embed, attend_where
from pemt_jax.model.prompts import SourcePrompts, TaskPrompt
from pemt_jax.model.stack import Stack


class Transformer(nn.Module):
    """Encoder-decoder with a prompt, from token ids to logits; 0 is padding and start token."""

    t5: T5Config
    pemt: PemtConfig

    def setup(self):
        t5, pemt = self.t5, self.pemt
        self.token_embedder = Embed(t5.vocab_size, t5.emb_dim, t5.compute_dtype)
        self.encoder = Stack(t5, pemt, in_encoder=True)
        self.decoder = Stack(t5, pemt, in_encoder=False)
        if pemt.prompt_length:
            product = pemt.prompt_mixing == "product"
            self.prompt = TaskPrompt(pemt.prompt_length, t5.emb_dim, product)
        if pemt.expert_names:
            rate = pemt.prompt_attention_dropout
            rate = t5.dropout_rate if rate is None else rate
            self.source_prompts = SourcePrompts(
                pemt.source_prompt_lengths, t5.emb_dim, rate, pemt.prompt_mixing
            )

    def task_prompt(
        self,
        text_BSD: Array | None = None,
        present_BS: Array | None = None,
        *,
        deterministic: bool = True,
    ) -> Array | None:
        """Return the encoder's prompt, mixed with source prompts if any; or None.

        It is [P, D], or [B, P, D] where the mixing depends on the embedded text.
        """
        if not self.pemt.prompt_length:
            return None
        prompt_PD = self.prompt()
        if not self.pemt.expert_names:
            return prompt_PD
        return self.source_prompts(prompt_PD, text_BSD, present_BS, deterministic=deterministic)

    def encode(
        self,
        encoder_input_tokens: Array,
        row_weights_B: Array,
        prompt_weights_BP: Array | None = None,
        *,
        enable_dropout: bool = False,
    ) -> Array:
        """Return the encoder's output [B, P+S, D], of which the first P positions are the prompt.

        Args:
          encoder_input_tokens: [B, S] token ids, padded with 0.
          row_weights_B: 0 for rows that only fill the batch.
          prompt_weights_BP: None, or 0 for padding, on the left to keep the distances to the text.
          enable_dropout: whether to apply dropout.
        """
        deterministic = not enable_dropout
        x_BSD = self.token_embedder(encoder_input_tokens)
        prompt = self.task_prompt(x_BSD, encoder_input_tokens > 0, deterministic=deterministic)
        if prompt is not None:
            prompt = prompt.astype(x_BSD.dtype)
            rows = (x_BSD.shape[0], *prompt.shape[-2:])
            prompt_BPD = jnp.broadcast_to(prompt[None] if prompt.ndim == 2 else prompt, rows)
            x_BSD = jnp.concatenate([prompt_BPD, x_BSD], axis=1)
        present_BM = self._present(encoder_input_tokens, prompt_weights_BP)
        weights_BM = self._token_weights(present_BM, row_weights_B, prompt_weights_BP)
        bias = attend_where(present_BM)[:, None, None, :]
        return self.encoder(
            x_BSD,
            bias,
            token_weights_BL=weights_BM,
            prompt_weights_BP=prompt_weights_BP,
            deterministic=deterministic,
        )

    def decode(
        self,
        encoded_BMD: Array,
        encoder_input_tokens: Array,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array,
        row_weights_B: Array,
        prompt_weights_BP: Array | None = None,
        *,
        enable_dropout: bool = False,
        decode: bool = False,
        max_decode_length: int | None = None,
    ) -> Array:
        """Return logits [B, T, V].

        Args:
          encoded_BMD: output of `encode`.
          encoder_input_tokens: [B, S], for the mask.
          decoder_input_tokens: [B, T], targets shifted right; T is 1 once the cache exists.
          decoder_target_tokens: [B, T], for the padding mask; ignored with `decode`.
          row_weights_B, prompt_weights_BP, enable_dropout: as in `encode`.
          decode: whether to use the cache.
          max_decode_length: length of the cache.
        """
        length = max_decode_length if decode else decoder_input_tokens.shape[1]
        assert length is not None  # the length of the cache is given where it is used
        causal_11TT = jnp.asarray(np.tril(np.ones((length, length), bool)))[None, None]
        weights_BT = None
        if not decode:
            present_BT = decoder_target_tokens > 0
            weights_BT = self._token_weights(present_BT, row_weights_B)
            if not self.pemt.decoder_attends_padding:
                causal_11TT = causal_11TT & present_BT[:, None, None, :]
        present_BM = self._present(encoder_input_tokens, prompt_weights_BP)
        cross_bias = attend_where(present_BM)[:, None, None, :]
        y = self.decoder(
            self.token_embedder(decoder_input_tokens),
            attend_where(causal_11TT),
            encoded_BMD,
            cross_bias,
            weights_BT,
            prompt_weights_BP,
            deterministic=not enable_dropout,
            decode=decode,
        )
        return self.token_embedder.attend(y) if self.t5.logits_via_embedding else y

    def __call__(
        self,
        encoder_input_tokens: Array,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array,
        row_weights_B: Array,
        prompt_weights_BP: Array | None = None,
        *,
        enable_dropout: bool = False,
        decode: bool = False,
        max_decode_length: int | None = None,
    ) -> Array:
        """Return logits [B, T, V]; arguments as in `encode` and `decode`."""
        encoded_BMD = self.encode(
            encoder_input_tokens, row_weights_B, prompt_weights_BP, enable_dropout=enable_dropout
        )
        return self.decode(
            encoded_BMD,
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            row_weights_B,
            prompt_weights_BP,
            enable_dropout=enable_dropout,
            decode=decode,
            max_decode_length=max_decode_length,
        )

    def _present(
        self, encoder_input_tokens: Array, prompt_weights_BP: Array | None = None
    ) -> Array:
        """Return [B, P+S]: which encoder positions hold a token of the prompt or the text."""
        if prompt_weights_BP is not None:
            return jnp.concatenate([prompt_weights_BP > 0, encoder_input_tokens > 0], axis=1)
        prompt = ((0, 0), (self.pemt.prompt_length, 0))
        return jnp.pad(encoder_input_tokens > 0, prompt, constant_values=True)

    def _token_weights(
        self, present_BL: Array, row_weights_B: Array, prompt_weights_BP: Array | None = None
    ) -> Array:
        """Return [B, L]: 1 for tokens that the sparsity loss counts; 0 for padding of a prompt."""
        counted = jnp.ones_like(present_BL) if self.pemt.tsl_counts_padding else present_BL
        if prompt_weights_BP is not None:
            counted = counted.at[:, : self.pemt.prompt_length].set(prompt_weights_BP > 0)
        return counted.astype(jnp.float32) * (row_weights_B > 0).astype(jnp.float32)[:, None]
