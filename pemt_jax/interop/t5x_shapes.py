"""The configuration of a T5 from the shapes of its parameters under T5X's names.

A T5X checkpoint has no configuration file.  Two settings leave no trace in the shapes and take the
values of every public T5: the activation of a gated feed-forward is gelu, and the largest relative
distance is 128.
"""

import re
from collections.abc import Mapping

from pemt_jax.common.errors import PemtError, nearest
from pemt_jax.config import T5Config


def infer_config(shapes: Mapping[str, tuple[int, ...]], source: str = "the checkpoint") -> T5Config:
    """The T5 that has parameters of these shapes.

    Raises:
      PemtError: a parameter from which to tell is missing or has a strange shape.
    """

    def shape(name: str, rank: int = 2) -> tuple[int, ...]:
        if name not in shapes:
            raise PemtError(
                f"{source} is no T5 as T5X names it: expected a parameter {name!r}"
                f"{nearest(name, shapes)}."
            )
        if len(shapes[name]) != rank:
            raise PemtError(
                f"Parameter {name!r} in {source} has shape {list(shapes[name])}, "
                f"expected {rank} axes (scanned layers are not read)."
            )
        return shapes[name]

    def layers(stack: str) -> int:
        layer = re.compile(rf"{stack}/layers_(\d+)/")
        return len({match[1] for name in shapes if (match := layer.match(name))})

    vocab_size, emb_dim = shape("token_embedder/embedding")
    num_heads, buckets = shape("encoder/relpos_bias/rel_embedding")
    joined = shape("encoder/layers_0/attention/query/kernel")[1]
    if not num_heads or joined % num_heads:
        raise PemtError(
            f"{source} has attention kernels of width {joined} for {num_heads} heads, "
            "expected a multiple."
        )
    gated = "encoder/layers_0/mlp/wi_0/kernel" in shapes
    return T5Config(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=joined // num_heads,
        mlp_dim=shape(f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel")[1],
        num_encoder_layers=layers("encoder"),
        num_decoder_layers=layers("decoder"),
        mlp_activations=("gelu", "linear") if gated else ("relu",),
        logits_via_embedding="decoder/logits_dense/kernel" not in shapes,
        relpos_buckets=buckets,
    )
