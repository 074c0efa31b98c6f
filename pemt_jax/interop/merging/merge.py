"""An expert folded into its base, as a Hugging Face folder that any T5 server can run.

    W' = W + A B                        each linear layer that the expert adapts, in float32
    embedding rows N, ..., N+P-1        the prompt, N being the first id that no token has

The ids N, ..., N+P-1 before those of a text are then what expert and prompt are in stage 1: the
logits are equal. The output projection is always a matrix of its own, E / sqrt(D) where the base
shares the embedding E: a prompt's rows start as those of words, and in a shared matrix they could
be predicted in place of these words. Rows that the base has keep their logits; those that are new
have the logit of padding, which is never a target.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError
from pemt_jax.common.flat_config import choose
from pemt_jax.common.hashing import fingerprint, write_checksums
from pemt_jax.common.lazy_array import LazyArray
from pemt_jax.common.storage import check_free, new_folder, replacing
from pemt_jax.common.writing.contents import check_outside
from pemt_jax.config import T5Config
from pemt_jax.interop.base import check_vocabulary, open_base, verify_base
from pemt_jax.interop.convert import DTYPES
from pemt_jax.interop.hf import save_hf
from pemt_jax.interop.hf_config import check_savable
from pemt_jax.interop.import_expert import open_vocabulary
from pemt_jax.interop.merging.prompt_tokens import add_tokens, copy_files, next_token, prompt_token
from pemt_jax.library.expert import Expert, check_fits, load_expert
from pemt_jax.library.hub_names import TOKENIZER, find, local_folder
from pemt_jax.library.linears import Pair

EMBEDDING, LOGITS = "token_embedder/embedding", "decoder/logits_dense/kernel"
PADDING = 0
ROW_MULTIPLE = 128  # T5's embeddings are padded to it
TOKENIZERS = ("spiece.model", "tokenizer.json")


@dataclasses.dataclass(frozen=True)
class Merged:
    """What goes before a text.

    Attributes:
      tokens: id by token, in order.
      has_tokenizer: whether the folder has a tokenizer that knows them.
    """

    tokens: Mapping[str, int]
    has_tokenizer: bool

    @property
    def prefix(self) -> str:
        """The text to put before a text."""
        return "".join(self.tokens) + " "


def merge_expert(
    library: str | os.PathLike,
    name: str,
    base: str | os.PathLike,
    folder: str | os.PathLike,
    dtype: str | None = None,
) -> Merged:
    """Write a base with an expert of the library folded in as the new Hugging Face folder `folder`.

    Args:
      library: has the expert.
      name: of the expert.
      base: any path of a pretrained T5; the files of its tokenizer are those beside it.
      folder: gets model, tokenizer, README.md and SHA256SUMS.
      dtype: "float32" or "bfloat16"; None for each array's own. bfloat16 rounds W + A B, and with
        it some of the expert, away.

    Raises:
      UsageError: no such expert or dtype, `folder` exists, the base cannot be written.
      PemtError: something is damaged, or the expert depends on another base.
    """
    choose("--dtype", DTYPES[0] if dtype is None else dtype, DTYPES)
    check_free(storage.path(folder))
    check_outside("--to", storage.path(folder))
    expert = load_expert(library, name)
    verify_base(base)
    t5, params = open_base(base)
    check_savable(t5)
    if (found := fingerprint(params)) != expert.base_fingerprint:
        raise PemtError(
            f"Expert {name!r} was trained on a base with fingerprint "
            f"{expert.base_fingerprint[:12]}, found {found[:12]} at {base}."
        )
    check_fits(name, expert.prompt, expert.lora, t5)
    place = storage.path(local_folder(base))
    has_tokenizer = any((place / file).is_file() for file in TOKENIZERS)
    first = t5.vocab_size
    if has_tokenizer:
        vocabulary = open_vocabulary(base)
        check_vocabulary(vocabulary, t5, os.fspath(base))
        first = next_token(place, vocabulary.vocab_size)
    tokens = {prompt_token(i): first + i for i in range(len(expert.prompt))}
    merged = Merged(tokens, has_tokenizer)
    shape, folded = fold(t5, params, expert.prompt, expert.lora, first)
    if dtype is None:
        folded = {path: array.astype(_stored(params, path)) for path, array in folded.items()}
    with new_folder(folder) as partial:
        save_hf(partial, shape, folded, dtype)
        if has_tokenizer:
            copy_files(place, partial, TOKENIZER)
            add_tokens(partial, tokens)
        with replacing(partial / "README.md") as path:
            path.write_text(_readme(expert, base, merged), encoding="utf-8")
        write_checksums(partial)
    return merged


def fold(
    t5: T5Config,
    params: Mapping[str, LazyArray],
    prompt_PD: np.ndarray,
    lora: Mapping[str, Pair],
    first: int,
) -> tuple[T5Config, dict[str, LazyArray]]:
    """The shape and the parameters of a T5 with an expert folded in, unread.

    Args:
      t5, params: the base.
      prompt_PD, lora: the expert.
      first: the embedding row of the prompt's first vector.
    """
    rows, needed = t5.vocab_size, first + len(prompt_PD)
    if needed > rows:
        step = 1 if rows % ROW_MULTIPLE else ROW_MULTIPLE
        rows = -(-needed // step) * step
    folded = dict(params)
    for linear, (a, b) in lora.items():
        folded[f"{linear}/kernel"] = _plus(params[f"{linear}/kernel"], a, b)
    embedding = params[EMBEDDING]

    def embed() -> np.ndarray:
        table = np.zeros((rows, t5.emb_dim), np.float32)
        table[: t5.vocab_size] = np.asarray(embedding)
        table[first:needed] = prompt_PD
        return table

    def project() -> np.ndarray:
        table = np.empty((t5.emb_dim, rows), np.float32)
        if t5.logits_via_embedding:
            table[:, : t5.vocab_size] = np.asarray(embedding, np.float32).T / np.sqrt(
                np.float32(t5.emb_dim)
            )
        else:
            table[:, : t5.vocab_size] = np.asarray(params[LOGITS])
        table[:, t5.vocab_size :] = table[:, [PADDING]]
        return table

    float32 = np.dtype(np.float32)
    folded[EMBEDDING] = LazyArray((rows, t5.emb_dim), float32, lambda index: embed()[index])
    folded[LOGITS] = LazyArray((t5.emb_dim, rows), float32, lambda index: project()[index])
    shape = dataclasses.replace(t5, vocab_size=rows, logits_via_embedding=False)
    return shape, folded


def _plus(kernel: LazyArray, a: np.ndarray, b: np.ndarray) -> LazyArray:
    """kernel + A B in float32, computed where it is read."""
    a, b = (np.asarray(matrix, np.float32) for matrix in (a, b))

    def read(index) -> np.ndarray:
        rows, columns = index
        return np.asarray(kernel[index], np.float32) + a[rows] @ b[:, columns]

    return LazyArray(kernel.shape, np.dtype(np.float32), read)


def _stored(params: Mapping[str, LazyArray], path: str) -> np.dtype:
    """The dtype that the base stores a parameter in; a new projection is the embedding's."""
    return params[path if path in params else EMBEDDING].dtype


def _readme(expert: Expert, base: str | os.PathLike, merged: Merged) -> str:
    """What a user of the folder has to know; the front matter is what the hub looks for."""
    ids = list(merged.tokens.values())
    found = find(base)
    base = found.repo if found else Path(base).name
    revision = f", commit {found.commit}" if found else ""
    return f"""---
library_name: transformers
base_model: {json.dumps(base)}
---

# {expert.name} merged into {base}

A T5 that solves the task {expert.task}: the low-rank pairs of a PEMT expert are added to the
weights, and its prompt of {len(ids)} vectors ({json.dumps(expert.prompt_text, ensure_ascii=False)})
has become the tokens {ids[0]} to {ids[-1]}. **Put them before every text**, as ids

    {", ".join(map(str, ids))}

{_text_part(merged)}
The output projection is a matrix of its own, in which the new tokens have the logit of padding
or of rows that the base never uses; they are not predicted.

- expert: sha256 {expert.sha256}
- base: fingerprint {expert.base_fingerprint}{revision}
"""


def _text_part(merged: Merged) -> str:
    if not merged.has_tokenizer:
        return "The base came without a tokenizer, so this folder has none.\n"
    return f"""or as text, with a space between it and yours:

    {merged.prefix.rstrip()}

With transformers:

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSeq2SeqLM.from_pretrained(".")
prompt = "".join(f"<prompt_{{i}}>" for i in range({len(merged.tokens)}))
inputs = tokenizer(prompt + " " + "your text", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))
```
"""
