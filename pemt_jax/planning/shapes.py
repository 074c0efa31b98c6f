"""The published T5 sizes by name, to plan for without a checkpoint."""

import dataclasses

from pemt_jax.common.errors import UsageError, nearest
from pemt_jax.config import T5Config

T5_1_1 = T5Config(mlp_activations=("gelu", "linear"), logits_via_embedding=False)


def _shape(like: T5Config, width: int, heads: int, head_dim: int, mlp: int, layers: int):
    return dataclasses.replace(
        like,
        emb_dim=width,
        num_heads=heads,
        head_dim=head_dim,
        mlp_dim=mlp,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
    )


SHAPES = {
    "small": _shape(T5Config(), 512, 8, 64, 2048, 6),
    "base": _shape(T5Config(), 768, 12, 64, 3072, 12),
    "large": _shape(T5Config(), 1024, 16, 64, 4096, 24),
    "3B": _shape(T5Config(), 1024, 32, 128, 16384, 24),
    "11B": _shape(T5Config(), 1024, 128, 128, 65536, 24),
    "1.1-small": _shape(T5_1_1, 512, 6, 64, 1024, 8),
    "1.1-base": _shape(T5_1_1, 768, 12, 64, 2048, 12),
    "1.1-large": _shape(T5_1_1, 1024, 16, 64, 2816, 24),
    "1.1-XL": _shape(T5_1_1, 2048, 32, 64, 5120, 24),
    "1.1-XXL": _shape(T5_1_1, 4096, 64, 64, 10240, 24),
}


def shape_named(name: str) -> T5Config:
    """Return the shape; UsageError with the nearest name when there is none."""
    if name not in SHAPES:
        raise UsageError(
            f"There is no T5 shape {name!r}, expected one of {', '.join(SHAPES)}"
            f"{nearest(name, SHAPES)}."
        )
    return SHAPES[name]
