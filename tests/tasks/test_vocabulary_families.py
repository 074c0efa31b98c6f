"""The vocabularies of mT5, umT5 and ByT5, with the tokens of Hugging Face's tokenizers.

The expected tokens are in data/every_t5.tar.gz (data/make_every_t5_fixture.py).
"""

import base64
import copy
import hashlib
import json
import pickle
import tarfile
from pathlib import Path

import pytest
import seqio
import tensorflow as tf
from sentencepiece import sentencepiece_model_pb2
from tiny_vocabulary import with_sentinels_inside

from pemt_jax.data.cache_key import _vocabulary_identity
from pemt_jax.tasks.vocabulary import (
    BYTES,
    DEFAULT_VOCABULARY,
    PACKAGED,
    Vocabulary,
    beside,
    prefer,
)

ARCHIVE = Path(__file__).parents[1] / "data" / "every_t5.tar.gz"


@pytest.fixture(params=["4", "5"])
def expected(request):
    """Texts and their tokens by the tokenizers of one version of transformers."""
    with tarfile.open(ARCHIVE) as archive:
        file = archive.extractfile(f"./tokens_{request.param}.json")
        assert file is not None
        return json.load(file)


@pytest.fixture
def mt5(tmp_path):
    (tmp_path / "mt5").mkdir()
    path = tmp_path / "mt5" / "spiece.model"
    path.write_bytes(with_sentinels_inside())
    return Vocabulary(str(path))


def all_tokens(vocabulary, texts):
    """Tokens with </s>; those of TensorFlow must be the same."""
    tokens = [[*vocabulary.encode(text), vocabulary.eos_id] for text in texts]
    for text, found in zip(texts, tokens, strict=True):
        assert vocabulary.encode_tf(tf.constant(text)).numpy().tolist() == found[:-1]
    batch = vocabulary.encode_tf(tf.constant(texts))
    assert [[*row, vocabulary.eos_id] for row in batch.to_list()] == tokens
    return tokens


def test_tokens_of_both_vocabularies_are_the_tokenizers(expected, mt5):
    texts, tokens = expected["texts"], expected["tokens"]
    assert all_tokens(Vocabulary(str(PACKAGED)), texts) == tokens["sentinels_added"]
    assert all_tokens(mt5, texts) == tokens["sentinels_inside"]
    assert (mt5.extra_ids, mt5.vocab_size) == (0, 8100)
    assert mt5.encode("<extra_id_0> <extra_id_99>") == [8099, 8000]


def test_tokens_of_bytes_are_the_tokenizers(expected):
    texts = [text for text in expected["texts"] if "<" not in text]
    vocabulary = Vocabulary(BYTES)
    assert all_tokens(vocabulary, texts) == expected["tokens"]["bytes"]
    for text in texts:
        tokens = vocabulary.encode(text)
        assert vocabulary.decode([*tokens, 1, 55]) == text
        assert vocabulary.decode_tf(tf.constant(tokens, tf.int32)).numpy().decode() == text
    # The last byte of a text that was cut belongs to no character; rows beyond the bytes are none.
    assert vocabulary.decode([*vocabulary.encode("a\u00e9")[:-1], 300]) == "a"


def test_bytes_need_no_file():
    vocabulary = Vocabulary(BYTES)
    assert (vocabulary.vocab_size, vocabulary.extra_ids) == (259, 0)
    ids = vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id, vocabulary.bos_id
    assert ids == (0, 1, 2, None)
    assert vocabulary == Vocabulary(BYTES) != DEFAULT_VOCABULARY
    assert len(vocabulary.sha256) == 64 and vocabulary.sha256 != DEFAULT_VOCABULARY.sha256
    assert _vocabulary_identity(vocabulary) != _vocabulary_identity(DEFAULT_VOCABULARY)
    for same in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
        assert same == vocabulary and same.encode("a") == [100]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_the_folder_of_a_byt5_says_so(tmp_path, monkeypatch, name):
    monkeypatch.delenv("PEMT_JAX_VOCABULARY", raising=False)
    assert beside(tmp_path) is None
    (tmp_path / name).write_text("[")
    assert beside(tmp_path) is None
    (tmp_path / name).write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    assert beside(tmp_path) == BYTES
    try:
        prefer(beside(tmp_path))
        assert DEFAULT_VOCABULARY.is_bytes and DEFAULT_VOCABULARY.encode("hi") == [107, 108]
    finally:
        prefer(None)
    assert not DEFAULT_VOCABULARY.is_bytes
    monkeypatch.setenv("PEMT_JAX_VOCABULARY", "bytes")
    assert DEFAULT_VOCABULARY.encode("hi") == [107, 108]


def test_umt5_has_as_many_sentinels_as_its_tokenizer_config_says(tmp_path):
    (tmp_path / "spiece.model").write_bytes(PACKAGED.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 300}))
    vocabulary = Vocabulary(beside(tmp_path))
    assert (vocabulary.extra_ids, vocabulary.vocab_size) == (300, 8300)
    assert vocabulary.encode("<extra_id_0> <extra_id_299>") == [8299, 8000]
    assert vocabulary != Vocabulary(str(PACKAGED))


def test_saved_files_are_the_same_vocabulary(tmp_path, mt5):
    (tmp_path / "umt5").mkdir()
    (tmp_path / "umt5" / "spiece.model").write_bytes(PACKAGED.read_bytes())
    (tmp_path / "umt5" / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 300}))
    kinds = {
        "t5": Vocabulary(str(PACKAGED)),
        "mt5": mt5,
        "umt5": Vocabulary(str(tmp_path / "umt5" / "spiece.model")),
        "byt5": Vocabulary(BYTES),
    }
    for name, vocabulary in kinds.items():
        folder = tmp_path / "saved" / name
        folder.mkdir(parents=True)
        vocabulary.save(folder)
        again = Vocabulary(beside(folder))
        assert again == vocabulary and again.vocab_size == vocabulary.vocab_size, name
    facts = json.loads((tmp_path / "saved" / "mt5" / "tokenizer_config.json").read_text())
    assert facts == {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    assert [path.name for path in (tmp_path / "saved" / "t5").iterdir()] == ["spiece.model"]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name, count", [("\u2581<extra_id_{}>", 100), ("<extra_id_{}>", 300)])
def test_sentinels_of_a_tokenizer_json_keep_their_ids(tmp_path, monkeypatch, name, count, special):
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path / "cache"))
    model = sentencepiece_model_pb2.ModelProto.FromString(PACKAGED.read_bytes())
    pieces = [[piece.piece, piece.score] for piece in model.pieces]
    pieces += [[name.format(i), 0.0] for i in reversed(range(count))]
    table = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    added = [{"id": i, "content": pieces[i][0], "special": True} for i in range(3)]
    for i in range(8000, len(pieces)):
        added.append({"id": i, "content": pieces[i][0], "special": special})
    values = {
        "added_tokens": added,
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": table},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    vocabulary = Vocabulary(beside(tmp_path))
    assert (vocabulary.extra_ids, vocabulary.vocab_size) == (0, 8000 + count)
    tokens = [8000 + count - 1, *Vocabulary(str(PACKAGED)).encode("and a"), 8000]
    assert vocabulary.encode(f"<extra_id_0> and a <extra_id_{count - 1}>") == tokens


def test_seqio_compares_it_as_its_own(mt5):
    path = mt5.sentencepiece_model_file
    assert mt5 == seqio.SentencePieceVocabulary(path, extra_ids=0)
    assert mt5.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()
