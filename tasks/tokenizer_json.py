"""A Hugging Face tokenizer.json of a T5 as the sentencepiece model that it was made from.

Such a file holds everything that determines tokens: the pieces with their scores, and the
normaliser as sentencepiece's own compiled table. What it lacks (the options with which the pieces
were trained) has no effect. T5's 100 sentinels <extra_id_...> are left out, as in its
sentencepiece.model; SeqIO adds them when it opens the file. Those of mT5 ("▁<extra_id_0>"), and
another number of them (umT5 has 300), are pieces of the model.

The model is written to $PEMT_JAX_CACHE/vocabularies under the sha256 of the tokenizer.json, for
TensorFlow to read.
"""

import base64
import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from pemt_jax.common.errors import PemtError
from pemt_jax.common.storage import cache_folder, replacing
from pemt_jax.common.user_input.code import named
from pemt_jax.common.user_input.files import decoded, parse_json

SENTINEL = "<extra_id_"
MADE = 2  # the form of the models made here, part of their names


def sentencepiece_file(path: str | Path) -> Path:
    """The path of the sentencepiece model of a tokenizer.json, written if it is missing.

    Raises:
      PemtError: the file is not the tokenizer.json of a unigram model with a normaliser of
        sentencepiece.
    """
    status = os.stat(path)
    return _made(str(path), status.st_size, status.st_mtime_ns)


@functools.cache
def _made(path: str, size: int, changed: int) -> Path:
    del size, changed  # part of the cache's key: every text that is decoded asks for the file
    content = Path(path).read_bytes()
    file = cache_folder() / "vocabularies" / f"{hashlib.sha256(content).hexdigest()}-{MADE}.model"
    if not file.is_file():
        model = sentencepiece_model(content, path)
        with replacing(file) as partial:
            partial.write_bytes(model)
    return file


def sentencepiece_model(content: bytes, path: str) -> bytes:
    """The serialised sentencepiece model of the bytes of a tokenizer.json; `path` is for errors."""
    from sentencepiece import sentencepiece_model_pb2

    protobuf: Any = sentencepiece_model_pb2  # its classes are made at import
    try:
        found = parse_json(decoded(content))
        model = found["model"]
        pieces, unknown = model["vocab"], model["unk_id"]
        special = {token["id"] for token in found["added_tokens"] if token["special"]}
        charsmap = _charsmap(found["normalizer"])
        if model["type"] != "Unigram" or charsmap is None:
            raise ValueError(
                f"it is a {model['type']} model with normaliser "
                f"{(found['normalizer'] or {}).get('type')}"
            )
        return _serialised(protobuf, pieces, unknown, special, charsmap)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        is_ours = isinstance(error, ValueError | KeyError)
        reason = named(error) if is_ours else "a part of it is of another type"
        raise PemtError(
            f"{path} is not the tokenizer.json of a sentencepiece unigram model ({reason}), "
            "expected a T5's."
        ) from error


def _serialised(
    protobuf: Any, pieces: list, unknown: int, special: set[int], charsmap: bytes
) -> bytes:
    """The model of pieces and their scores; ValueError or TypeError for what are none."""
    kinds = protobuf.ModelProto.SentencePiece
    made = protobuf.ModelProto()
    added_by_seqio = sum(piece.startswith(SENTINEL) for piece, _ in pieces) == 100
    for number, (piece, score) in enumerate(pieces):
        kind = kinds.CONTROL if number in special else kinds.NORMAL
        if number == unknown:
            kind = kinds.UNKNOWN
        elif piece.removeprefix("\u2581").startswith(SENTINEL):
            if added_by_seqio:
                continue
            piece, kind = "\u2581" + piece.removeprefix("\u2581"), kinds.USER_DEFINED
        made.pieces.add(piece=piece, score=score, type=kind)
    trainer = made.trainer_spec
    trainer.model_type = trainer.UNIGRAM
    trainer.vocab_size = len(made.pieces)
    trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, unknown, -1
    made.normalizer_spec.name = "nmt_nfkc"
    made.normalizer_spec.precompiled_charsmap = charsmap
    return made.SerializeToString(deterministic=True)


def _charsmap(normalizer: dict | None) -> bytes | None:
    """The compiled table of a Precompiled normaliser, also of one in a sequence."""
    if normalizer is None:
        return None
    if normalizer["type"] == "Sequence":
        found = [_charsmap(part) for part in normalizer["normalizers"]]
        return next((table for table in found if table is not None), None)
    if normalizer["type"] != "Precompiled":
        return None
    return base64.b64decode(normalizer["precompiled_charsmap"], validate=True)
