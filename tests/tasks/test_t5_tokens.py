"""T5's own tokens of an example of each task.

The stored pieces (tests/data/make_t5_pieces.py) are those of T5's vocabulary that occur in the
texts, which decide about their tokens; they are always tested. The whole vocabulary is where
$PEMT_JAX_T5_VOCABULARY says, or beside the checkout.
"""

import base64
import json
import os
from pathlib import Path

import pytest
import seqio
from expected_examples import EXPECTED, T5_TOKENS, t5_texts
from sentencepiece import sentencepiece_model_pb2

from pemt_jax.tasks import datasets
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY, PACKAGED, Vocabulary

HERE = Path(__file__).parents[1]
WHOLE = Path(
    os.environ.get("PEMT_JAX_T5_VOCABULARY")
    or HERE.parents[1] / "shared" / "t5_vocab" / "tokenizer.json"
)


def write_stored(path):
    """Write the stored pieces under their ids; what stands for the others is in no text."""
    stored = json.loads((HERE / "data" / "t5_pieces.json").read_text(encoding="utf-8"))
    vocabulary = [[f"\ue000{number}", stored["lowest"]] for number in range(stored["size"])]
    for number, piece, score in stored["pieces"]:
        vocabulary[number] = [piece, score]
    packaged = sentencepiece_model_pb2.ModelProto.FromString(PACKAGED.read_bytes())
    table = base64.b64encode(packaged.normalizer_spec.precompiled_charsmap).decode()
    path.write_text(
        json.dumps(
            {
                "added_tokens": [{"id": number, "special": True} for number in range(3)],
                "normalizer": {"type": "Precompiled", "precompiled_charsmap": table},
                "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary},
            }
        ),
        encoding="utf-8",
    )


@pytest.fixture(
    params=[
        "stored pieces",
        pytest.param(
            "whole",
            marks=pytest.mark.skipif(
                not WHOLE.is_file(),
                reason="T5's whole vocabulary is not here, the stored pieces are tested; "
                "set PEMT_JAX_T5_VOCABULARY to its tokenizer.json",
            ),
        ),
    ]
)
def vocabulary_file(request, tmp_path, monkeypatch):
    """The path of a tokenizer.json of T5."""
    monkeypatch.setenv("PEMT_JAX_CACHE", str(tmp_path / "cache"))
    if request.param == "whole":
        return WHOLE
    write_stored(tmp_path / "tokenizer.json")
    return tmp_path / "tokenizer.json"


def test_texts_of_every_task_have_literal_tokens(vocabulary_file):
    assert T5_TOKENS.keys() == {*EXPECTED, "translate"} and len(EXPECTED) == 28
    vocabulary = Vocabulary(str(vocabulary_file))
    assert vocabulary.vocab_size == 32100
    for name, expected in T5_TOKENS.items():
        assert tuple([*vocabulary.encode(text), 1] for text in t5_texts(name)) == expected, name
        assert (
            tuple([*vocabulary.encode_tf(text).numpy(), 1] for text in t5_texts(name)) == expected
        ), name


def test_tasks_yield_these_tokens(vocabulary_file, tiny_data, monkeypatch):
    monkeypatch.setenv("PEMT_JAX_VOCABULARY", str(vocabulary_file))
    assert DEFAULT_VOCABULARY.vocab_size == 32100
    for row in (*datasets.SOURCES, *datasets.SUPER_GLUE):
        split = "train" if row.name == "pemt_squad" else "test"
        dataset = seqio.TaskRegistry.get(row.name).get_dataset(None, split, shuffle=False)
        example = next(dataset.as_numpy_iterator())
        assert (example["inputs"].tolist(), example["targets"].tolist()) == T5_TOKENS[row.name]


def test_spaces_round_punctuation_leave_no_trace_in_the_tokens(vocabulary_file):
    """The authors' code leaves a space at the end of a padded text and two before the next."""
    text = t5_texts("pemt_squad")[0]
    spaced = text.replace(" context:", "  context:") + " "
    assert spaced != text
    vocabulary = Vocabulary(str(vocabulary_file))
    assert [*vocabulary.encode(spaced), 1] == T5_TOKENS["pemt_squad"][0]
