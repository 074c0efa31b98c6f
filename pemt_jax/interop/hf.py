"""T5 as Hugging Face keeps it on disk: config.json and model.safetensors, in and out.

A base model is such a folder everywhere in this project.  Versions 1.0 (relu, tied embeddings)
and 1.1 (gated gelu, an output projection of its own; also LM-adapted, mT5 and FLAN) are read.  In
memory parameters carry T5X's names: a kernel is the transposed PyTorch weight, the relative
position table is [heads, buckets], everything else is equal.

Files on disk differ in what they repeat: `encoder.embed_tokens.weight`, its decoder twin and a tied
`lm_head.weight` may stand beside `shared.weight` or in its place, a wrapper's prefix may stand
before every name, and the first T5 checkpoints carry a cross-attention position table that no T5
code reads.  All of these are accepted.  Heads of other models (a classifier's) are left out.

transformers 5 writes `tie_word_embeddings: true` for every T5 and tells 1.0 from 1.1 by
`scale_decoder_outputs`; older versions write only the former.  Both are read.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from pemt_jax.config import T5Config
from pemt_jax.errors import PemtError, nearest
from pemt_jax.weights import load_weights, replacing, save_weights

# feed_forward_proj -> T5X's mlp_activations ("gelu" is the tanh approximation in both).
ACTIVATIONS = {
    "relu": ("relu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
}
EMBEDDING_COPIES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNREAD = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


class Entry(NamedTuple):
    """One parameter: its PyTorch name, our path, our shape, and whether PyTorch's is transposed."""

    hf_name: str
    path: str
    shape: tuple[int, ...]
    transposed: bool


def parameter_table(config: T5Config) -> Iterator[Entry]:
    """Every parameter of a T5 of this shape, once."""
    width, joined, hidden = config.emb_dim, config.num_heads * config.head_dim, config.mlp_dim
    inner = ["wi"] if len(config.mlp_activations) == 1 else ["wi_0", "wi_1"]
    yield Entry("shared.weight", "token_embedder/embedding", (config.vocab_size, width), False)
    for stack, num_layers, attentions in (
        ("encoder", config.num_encoder_layers, (("attention", "SelfAttention"),)),
        ("decoder", config.num_decoder_layers, (("self_attention", "SelfAttention"),
                                                ("encoder_decoder_attention", "EncDecAttention"))),
    ):
        yield Entry(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                    f"{stack}/relpos_bias/rel_embedding",
                    (config.num_heads, config.relpos_buckets), True)
        yield Entry(f"{stack}.final_layer_norm.weight", f"{stack}/{stack}_norm/scale",
                    (width,), False)
        for i in range(num_layers):
            for j, (ours, theirs) in enumerate(attentions):
                block, layer = f"{stack}.block.{i}.layer.{j}", f"{stack}/layers_{i}"
                norm = "cross_attention" if theirs == "EncDecAttention" else ours
                yield Entry(f"{block}.layer_norm.weight", f"{layer}/pre_{norm}_layer_norm/scale",
                            (width,), False)
                for letter, name in zip("qkv", ("query", "key", "value"), strict=True):
                    yield Entry(f"{block}.{theirs}.{letter}.weight",
                                f"{layer}/{ours}/{name}/kernel", (width, joined), True)
                yield Entry(f"{block}.{theirs}.o.weight", f"{layer}/{ours}/out/kernel",
                            (joined, width), True)
            block = f"{stack}.block.{i}.layer.{len(attentions)}"
            yield Entry(f"{block}.layer_norm.weight", f"{layer}/pre_mlp_layer_norm/scale",
                        (width,), False)
            for name in inner:
                yield Entry(f"{block}.DenseReluDense.{name}.weight", f"{layer}/mlp/{name}/kernel",
                            (width, hidden), True)
            yield Entry(f"{block}.DenseReluDense.wo.weight", f"{layer}/mlp/wo/kernel",
                        (hidden, width), True)
    if not config.logits_via_embedding:
        yield Entry("lm_head.weight", "decoder/logits_dense/kernel",
                    (width, config.vocab_size), True)


def from_hf_names(config: T5Config, tensors: Mapping[str, np.ndarray],
                  source: str = "the checkpoint") -> dict[str, np.ndarray]:
    """PyTorch names and layouts to T5X's, as contiguous float32.

    Args:
      config: the shape that the tensors must have.
      tensors: PyTorch name -> array.
      source: what to call the tensors in an error.

    Raises:
      PemtError: a tensor is missing, has another shape, or is a part of no T5.
    """
    tensors = _canonical(config, tensors, source)
    params = {}
    for entry in parameter_table(config):
        if entry.hf_name not in tensors:
            raise PemtError(f"Tensor {entry.hf_name!r} is missing in {source}"
                            f"{nearest(entry.hf_name, tensors)}.")
        array = np.asarray(tensors.pop(entry.hf_name))
        array = array.T if entry.transposed else array
        if array.shape != entry.shape:
            found, expected = ((s[::-1] if entry.transposed else s)
                               for s in (array.shape, entry.shape))
            raise PemtError(f"Tensor {entry.hf_name!r} in {source} has shape {list(found)}, "
                            f"expected {list(expected)} from its configuration.")
        params[entry.path] = np.asarray(array, np.float32, order="C")
    unknown = sorted(name for name in tensors if name.startswith(("encoder.", "decoder.")))
    if unknown:
        raise PemtError(f"{source} has {len(unknown)} tensors that its configuration does not "
                        f"account for, the first is {unknown[0]!r}.")
    return params


def to_hf_names(config: T5Config, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `from_hf_names`: T5X's flat names to PyTorch's, dtypes kept."""
    tensors = {}
    for entry in parameter_table(config):
        if entry.path not in params:
            raise PemtError(f"Parameter {entry.path!r} is missing{nearest(entry.path, params)}.")
        array = np.asarray(params[entry.path])
        if array.shape != entry.shape:
            raise PemtError(f"Parameter {entry.path!r} has shape {list(array.shape)}, expected "
                            f"{list(entry.shape)} from the configuration.")
        tensors[entry.hf_name] = array.T if entry.transposed else array
    return tensors


def load_hf(folder: str | os.PathLike) -> tuple[T5Config, dict[str, np.ndarray]]:
    """Read a Hugging Face T5 folder: its configuration and flat float32 parameters.

    Raises:
      PemtError: a file or tensor is missing or damaged, or does not fit config.json.
    """
    folder = Path(folder)
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise PemtError(f"There is no model folder {folder}, expected one with config.json and "
                        f"model.safetensors{nearest(folder.name, siblings)}.")
    config = read_config(folder / "config.json")
    tensors: dict[str, np.ndarray] = {}
    for file in _weight_files(folder):
        tensors.update(load_weights(file))
    return config, from_hf_names(config, tensors, source=str(folder))


def save_hf(folder: str | os.PathLike, config: T5Config, params: Mapping[str, np.ndarray],
            dtype: str = "bfloat16") -> None:
    """Write `params` (flat, T5X's names) as a folder that Hugging Face and `load_hf` read.

    Args:
      folder: made when missing; other files in it are left alone.
      config: the shape of the model.
      params: path -> array; entries that are not T5's (an expert's) are left out.
      dtype: "bfloat16" or "float32", how numbers are stored.
    """
    number = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}[dtype]
    folder = Path(folder)
    tensors = {name: array.astype(number) for name, array in to_hf_names(config, params).items()}
    save_weights(folder / "model.safetensors", tensors, {"format": "pt"})
    projection = {v: k for k, v in ACTIVATIONS.items()}[config.mlp_activations]
    description = {
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
        "feed_forward_proj": projection,
        "tie_word_embeddings": config.logits_via_embedding,
        "is_encoder_decoder": True,
        "use_cache": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
    }
    with replacing(folder / "config.json") as partial:
        partial.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_config(path: str | os.PathLike) -> T5Config:
    """Read a Hugging Face config.json of a T5."""
    path = Path(path)
    values = _read_json(path)
    model_type = values.get("model_type", "t5")
    if model_type not in ("t5", "mt5"):
        raise PemtError(f"{path} describes a model of type {model_type!r}, expected 't5' or 'mt5'.")

    def size(name: str, default: int | None = None) -> int:
        value = values.get(name, default)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise PemtError(f"{path} has {name} = {value!r}, expected a positive integer"
                            f"{nearest(name, values) if value is None else ''}.")
        return value

    projection = values.get("feed_forward_proj", "relu" if model_type == "t5" else "gated-gelu")
    if not isinstance(projection, str) or projection not in ACTIVATIONS:
        raise PemtError(f"{path} has feed_forward_proj = {projection!r}, expected one of "
                        f"{sorted(ACTIVATIONS)}.")
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
        logits_via_embedding=bool(values.get("scale_decoder_outputs",
                                             values.get("tie_word_embeddings",
                                                        model_type == "t5"))),
        dropout_rate=float(dropout_rate),
        relpos_buckets=size("relative_attention_num_buckets", 32),
        relpos_max_distance=size("relative_attention_max_distance", 128),
    )


def _canonical(config: T5Config, tensors: Mapping[str, np.ndarray], source: str) -> dict:
    """Drop a wrapper's prefix and copies of the embedding; keep one `shared.weight`."""
    tensors = dict(tensors)
    prefixes = {name[: name.index("encoder.block.0.")] for name in tensors
                if name == f"{name.partition('encoder.block.0.')[0]}encoder.block.0.layer.0."
                           "layer_norm.weight"}
    if len(prefixes) == 1 and (prefix := prefixes.pop()):
        tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
    tensors.pop(UNREAD, None)
    names = [*EMBEDDING_COPIES, *(["lm_head.weight"] if config.logits_via_embedding else [])]
    copies = [(name, tensors.pop(name)) for name in names if name in tensors]
    for name, copy in copies[1:]:
        if not np.array_equal(copy, copies[0][1]):
            raise PemtError(f"Tensors {copies[0][0]!r} and {name!r} in {source} differ, expected "
                            "equal ones because config.json ties them.")
    if copies:
        tensors["shared.weight"] = copies[0][1]
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the whole one, or the shards that the index names."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        found = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
        raise PemtError(f"Expected model.safetensors (or its index) in {folder}, found "
                        f"{', '.join(found) or 'no weight file'}.")
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise PemtError(f"{index} has no weight_map, expected tensor names and their files.")
    files = sorted(set(map(str, shards.values())))
    for file in files:
        if file in (".", "..") or "/" in file or "\\" in file:
            raise PemtError(f"{index} names the file {file!r}, expected one inside its own folder.")
    return [folder / file for file in files]


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
