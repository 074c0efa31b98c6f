"""The vocabulary of every task: a sentencepiece file with its sentinels, or bytes, opened at use.

Tasks register at import, before any configuration is read, so they share one object that asks for
its path only when it is used: gin's `spiece_model.path`, else $PEMT_JAX_VOCABULARY, else the one in
the folder of the run's base, else that of the packaged mini T5. The path is that of a
sentencepiece.model, a spiece.model or a tokenizer.json, or "bytes", the vocabulary of ByT5 (Xue et
al., 2022, arXiv 2105.13626), which has no file.

The sentinels <extra_id_0>, ... have the last ids, the first the highest. T5's 100 are not in its
file and are added, umT5's 300 (`extra_ids` of the tokenizer_config.json beside the file) as well;
mT5's 100 are in its file. Two vocabularies are equal when the contents of their files and their
numbers of added sentinels are, wherever the files are stored.
"""

import functools
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import gin
import sentencepiece
import seqio
import tensorflow as tf

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError
from pemt_jax.common.user_input.files import read_object
from pemt_jax.library.hub_names import local_folder
from pemt_jax.run_config import MINI_T5
from pemt_jax.tasks.tokenizer_json import sentencepiece_file

PACKAGED = Path(MINI_T5) / "spiece.model"
SENTINELS = 100
BYTES = "bytes"  # instead of a path
TOKENIZER_CONFIG, BYTE_TOKENIZER = "tokenizer_config.json", "ByT5Tokenizer"
# SeqIO's ids are those of ByT5's tokenizer. What it was pretrained with has no sentinels beyond the
# bytes: spans are marked by the last of these ids (Xue et al., 2022, section 3.2).
BYTE_VOCABULARY = seqio.ByteVocabulary()

_preferred: list[str] = []


@gin.configurable
def spiece_model(path: str | None = None) -> str:
    """Path of the sentencepiece file that the default vocabulary opens, or "bytes"."""
    beside_the_base = _preferred[-1] if _preferred else None
    return str(path or os.environ.get("PEMT_JAX_VOCABULARY") or beside_the_base or PACKAGED)


@functools.cache
def _on_this_machine(path: str) -> Path:
    """The path, or that of a copy: sentencepiece and TensorFlow open files of this machine."""
    return storage.local_copy(storage.path(path))


def beside(base: str | os.PathLike) -> str | None:
    """The vocabulary of a base: a file in its folder, "bytes" for a ByT5, None if there is none."""
    folder = storage.path(local_folder(base))
    for name in ("spiece.model", "tokenizer.json"):
        file = folder / name
        # A link to nothing or a pipe is an error when it is opened, and no reason for the default.
        if file.is_file() or (not storage.is_remote(file) and os.path.lexists(file)):
            return str(file)
    names = (TOKENIZER_CONFIG, "config.json")
    kinds = [_json(folder / name).get("tokenizer_class") for name in names]
    return BYTES if BYTE_TOKENIZER in kinds else None


def prefer(path: str | None) -> None:
    """Let the default vocabulary open `path`, unless another one is configured; None for none."""
    _preferred[:] = [] if path is None else [path]


def _json(file: Path) -> dict:
    """The object in a JSON file; an empty one where there is none."""
    try:
        return read_object(file, "an object") if file.is_file() else {}
    except PemtError:
        return {}


@functools.cache
def _sentinels(path: str, model_file: str) -> int:
    """How many sentinels belong after the pieces of the vocabulary `path`, stored in a file."""
    model = sentencepiece.SentencePieceProcessor(model_file=model_file)
    pieces = ("\u2581<extra_id_0>", "<extra_id_0>")
    if any(model.PieceToId(piece) != model.unk_id() for piece in pieces):
        return 0
    stated = _json(storage.path(path).with_name(TOKENIZER_CONFIG)).get("extra_ids")
    return max(SENTINELS, stated) if type(stated) is int else SENTINELS


@functools.cache
def _file_sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Vocabulary(seqio.SentencePieceVocabulary):
    """A vocabulary that reads nothing before its first use.

    Args:
      path: the file, a sentencepiece model or a tokenizer.json, or "bytes"; None means the
        configured default, looked up at every use.
      extra_ids: number of sentinels to add after the pieces; None for those that it lacks.
    """

    def __init__(self, path: str | None = None, extra_ids: int | None = None):
        self._path, self._given_extra_ids = path, extra_ids
        super().__init__(sentencepiece_model_file="", extra_ids=extra_ids or 0)

    @property
    def is_bytes(self) -> bool:
        """Whether the tokens are bytes."""
        return (self._path or spiece_model()) == BYTES

    @property
    def is_fallback(self) -> bool:
        """Whether it is that of the mini T5 because nothing names another one."""
        return self._path is None and spiece_model() == str(PACKAGED)

    @property
    def sentencepiece_model_file(self) -> str:
        """The sentencepiece model; for a tokenizer.json, the one made from it; "bytes" for none."""
        if self.is_bytes:
            return BYTES
        path = str(_on_this_machine(self._path or spiece_model()))
        if path.endswith(".json") and os.path.isfile(path):
            return str(sentencepiece_file(path))
        return path

    @property
    def sha256(self) -> str:
        """The sha256 of the file, in hexadecimal."""
        if self.is_bytes:
            return hashlib.sha256(BYTES.encode()).hexdigest()
        self._model_context()
        return _file_sha256(self.sentencepiece_model_file)

    @property
    def extra_ids(self) -> int:
        """The number of sentinels that are added after the pieces."""
        if not self.is_bytes:
            self._model_context()
        return 0 if self.is_bytes else self._extra_ids

    def save(self, folder: Path) -> None:
        """Write the files by which a folder has this vocabulary, for `beside` and Hugging Face."""
        facts: dict[str, str | int] = {"tokenizer_class": BYTE_TOKENIZER}
        if not self.is_bytes:
            shutil.copyfile(self.sentencepiece_model_file, folder / "spiece.model")
            facts = {"tokenizer_class": "T5Tokenizer", "extra_ids": self.extra_ids}
        if self.is_bytes or self.extra_ids != SENTINELS:
            text = json.dumps(facts, indent=1) + "\n"
            (folder / TOKENIZER_CONFIG).write_text(text, encoding="utf-8")

    def _model_context(self) -> Any:
        path = self.sentencepiece_model_file
        if path != self._sentencepiece_model_file:
            if not Path(path).is_file():
                kind = "is a folder" if Path(path).is_dir() else "is no plain file"
                raise PemtError(
                    f"The vocabulary {path} {kind if Path(path).exists() else 'does not exist'}, "
                    "expected a spiece.model, sentencepiece.model or tokenizer.json."
                )
            self._sentencepiece_model_file, self._model = path, None
        try:
            if self._model is None and self._given_extra_ids is None:
                self._extra_ids = _sentinels(self._path or spiece_model(), path)
            return super()._model_context()
        except Exception as error:  # protobuf's and sentencepiece's error types vary by version
            self._sentencepiece_model_file = ""
            raise PemtError(
                f"{self._path or spiece_model()} is not a sentencepiece model "
                f"({str(error).splitlines()[0]}), expected one, or the tokenizer.json of a T5."
            ) from error

    # Where the tokens are bytes, everything is that of BYTE_VOCABULARY.

    @property
    def bos_id(self) -> int | None:
        return BYTE_VOCABULARY.bos_id if self.is_bytes else super().bos_id

    @property
    def eos_id(self) -> int | None:
        return BYTE_VOCABULARY.eos_id if self.is_bytes else super().eos_id

    @property
    def unk_id(self) -> int | None:
        return BYTE_VOCABULARY.unk_id if self.is_bytes else super().unk_id

    @property
    def sp_model(self) -> bytes | None:
        return BYTES.encode() if self.is_bytes else super().sp_model

    @property
    def _base_vocab_size(self) -> int:
        return BYTE_VOCABULARY.vocab_size if self.is_bytes else super()._base_vocab_size

    def _encode(self, s: str) -> Any:
        return BYTE_VOCABULARY.encode(s) if self.is_bytes else super()._encode(s)

    def _decode(self, ids: Any) -> str:
        return BYTE_VOCABULARY.decode(ids) if self.is_bytes else super()._decode(ids)

    def _encode_tf(self, s: Any) -> Any:
        if not self.is_bytes:
            return super()._encode_tf(s)
        if s.shape.rank == 0:
            return BYTE_VOCABULARY.encode_tf(s)
        tokens = tf.strings.bytes_split(s)  # SeqIO's decodes texts of one length only
        return tokens.with_flat_values(BYTE_VOCABULARY.encode_tf(tokens.flat_values)[:, 0])

    def _decode_tf(self, ids: Any) -> Any:
        return BYTE_VOCABULARY.decode_tf(ids) if self.is_bytes else super()._decode_tf(ids)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, Vocabulary):
            return (self.extra_ids, self.sha256) == (other.extra_ids, other.sha256)
        # The serialized model includes the sentinels.
        if not isinstance(other, seqio.SentencePieceVocabulary):
            return False
        return self.sp_model == other.sp_model

    __hash__ = None

    def __str__(self) -> str:
        return f"Vocabulary({self.sentencepiece_model_file}, extra_ids={self.extra_ids})"


DEFAULT_VOCABULARY = Vocabulary()
FEATURES = {  # of every text-to-text task
    "inputs": seqio.Feature(DEFAULT_VOCABULARY, add_eos=True),
    "targets": seqio.Feature(DEFAULT_VOCABULARY, add_eos=True),
}
