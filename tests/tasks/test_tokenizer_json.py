"""A tokenizer.json gives the sentencepiece model that it was made from."""

import base64
import json

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from pemt_jax.common.errors import PemtError
from pemt_jax.tasks import tokenizer_json
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY, PACKAGED, Vocabulary, beside, prefer


@pytest.fixture
def converted(tmp_path, monkeypatch):
    """The packaged vocabulary written as a tokenizer.json."""
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PEMT_JAX_VOCABULARY", raising=False)
    model = sentencepiece_model_pb2.ModelProto.FromString(PACKAGED.read_bytes())
    pieces = [[piece.piece, piece.score] for piece in model.pieces]
    sentinels = [[f"<extra_id_{n}>", 0.0] for n in reversed(range(100))]
    table = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    path = tmp_path / "tokenizer.json"
    path.write_text(
        json.dumps(
            {
                "added_tokens": [
                    {"id": id, "content": pieces[id][0], "special": True} for id in range(3)
                ],
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [{"type": "Precompiled", "precompiled_charsmap": table}],
                },
                "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces + sentinels},
            }
        )
    )
    return path


TEXTS = [
    "translate this: It's 5 \u00bd \ufb01 na\u00efve  \t\u4e2d\u6587 \U0001f600 end.",
    "",
    " ",
    "</s> <unk> <pad> <extra_id_0> a",
    "\u2581",
]


def test_tokens_pieces_and_text_are_those_of_the_original(converted):
    vocabulary, original = Vocabulary(str(converted)), Vocabulary(str(PACKAGED))
    assert vocabulary.vocab_size == original.vocab_size == 8100
    for text in TEXTS:
        tokens = original.encode(text)
        assert vocabulary.encode(text) == tokens
        assert vocabulary.encode_tf(text).numpy().tolist() == tokens
        assert vocabulary.decode(tokens) == original.decode(tokens)
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id, vocabulary.bos_id) == (
        0,
        1,
        2,
        -1,
    )


def test_the_model_is_kept_and_its_sha256_does_not_depend_on_the_place(converted, tmp_path):
    file = tokenizer_json.sentencepiece_file(converted)
    assert file.parent == tmp_path / "cache" / "vocabularies"
    copied = tmp_path / "copied.json"
    copied.write_bytes(converted.read_bytes())
    assert Vocabulary(str(copied)) == Vocabulary(str(converted))
    assert Vocabulary(str(file)) == Vocabulary(str(converted)) != Vocabulary(str(PACKAGED))
    assert sentencepiece.SentencePieceProcessor(model_file=str(file)).GetPieceSize() == 8000


def test_a_tokenizer_json_beside_a_base_is_found(converted, tmp_path):
    try:
        prefer(beside(tmp_path))
        assert DEFAULT_VOCABULARY.sentencepiece_model_file == str(
            tokenizer_json.sentencepiece_file(converted)
        )
        (tmp_path / "spiece.model").write_bytes(PACKAGED.read_bytes())
        prefer(beside(tmp_path))
        assert DEFAULT_VOCABULARY.sentencepiece_model_file == str(tmp_path / "spiece.model")
    finally:
        prefer(None)


@pytest.mark.parametrize(
    "content",
    [
        "oops",
        "[]",
        "{}",
        '{"model": {"type": "BPE", "vocab": {}, "unk_id": 0}, "added_tokens": [], '
        '"normalizer": null}',
        '{"model": {"type": "Unigram", "vocab": [], "unk_id": 0}, "added_tokens": [], '
        '"normalizer": {"type": "NFC"}}',
    ],
)
def test_other_files_are_one_sentence_and_leave_nothing(tmp_path, monkeypatch, content):
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(PemtError, match="is not the tokenizer.json of a sentencepiece unigram"):
        Vocabulary(str(tmp_path / "tokenizer.json")).encode("a")
    assert not (tmp_path / "cache").exists()


def test_texts_are_decoded_without_reading_the_file_again(converted, monkeypatch):
    vocabulary = Vocabulary(str(converted))
    tokens = vocabulary.encode("a b")
    monkeypatch.setattr(tokenizer_json.Path, "read_bytes", lambda path: pytest.fail(str(path)))
    assert vocabulary.decode(tokens) == "a b"


def test_a_file_that_was_replaced_is_another_vocabulary(converted):
    first = tokenizer_json.sentencepiece_file(converted)
    found = json.loads(converted.read_text())
    found["model"]["vocab"][5][1] -= 1.0
    converted.write_text(json.dumps(found))
    assert tokenizer_json.sentencepiece_file(converted) != first


@pytest.mark.parametrize(
    "change",
    [
        {"vocab": [["a", 1, 2]]},
        {"vocab": [1, 2, 3]},
        {"vocab": [[1, 1.0]]},
        {"vocab": [["a", "b"]]},
        {"vocab": "abc"},
        {"vocab": {"a": 1}},
        {"vocab": None},
        {"unk_id": 10**30},
        {"unk_id": "x"},
        {"unk_id": None},
    ],
    ids=str,
)
def test_pieces_that_are_none_are_one_sentence(tmp_path, monkeypatch, change):
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path / "cache"))
    model = {"type": "Unigram", "vocab": [["<unk>", 0.0]], "unk_id": 0} | change
    normalizer = {"type": "Precompiled", "precompiled_charsmap": ""}
    content = {"model": model, "added_tokens": [], "normalizer": normalizer}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(PemtError, match="is not the tokenizer.json of a .*expected a T5's"):
        Vocabulary(str(tmp_path / "tokenizer.json")).encode("a")
    assert not (tmp_path / "cache").exists()
