"""The parameters of a T5 under PyTorch's names and under T5X's, which are ours.

A kernel is the transposed PyTorch weight, the relative position table is [heads, buckets],
everything else is equal.

Files on disk differ in what they repeat: `encoder.embed_tokens.weight`, its decoder twin and a tied
`lm_head.weight` may stand beside `shared.weight` or in its place, a wrapper's prefix may stand
before every name, and the first T5 checkpoints carry a cross-attention position table that no T5
code reads.  All of these are accepted.  Heads of other models (a classifier's) are left out.
umT5 has a relative position table in each layer.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from pemt_jax.common.errors import PemtError, nearest
from pemt_jax.common.lazy_array import LazyArray
from pemt_jax.config import T5Config

FLOATS = {np.dtype(kind) for kind in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)}
EMBEDDING_COPIES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
HEAD = "lm_head.weight"
ROWS = 4096  # compared at a time
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
        (
            "decoder",
            config.num_decoder_layers,
            (("self_attention", "SelfAttention"), ("encoder_decoder_attention", "EncDecAttention")),
        ),
    ):
        for i in range(num_layers if config.relpos_per_layer else 1):
            place = f"{stack}/layers_{i}" if config.relpos_per_layer else stack
            yield Entry(
                f"{stack}.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight",
                f"{place}/relpos_bias/rel_embedding",
                (config.num_heads, config.relpos_buckets),
                True,
            )
        yield Entry(
            f"{stack}.final_layer_norm.weight", f"{stack}/{stack}_norm/scale", (width,), False
        )
        for i in range(num_layers):
            for j, (ours, theirs) in enumerate(attentions):
                block, layer = f"{stack}.block.{i}.layer.{j}", f"{stack}/layers_{i}"
                norm = "cross_attention" if theirs == "EncDecAttention" else ours
                yield Entry(
                    f"{block}.layer_norm.weight",
                    f"{layer}/pre_{norm}_layer_norm/scale",
                    (width,),
                    False,
                )
                for letter, name in zip("qkv", ("query", "key", "value"), strict=True):
                    yield Entry(
                        f"{block}.{theirs}.{letter}.weight",
                        f"{layer}/{ours}/{name}/kernel",
                        (width, joined),
                        True,
                    )
                yield Entry(
                    f"{block}.{theirs}.o.weight",
                    f"{layer}/{ours}/out/kernel",
                    (joined, width),
                    True,
                )
            block = f"{stack}.block.{i}.layer.{len(attentions)}"
            yield Entry(
                f"{block}.layer_norm.weight", f"{layer}/pre_mlp_layer_norm/scale", (width,), False
            )
            for name in inner:
                yield Entry(
                    f"{block}.DenseReluDense.{name}.weight",
                    f"{layer}/mlp/{name}/kernel",
                    (width, hidden),
                    True,
                )
            yield Entry(
                f"{block}.DenseReluDense.wo.weight", f"{layer}/mlp/wo/kernel", (hidden, width), True
            )
    if not config.logits_via_embedding:
        yield Entry(HEAD, "decoder/logits_dense/kernel", (width, config.vocab_size), True)


def from_hf_names(
    config: T5Config, tensors: Mapping[str, np.ndarray], source: str = "the checkpoint"
) -> dict[str, np.ndarray]:
    """PyTorch names and layouts to T5X's, as contiguous float32.

    Args, Raises: see `rename`.
    """
    return {
        path: np.asarray(array, np.float32, order="C")
        for path, array in rename(config, tensors, source).items()
    }


def rename(
    config: T5Config, tensors: Mapping[str, np.ndarray | LazyArray], source: str = "the checkpoint"
) -> dict[str, np.ndarray | LazyArray]:
    """PyTorch names and layouts to T5X's, each array in its dtype and unread if it is lazy.

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
            raise PemtError(
                f"Tensor {entry.hf_name!r} is missing in {source}{nearest(entry.hf_name, tensors)}."
            )
        array = tensors.pop(entry.hf_name)
        if array.dtype not in FLOATS:
            raise PemtError(
                f"Tensor {entry.hf_name!r} in {source} is of {array.dtype}, expected "
                "floating-point numbers."
            )
        array = array.T if entry.transposed else array
        if array.shape != entry.shape:
            found, expected = (
                (s[::-1] if entry.transposed else s) for s in (array.shape, entry.shape)
            )
            raise PemtError(
                f"Tensor {entry.hf_name!r} in {source} has shape {list(found)}, "
                f"expected {list(expected)} from its configuration."
            )
        params[entry.path] = array
    unknown = sorted(name for name in tensors if name.startswith(("encoder.", "decoder.")))
    if unknown:
        raise PemtError(
            f"{source} has {len(unknown)} tensors that its configuration does not "
            f"account for, the first is {unknown[0]!r}."
        )
    return params


def to_hf_names(
    config: T5Config, params: Mapping[str, np.ndarray | LazyArray]
) -> dict[str, np.ndarray | LazyArray]:
    """The inverse of `rename`: T5X's flat names to PyTorch's, dtypes kept, lazy ones unread."""
    tensors = {}
    for entry in parameter_table(config):
        if entry.path not in params:
            raise PemtError(f"Parameter {entry.path!r} is missing{nearest(entry.path, params)}.")
        array = params[entry.path]
        if array.shape != entry.shape:
            raise PemtError(
                f"Parameter {entry.path!r} has shape {list(array.shape)}, expected "
                f"{list(entry.shape)} from the configuration."
            )
        tensors[entry.hf_name] = array.T if entry.transposed else array
    return tensors


def _canonical(
    config: T5Config, tensors: Mapping[str, np.ndarray | LazyArray], source: str
) -> dict:
    """Drop a wrapper's prefix and copies of the embedding; keep one `shared.weight`."""
    tensors = _unwrapped(tensors)
    tensors.pop(UNREAD, None)
    names = [*EMBEDDING_COPIES, *([HEAD] if config.logits_via_embedding else [])]
    copies = [(name, tensors.pop(name)) for name in names if name in tensors]
    expected = copies and len(copies) > 1 and _values(copies[0][1])
    for name, copy in copies[1:]:
        if _values(copy) != expected:
            raise PemtError(
                f"Tensors {copies[0][0]!r} and {name!r} in {source} differ, expected "
                "equal ones because config.json ties them."
            )
    if copies:
        tensors["shared.weight"] = copies[0][1]
    return tensors


def has_own_head(tensors: Mapping[str, np.ndarray | LazyArray]) -> bool:
    """Whether there is an `lm_head.weight`, and no embedding that is equal to it."""
    tensors = _unwrapped(tensors)
    embeddings = [tensors[name] for name in EMBEDDING_COPIES if name in tensors]
    if HEAD not in tensors:
        return False
    head = tensors[HEAD]
    if not embeddings or head.shape != (embedding := embeddings[0]).shape:
        return True
    blocks = (slice(start, start + ROWS) for start in range(0, head.shape[0], ROWS))
    return any(
        not np.array_equal(np.asarray(head[rows]), np.asarray(embedding[rows])) for rows in blocks
    )


def _unwrapped(tensors: Mapping[str, np.ndarray | LazyArray]) -> dict:
    """The tensors without a wrapper's prefix before every name."""
    prefixes = {
        name[: name.index("encoder.block.0.")]
        for name in tensors
        if name == f"{name.partition('encoder.block.0.')[0]}encoder.block.0.layer.0."
        "layer_norm.weight"
    }
    if len(prefixes) == 1 and (prefix := prefixes.pop()):
        return {name.removeprefix(prefix): array for name, array in tensors.items()}
    return dict(tensors)


def _values(array: np.ndarray | LazyArray) -> tuple:
    """A small value, equal for equal arrays: two large ones are never in memory together."""
    digest = hashlib.sha256()
    for row in np.asarray(array):  # row by row, so that a cast takes no memory either
        digest.update(np.asarray(row, np.float32, order="C"))
    return array.shape, digest.digest()
