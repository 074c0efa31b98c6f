"""The configuration of a T5 from the shapes of its parameters under T5X's names.

A T5X checkpoint has no configuration file.  Three settings leave no trace in the shapes and take
the values of every T5 that T5X has: the activation of a gated feed-forward is gelu, the largest
relative distance is 128, and logits are scaled where they share the embedding.
"""

import re
from collections.abc import Mapping

from pemt_jax.common.errors import PemtError, UsageError, nearest
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

    if any(name.startswith("encoder/encoder/") for name in shapes):
        raise PemtError(
            f"{source} has the layers of a stack in one array each (scanned, as umT5's checkpoints "
            "are), expected encoder/layers_0, ...; convert the Hugging Face folder of the model."
        )
    for name, sizes in shapes.items():
        if 0 in sizes:
            raise PemtError(
                f"Parameter {name!r} in {source} has shape {list(sizes)}, expected no axis of 0."
            )
    vocab_size, emb_dim = shape("token_embedder/embedding")
    per_layer = "encoder/layers_0/relpos_bias/rel_embedding" in shapes
    num_heads, buckets = shape(
        f"encoder/{'layers_0/' if per_layer else ''}relpos_bias/rel_embedding"
    )
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
        relpos_per_layer=per_layer,
    )


def check_savable(config: T5Config) -> None:
    """Raise UsageError for a shape that could not be told from a checkpoint."""
    for field, expected in (
        ("mlp_activations", [("relu",), ("gelu", "linear")]),
        ("relpos_max_distance", [128]),
        ("scale_decoder_outputs", [None]),
    ):
        if (value := getattr(config, field)) not in expected:
            raise UsageError(
                f"A T5 with {field} {value} cannot be saved as a T5X checkpoint, which has no "
                f"configuration, expected {' or '.join(map(str, expected))}."
            )
