"""The span-corruption task over text files: nothing lost before the noise, splits by hash."""

import lzma

import gin
import numpy as np
import pytest
import seqio

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.user_input.paragraphs import general_text_task, paragraphs, text_files
from pemt_jax.data import token_cache as data
from pemt_jax.tasks.pretraining import corpus as pretraining
from pemt_jax.tasks.pretraining.general_text import LENGTHS as GENERAL_LENGTHS
from pemt_jax.tasks.pretraining.general_text import SPLIT, register_general_text
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY

LENGTHS = {"inputs": 64, "targets": 16}


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Two files of 1,000 paragraphs in all, one of them compressed."""
    lines = [
        f"Paragraph number {i} says something about {i * 7919 % 1000} things." for i in range(1000)
    ]
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(lines[:300]) + "\n\n   \n")
    with lzma.open(folder / "b.txt.xz", "wt") as file:
        file.write("\n".join(lines[300:]))
    (folder / "notes.md").write_text("not read")
    monkeypatch.setenv("PEMT_JAX_CORPUS", str(folder))
    yield folder, lines
    gin.clear_config()


def test_paragraphs_are_joined_and_cut_without_loss(corpus, tmp_path):
    _, lines = corpus
    split = data.open_split("span_corruption", "train", LENGTHS, tmp_path / "tokens")
    chunks = split.columns["targets"]
    assert set(chunks.lengths[:-1]) == {70}
    expected = [
        token
        for line in lines
        if not pretraining.is_held_out(line)
        for token in DEFAULT_VOCABULARY.encode(line)
    ]
    assert chunks.values.tolist() == expected
    assert set(split.input_lengths[:-1]) == {64} and set(split.target_lengths[:-1]) == {14}
    assert split.inputs(0)[-1] == split.targets(0)[-1] == DEFAULT_VOCABULARY.eos_id
    assert split.targets(0)[0] == DEFAULT_VOCABULARY.vocab_size - 1


def test_the_held_out_paragraphs_are_about_one_in_200(corpus, tmp_path):
    _, lines = corpus
    held_out = [line for line in lines if pretraining.is_held_out(line)]
    assert 1 <= len(held_out) <= 15
    split = data.open_split("span_corruption", "validation", LENGTHS, tmp_path / "tokens")
    assert split.columns["targets"].values.tolist() == [
        token for line in held_out for token in DEFAULT_VOCABULARY.encode(line)
    ]


def test_the_task_works_under_seqio_too(corpus):
    dataset = seqio.TaskRegistry.get("span_corruption").get_dataset(
        LENGTHS, "train", shuffle=False, seed=1
    )
    rows = list(dataset.take(3).as_numpy_iterator())
    assert [(len(row["inputs"]), len(row["targets"])) for row in rows] == [(64, 14)] * 3
    assert {int(row["targets"][0]) for row in rows} == {8099}


def test_changed_text_is_tokenised_again(corpus, tmp_path):
    folder, _ = corpus
    first = data.open_split("span_corruption", "train", LENGTHS, tmp_path / "tokens")
    (folder / "c.txt").write_text("One more paragraph.\n" * 3)
    second = data.open_split("span_corruption", "train", LENGTHS, tmp_path / "tokens")
    assert len(second.columns["targets"].values) > len(first.columns["targets"].values)


def test_gin_names_the_folder(corpus, monkeypatch):
    folder, _ = corpus
    monkeypatch.delenv("PEMT_JAX_CORPUS")
    with pytest.raises(UsageError, match="No text folder is set"):
        pretraining.corpus()
    gin.parse_config(
        "from __gin__ import dynamic_registration\n"
        "from pemt_jax.tasks.pretraining import corpus\n"
        f"CORPUS = '{folder}'\ncorpus.corpus.path = %CORPUS\n"
    )
    assert pretraining.corpus() == str(folder)


def test_a_folder_without_text_is_one_sentence(tmp_path):
    with pytest.raises(PemtError, match="has no text files, expected .*txt"):
        text_files(str(tmp_path / "nowhere"))


def test_stray_bytes_do_not_stop_a_run(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\nca\xff\xfe\nfine too\n")
    assert len(list(paragraphs(tmp_path / "a.txt"))) == 3


def test_the_hash_of_a_paragraph_is_the_same_everywhere():
    assert [i for i in range(400) if pretraining.is_held_out(str(i))] == [93, 335, 364]


def test_general_text_is_all_paragraphs_under_a_name_of_its_content(corpus, tmp_path):
    folder, lines = corpus
    name = register_general_text(str(folder))
    split = data.open_split(name, SPLIT, GENERAL_LENGTHS, tmp_path / "tokens")
    expected = [token for line in lines for token in DEFAULT_VOCABULARY.encode(line)]
    assert split.columns["targets"].values.tolist() == expected
    assert split.input_lengths.max() == GENERAL_LENGTHS["inputs"]
    assert split.target_lengths.max() == GENERAL_LENGTHS["targets"]
    # The same noise whenever it is read.
    np.testing.assert_array_equal(split.inputs(3), split.inputs(3))
    moved = folder.rename(tmp_path / "elsewhere")
    assert general_text_task(str(moved)) == name
    (moved / "a.txt").write_text("Other words.")
    assert register_general_text(str(moved)) != name


def test_general_text_may_be_json_lines(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "One\\ntwo."}\n\n{"text": ""}\n{"text": "Three.", "id": 3}\n')
    assert list(paragraphs(file)) == ["One two.", "Three."]
    for content, sentence in (("{", "line 2 is no JSON"), ('{"txt": 1}', "line 2 has no text")):
        file.write_text('{"text": "Fine."}\n' + content)
        with pytest.raises(PemtError, match=sentence):
            list(paragraphs(file))


def test_general_text_that_is_not_there_is_wrong_use(tmp_path):
    (tmp_path / "text.pdf").touch()
    with pytest.raises(UsageError, match="There is no .*text.txt, expected a file of text"):
        general_text_task(str(tmp_path / "text.txt"))
    with pytest.raises(UsageError, match="is no text file, expected one that ends in .txt"):
        general_text_task(str(tmp_path / "text.pdf"))
