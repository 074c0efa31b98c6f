"""T5 as Hugging Face keeps it on disk: config.json and weight files, in and out.

Versions 1.0 (relu, tied embeddings) and 1.1 (gated gelu, an output projection of its own; also
LM-adapted, mT5 and FLAN) are read, from safetensors or PyTorch's own files, whole or in shards, and
written as safetensors.  `hf_names` says which tensor is which parameter.

transformers 5 writes `tie_word_embeddings: true` for every T5 and tells 1.0 from 1.1 by
`scale_decoder_outputs`; older versions write only the former.  Both are read, both are written.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.common.hashing import verify_checksums
from pemt_jax.common.lazy_array import LazyArray
from pemt_jax.common.safetensors_file import open_weights
from pemt_jax.common.storage import replacing
from pemt_jax.common.weights import nbytes, save_weights
from pemt_jax.config import T5Config
from pemt_jax.interop.hf_names import rename, to_hf_names
from pemt_jax.interop.torch_files import load_torch_file

# feed_forward_proj -> T5X's mlp_activations ("gelu" is the tanh approximation in both).
ACTIVATIONS = {
    "relu": ("relu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
}
CONFIG, WHOLE, TORCH = "config.json", "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"  # after the name of the file that the shards are of
SHARD_BYTES = 5 * 10**9  # a larger model is written in shards


def load_hf(folder: str | os.PathLike) -> tuple[T5Config, dict[str, np.ndarray]]:
    """Read a Hugging Face T5 folder: its configuration and flat float32 parameters.

    Raises:
      PemtError: a file or tensor is missing or damaged, or does not fit config.json.
    """
    verify_checksums(Path(folder))
    config, params = open_hf(folder)
    return config, {
        path: np.asarray(array, np.float32, order="C") for path, array in params.items()
    }


def open_hf(folder: str | os.PathLike) -> tuple[T5Config, dict[str, LazyArray | np.ndarray]]:
    """As `load_hf`, but parameters in their stored dtypes, each read when it is asked for.

    SHA256SUMS is not looked at: that would read everything.
    """
    folder = storage.path(folder)
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise PemtError(
            f"There is no model folder {folder}, expected one with config.json and "
            f"model.safetensors{nearest(folder.name, siblings)}."
        )
    config = read_config(folder / CONFIG)
    tensors: dict[str, LazyArray | np.ndarray] = {}
    for file in _weight_files(folder):
        tensors |= open_weights(file) if file.suffix == ".safetensors" else load_torch_file(file)
    return config, rename(config, tensors, source=str(folder))


def save_hf(
    folder: str | os.PathLike,
    config: T5Config,
    params: Mapping[str, np.ndarray | LazyArray],
    dtype: str | None = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `params` (flat, T5X's names) as a folder that Hugging Face and `load_hf` read.

    Args:
      folder: made when missing; other files in it are left alone.
      config: the shape of the model.
      params: path -> array; entries that are not T5's (an expert's) are left out.
      dtype: "bfloat16" or "float32", how numbers are stored; None as they are.
      shard_bytes: most bytes of tensors in one file.
    """
    folder = Path(folder)
    tensors = to_hf_names(config, params)
    if dtype is not None:
        tensors = {name: array.astype(np.dtype(dtype)) for name, array in tensors.items()}
    shards: list[dict[str, np.ndarray | LazyArray]] = [{}]
    size = 0
    for name, array in tensors.items():
        if shards[-1] and size + nbytes(array) > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += nbytes(array)
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else WHOLE
        save_weights(folder / file, shard, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(map(nbytes, tensors.values()))
        _write_json(
            folder / (WHOLE + INDEX), {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
        (folder / WHOLE).unlink(missing_ok=True)  # it would be read instead
    stored = str(np.dtype(tensors["shared.weight"].dtype))
    _write_json(folder / CONFIG, _describe(config, stored))


def check_savable(config: T5Config) -> None:
    """Raise UsageError for a shape that config.json cannot describe."""
    if config.mlp_activations not in ACTIVATIONS.values():
        known = ", ".join(map(str, ACTIVATIONS.values()))
        raise UsageError(
            f"A T5 with mlp_activations {config.mlp_activations} cannot be saved in Hugging Face's "
            f"format, expected one of {known}."
        )


def is_hf(folder: str | os.PathLike) -> bool:
    """Whether `folder` looks like a Hugging Face model, whole or not."""
    folder = storage.path(folder)
    return folder.is_dir() and ((folder / CONFIG).is_file() or bool(_found(folder)))


def read_config(path: str | os.PathLike) -> T5Config:
    """Read a Hugging Face config.json of a T5."""
    path = storage.path(path)
    values = _read_json(path)
    model_type = values.get("model_type", "t5")
    if model_type not in ("t5", "mt5"):
        raise PemtError(f"{path} describes a model of type {model_type!r}, expected 't5' or 'mt5'.")

    def size(name: str, default: int | None = None) -> int:
        value = values.get(name, default)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise PemtError(
                f"{path} has {name} = {value!r}, expected a positive integer"
                f"{nearest(name, values) if value is None else ''}."
            )
        return value

    projection = values.get("feed_forward_proj", "relu" if model_type == "t5" else "gated-gelu")
    if not isinstance(projection, str) or projection not in ACTIVATIONS:
        raise PemtError(
            f"{path} has feed_forward_proj = {projection!r}, expected one of {sorted(ACTIVATIONS)}."
        )
    epsilon = values.get("layer_norm_epsilon", 1e-6)
    if epsilon != 1e-6:
        raise PemtError(f"{path} has layer_norm_epsilon = {epsilon!r}, expected T5's 1e-06.")
    dropout_rate = values.get("dropout_rate", 0.1)
    if type(dropout_rate) not in (int, float):
        raise PemtError(f"{path} has dropout_rate = {dropout_rate!r}, expected a number.")
    return T5Config(
        vocab_size=size("vocab_size"),
        emb_dim=size("d_model"),
        num_heads=size("num_heads"),
        head_dim=size("d_kv", 64),
        mlp_dim=size("d_ff"),
        num_encoder_layers=size("num_layers"),
        num_decoder_layers=size("num_decoder_layers", size("num_layers")),
        mlp_activations=ACTIVATIONS[projection],
        logits_via_embedding=bool(
            values.get(
                "scale_decoder_outputs", values.get("tie_word_embeddings", model_type == "t5")
            )
        ),
        dropout_rate=float(dropout_rate),
        relpos_buckets=size("relative_attention_num_buckets", 32),
        relpos_max_distance=size("relative_attention_max_distance", 128),
    )


def _describe(config: T5Config, dtype: str) -> dict:
    """The content of config.json."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
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
        "feed_forward_proj": {v: k for k, v in ACTIVATIONS.items()}[config.mlp_activations],
        "tie_word_embeddings": config.logits_via_embedding,
        "scale_decoder_outputs": config.logits_via_embedding,
        "is_encoder_decoder": True,
        "use_cache": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
    }


def _weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder: a whole one, or the shards that an index names."""
    for name in (WHOLE, TORCH):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / (name + INDEX)).is_file():
            return _shards(folder / (name + INDEX), os.path.splitext(name)[1])
    raise PemtError(
        f"Expected {WHOLE} or {TORCH} (or an index of shards) in {folder}, found "
        f"{', '.join(_found(folder)) or 'no weight file'}."
    )


def _shards(index: Path, suffix: str) -> list[Path]:
    """The files that an index names, which must be in its folder."""
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise PemtError(f"{index} has no weight_map, expected tensor names and their files.")
    files = sorted(set(map(str, shards.values())))
    for file in files:
        if "/" in file or "\\" in file or not file.endswith(suffix):
            raise PemtError(
                f"{index} names the file {file!r}, expected a {suffix} file inside its own folder."
            )
    return [index.parent / file for file in files]


def _found(folder: Path) -> list[str]:
    """Names of what could be weight files."""
    kinds = (".safetensors", ".bin", ".h5", ".msgpack")
    return sorted(p.name for p in folder.iterdir() if p.suffix in kinds)


def _write_json(path: Path, values: dict) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict:
    """The object in a JSON file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PemtError(f"There is no file {path}.") from error
    except (OSError, ValueError) as error:
        raise PemtError(f"Expected a JSON file at {path}, but {error}.") from error
    if not isinstance(values, dict):
        raise PemtError(f"Expected a JSON object at {path}, found a {type(values).__name__}.")
    return values
