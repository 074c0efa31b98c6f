"""The config.json of a Hugging Face T5, as transformers 4 and 5 compute what it says.

Read are model types t5 (versions 1.0 and 1.1, LM-adapted, FLAN, UL2, ByT5), mt5 and umt5.

Whether the logits share the embedding, and whether they are of the decoder's output / sqrt(D), are
two questions since transformers 5, which writes `tie_word_embeddings: true` for every model:

    written by             shared                             scaled
    4                      tie_word_embeddings                where they are shared
    5, t5 and umt5         unless there is another lm_head    scale_decoder_outputs
    5, mt5                 unless there is another lm_head    never

`tie_word_embeddings: false` means neither in both, unless scale_decoder_outputs is true. The
activation is that of `dense_act_fn` and `is_gated_act` where they are there, and of
`feed_forward_proj` elsewhere. Written is what transformers 5 writes; version 4 reads the same where
the two answers are the same.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, nearest, shortened
from pemt_jax.common.user_input.files import read_object
from pemt_jax.config import T5Config

# dense_act_fn -> T5X's name; transformers has "gelu_new" for "gated-gelu": the tanh approximation.
FUNCTIONS = {"relu": "relu", "gelu_new": "gelu", "silu": "silu", "swish": "silu"}
PROJECTIONS = {
    "relu": ("relu",),
    "gelu_new": ("gelu",),
    "silu": ("silu",),
    "gated-relu": ("relu", "linear"),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
}
CLASSES = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}
OTHERS = {
    "longt5": "LongT5",
    "switch_transformers": "Switch Transformers model",
    "pop2piano": "Pop2Piano model",
    "t5gemma": "T5Gemma model",
    "t5gemma2": "T5Gemma 2 model",
}


def read_config(
    path: str | os.PathLike, has_own_head: Callable[[], bool] = lambda: False
) -> T5Config:
    """Read a Hugging Face config.json of a T5.

    Args:
      path: the file.
      has_own_head: whether the weights have an lm_head that is not the embedding; asked where the
        file does not say.

    Raises:
      PemtError: the file is no config.json, or of a model that is no T5.
    """
    path = storage.path(path)
    values = read_object(path, "the config.json of a T5")
    model_type = values.get("model_type", "t5")
    if not isinstance(model_type, str) or model_type not in CLASSES:
        raise PemtError(
            f"{path} describes a {OTHERS.get(str(model_type), 'model')} (model_type "
            f"{model_type!r}), which is unsupported, expected a T5, ByT5, mT5 or umT5 (model_type "
            "'t5', 'mt5' or 'umt5')."
        )

    def size(name: str, default: int | None = None) -> int:
        value = values.get(name, default)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise PemtError(
                f"{path} has {name} = {value!r}, expected a positive integer"
                f"{nearest(name, values) if value is None else ''}."
            )
        return value

    epsilon = values.get("layer_norm_epsilon", 1e-6)
    if epsilon != 1e-6:
        raise PemtError(f"{path} has layer_norm_epsilon = {epsilon!r}, expected T5's 1e-06.")
    dropout_rate = values.get("dropout_rate", 0.1)
    if type(dropout_rate) not in (int, float) or not 0 <= dropout_rate < 1:
        raise PemtError(f"{path} has dropout_rate = {shortened(dropout_rate)}, expected [0, 1).")
    for name in ("tie_word_embeddings", "scale_decoder_outputs", "is_gated_act"):
        if not isinstance(values.get(name), bool | None):
            raise PemtError(
                f"{path} has {name} = {shortened(values[name])}, expected true or false."
            )
    tied, scaled = _logits(path, values, model_type, has_own_head)
    return T5Config(
        vocab_size=size("vocab_size"),
        emb_dim=size("d_model"),
        num_heads=size("num_heads"),
        head_dim=size("d_kv", 64),
        mlp_dim=size("d_ff"),
        num_encoder_layers=size("num_layers"),
        num_decoder_layers=size("num_decoder_layers", size("num_layers")),
        mlp_activations=_activations(path, values, model_type),
        logits_via_embedding=tied,
        dropout_rate=float(dropout_rate),
        relpos_buckets=size("relative_attention_num_buckets", 32),
        relpos_max_distance=size("relative_attention_max_distance", 128),
        relpos_per_layer=model_type == "umt5",
        scale_decoder_outputs=scaled,
    )


def _logits(
    path: Path, values: Mapping, model_type: str, has_own_head: Callable[[], bool]
) -> tuple[bool, bool]:
    """Whether the logits share the embedding, and whether they are scaled."""
    if not values.get("tie_word_embeddings", model_type != "mt5"):
        return False, bool(values.get("scale_decoder_outputs")) and model_type != "mt5"
    if model_type != "mt5":
        scaled = values.get("scale_decoder_outputs")
        # Where version 5 has not written its answer, another lm_head contradicts the file.
        return (True, True) if scaled is None else (not has_own_head(), bool(scaled))
    version = str(values.get("transformers_version", "")).partition(".")[0]
    if not version.isdecimal():
        raise PemtError(
            f"{path} has tie_word_embeddings = true for model_type 'mt5' and no "
            "transformers_version, expected one, for version 4 scales its logits and 5 does not."
        )
    return (True, True) if int(version) < 5 else (not has_own_head(), False)


def _activations(path: Path, values: Mapping, model_type: str) -> tuple[str, ...]:
    """T5X's mlp_activations."""
    projection = values.get("feed_forward_proj", "relu" if model_type == "t5" else "gated-gelu")
    first, _, last = str(projection).rpartition("-")
    function = values.get("dense_act_fn", "gelu_new" if projection == "gated-gelu" else last)
    gated = values.get("is_gated_act", first == "gated")
    if first not in ("", "gated") or str(function) not in FUNCTIONS:
        raise PemtError(
            f"{path} has feed_forward_proj = {projection!r} with activation {function!r}, expected "
            f"one of {sorted(PROJECTIONS)}."
        )
    return (FUNCTIONS[function], "linear") if gated else (FUNCTIONS[function],)


def check_savable(config: T5Config) -> None:
    """Raise UsageError for a shape that config.json cannot describe."""
    if config.mlp_activations not in PROJECTIONS.values():
        known = ", ".join(map(str, PROJECTIONS.values()))
        raise UsageError(
            f"A T5 with mlp_activations {config.mlp_activations} cannot be saved in Hugging Face's "
            f"format, expected one of {known}."
        )


def describe(config: T5Config, dtype: str) -> dict[str, Any]:
    """The content of config.json; `dtype` is that of the weights."""
    model_type = "umt5" if config.relpos_per_layer else "t5"
    projection = {v: k for k, v in PROJECTIONS.items()}[config.mlp_activations]
    return {
        "architectures": [f"{CLASSES[model_type]}ForConditionalGeneration"],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relpos_buckets,
        "relative_attention_max_distance": config.relpos_max_distance,
        "dropout_rate": config.dropout_rate,
        "layer_norm_epsilon": 1e-6,
        "initializer_factor": 1.0,
        "feed_forward_proj": projection,
        "tie_word_embeddings": config.logits_via_embedding,
        "scale_decoder_outputs": config.scales_decoder_outputs,
        "is_encoder_decoder": True,
        "use_cache": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
    }
