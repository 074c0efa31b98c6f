"""The vocabulary of every task: a sentencepiece file with 100 sentinels, opened at first use.

Tasks register at import, before any configuration is read, so they share one object that asks for
its path only when it is used: gin's `spiece_model.path`, else $PEMT_JAX_VOCABULARY, else the one in
the folder of the run's base, else that of the packaged mini T5. The file is a sentencepiece.model,
a spiece.model or a tokenizer.json. Two vocabularies are equal when the contents of their files and
their numbers of sentinels are, wherever the files are stored.
"""

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import gin
import seqio

from pemt_jax.common import storage
from pemt_jax.common.errors import PemtError
from pemt_jax.run_config import MINI_T5
from pemt_jax.tasks.tokenizer_json import sentencepiece_file

PACKAGED = Path(MINI_T5) / "spiece.model"
SENTINELS = 100


_preferred: list[str] = []


@gin.configurable
def spiece_model(path: str | None = None) -> str:
    """Path of the sentencepiece file that the default vocabulary opens."""
    beside_the_base = _preferred[-1] if _preferred else None
    found = path or os.environ.get("PEMT_JAX_VOCABULARY") or beside_the_base or PACKAGED
    return str(_on_this_machine(str(found)))


@functools.cache
def _on_this_machine(path: str) -> Path:
    """The path, or that of a copy: sentencepiece and TensorFlow open files of this machine."""
    return storage.local_copy(storage.path(path))


def prefer(path: str | Path | None) -> None:
    """Let the default vocabulary open `path`, or the tokenizer.json beside it, if there is one.

    A configured vocabulary takes precedence.
    """
    files = [] if path is None else [storage.path(path)]
    files += [file.with_name("tokenizer.json") for file in files]
    _preferred[:] = [str(file) for file in files if file.is_file()][:1]


@functools.cache
def _file_sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Vocabulary(seqio.SentencePieceVocabulary):
    """A sentencepiece vocabulary that reads nothing before its first use.

    Args:
      path: the file, a sentencepiece model or a tokenizer.json; None means the configured default,
        looked up at every use.
      extra_ids: number of sentinels after the pieces; <extra_id_0> has the last id, as in T5.
    """

    def __init__(self, path: str | None = None, extra_ids: int = SENTINELS):
        self._path = path
        super().__init__(sentencepiece_model_file="", extra_ids=extra_ids)

    @property
    def sentencepiece_model_file(self) -> str:
        """The sentencepiece model; for a tokenizer.json, the one made from it."""
        path = self._path or spiece_model()
        if path.endswith(".json") and Path(path).is_file():
            return str(sentencepiece_file(path))
        return path

    @property
    def sha256(self) -> str:
        """The sha256 of the file, in hexadecimal."""
        self._model_context()
        return _file_sha256(self.sentencepiece_model_file)

    def _model_context(self) -> Any:
        path = self.sentencepiece_model_file
        if path != self._sentencepiece_model_file:
            if not Path(path).is_file():
                raise PemtError(
                    f"the vocabulary {path} does not exist; a sentencepiece file "
                    "(spiece.model or sentencepiece.model) was expected there"
                )
            self._sentencepiece_model_file, self._model = path, None
        try:
            return super()._model_context()
        except Exception as error:  # protobuf's and sentencepiece's error types vary by version
            self._sentencepiece_model_file = ""
            raise PemtError(
                f"{path} is not a sentencepiece model: {str(error).splitlines()[0]}"
            ) from error

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
