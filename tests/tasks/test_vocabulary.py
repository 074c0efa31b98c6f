"""The lazy vocabulary: nothing read before use, configured late, equal by content."""

import copy
import os
import pickle
import shutil
import subprocess
import sys

import gin
import pytest
import sentencepiece
import seqio

from pemt_jax.common.errors import PemtError
from pemt_jax.tasks import make_vocabulary
from pemt_jax.tasks.demo import vader
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY, PACKAGED, Vocabulary


@pytest.fixture(autouse=True)
def clean_configuration(monkeypatch):
    monkeypatch.delenv("PEMT_JAX_VOCABULARY", raising=False)
    yield
    gin.clear_config()


def test_the_packaged_vocabulary_is_numbered_like_t5():
    vocabulary = DEFAULT_VOCABULARY
    assert vocabulary.vocab_size == 8100
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
    assert vocabulary.tokenizer.IdToPiece([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    assert vocabulary.encode("<extra_id_0> and <extra_id_99>") == [
        8099,
        *vocabulary.encode("and"),
        8000,
    ]
    text = "It's the kind of movie you can't quite recommend."
    assert vocabulary.decode([*vocabulary.encode(text), 1, 55, 0]) == text
    for label in ("negative", "positive", "movie", "tweet", "newspaper"):
        assert len(vocabulary.encode(label)) == 1


def test_tasks_register_without_reading_a_file(tmp_path):
    environment = {
        **os.environ,
        "PEMT_JAX_VOCABULARY": str(tmp_path / "none"),
        "PEMT_JAX_CACHE": str(tmp_path / "cache"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    program = (
        "import seqio, pemt_jax.tasks\n"
        "task = seqio.get_mixture_or_task('vader_amazon_8_seed3')\n"
        "seqio.get_mixture_or_task('mini_t5_pretrain')\n"
        "seqio.get_mixture_or_task('vader_sources')\n"
        "try: task.output_features['inputs'].vocabulary.vocab_size\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == (
        f"PemtError The vocabulary {tmp_path}/none does not exist, expected a "
        "spiece.model, sentencepiece.model or tokenizer.json.\n"
    )
    assert not (tmp_path / "cache").exists()


def test_configuration_is_heeded_after_the_tasks_were_registered(tmp_path):
    other = tmp_path / "other.model"
    shutil.copy(PACKAGED, other)
    assert DEFAULT_VOCABULARY.sentencepiece_model_file == str(PACKAGED)
    gin.parse_config(
        "from __gin__ import dynamic_registration\n"
        "from pemt_jax.tasks import vocabulary\n"
        f"VOCABULARY = '{other}'\n"
        "vocabulary.spiece_model.path = %VOCABULARY\n"
    )
    assert DEFAULT_VOCABULARY.sentencepiece_model_file == str(other)
    assert DEFAULT_VOCABULARY.vocab_size == 8100


def test_the_environment_names_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("PEMT_JAX_VOCABULARY", str(tmp_path / "absent"))
    with pytest.raises(PemtError, match="absent does not exist"):
        DEFAULT_VOCABULARY.encode("a")
    monkeypatch.delenv("PEMT_JAX_VOCABULARY")
    assert DEFAULT_VOCABULARY.encode("a")


def test_a_file_that_is_no_model_is_one_sentence(tmp_path):
    (tmp_path / "wrong").write_bytes(b"hello world")
    with pytest.raises(PemtError, match="wrong is not a sentencepiece model"):
        Vocabulary(str(tmp_path / "wrong")).encode("a")


def test_vocabularies_are_equal_when_files_and_sentinels_are(tmp_path, small_model):
    copied = tmp_path / "copied.model"
    shutil.copy(PACKAGED, copied)
    assert DEFAULT_VOCABULARY == Vocabulary(str(copied))
    assert DEFAULT_VOCABULARY == seqio.SentencePieceVocabulary(str(PACKAGED), extra_ids=100)
    assert DEFAULT_VOCABULARY != Vocabulary(str(copied), extra_ids=0)
    assert DEFAULT_VOCABULARY != Vocabulary(str(small_model))
    assert DEFAULT_VOCABULARY != seqio.ByteVocabulary()
    assert DEFAULT_VOCABULARY == DEFAULT_VOCABULARY


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_copies_work(duplicate):
    assert duplicate(DEFAULT_VOCABULARY).encode("good") == DEFAULT_VOCABULARY.encode("good")
    assert duplicate(DEFAULT_VOCABULARY) == DEFAULT_VOCABULARY


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """A vocabulary made by the documented command from a small corpus, without the demo data."""
    folder = tmp_path_factory.mktemp("corpus")
    words = "a good film tells its story well and a bad one does not".split()
    (folder / "lines.txt").write_text(
        "\n".join(" ".join(words[i:] + words[:i]) for i in range(len(words))) + "\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vader, "split_rows", lambda domain, split, neutral: [])
        flags = [f"--corpus={folder}", "--pieces=30", f"--output={folder}/spiece.model"]
        assert make_vocabulary.main(flags) == 0
    return folder / "spiece.model"


def test_the_command_makes_a_vocabulary_with_the_ids_of_t5(small_model):
    model = sentencepiece.SentencePieceProcessor(model_file=str(small_model))
    assert model.GetPieceSize() == 30
    assert model.IdToPiece([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    assert model.bos_id() == -1
    assert model.Decode(model.Encode("a good story")) == "a good story"


@pytest.mark.parametrize(
    "flags, code, sentence",
    [
        ([], 2, "The following arguments are required: --corpus, --output."),
        (["--corpus=x", "--output=y", "--nosuch"], 2, "There is no argument '--nosuch', expected"),
        (["--corpus=x", "--output=y", "--pieces=abc"], 2, "Argument --pieces: invalid int value"),
        (["--corpus=x", "--output=y", "--sample=-1"], 2, "Found --sample -1, expected 1 or more."),
        (["--corpus=x", "--output=y", "--threads=0"], 2, "Found --threads 0, expected 1 or more."),
        (["--corpus=x", "--output=."], 2, "--output . is a folder, expected a file to write."),
        (["--corpus=x", "--output=y"], 1, "x has no text files, expected *.txt or *.txt.xz"),
    ],
)
def test_wrong_use_of_the_command_is_one_sentence(
    capsys, tmp_path, monkeypatch, flags, code, sentence
):
    monkeypatch.chdir(tmp_path)
    assert make_vocabulary.main(flags) == code
    found = capsys.readouterr().err
    assert found.startswith(f"error: {sentence}") and found.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["folder", "pipe", "nothing"])
def test_a_vocabulary_that_is_no_file_is_named_for_what_it_is(tmp_path, kind):
    place = tmp_path / "x"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    states = {"folder": "is a folder", "pipe": "is no plain file", "nothing": "does not exist"}
    with pytest.raises(PemtError, match=f"The vocabulary .*x {states[kind]}, expected a spiece"):
        Vocabulary(str(place)).encode("a")
