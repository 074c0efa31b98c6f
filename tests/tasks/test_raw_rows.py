"""The folder of raw data: what is found there, the rows that tasks then have, faulty files."""

import gzip
import json

import gin
import numpy as np
import pytest
import raw_files
import seqio

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.tasks.__main__ import main
from pemt_jax.tasks.sources.permutation import torch_randperm
from pemt_jax.tasks.sources.raw import folder
from pemt_jax.tasks.sources.raw.raw_rows import RawRows


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Write files below a new folder and make it the folder of raw data."""
    root = tmp_path / "raw"
    root.mkdir()
    monkeypatch.setenv("PEMT_JAX_RAW_DATA", str(root))

    return lambda files: raw_files.write(root, files)


def cola(*labels):
    return raw_files.tsv(*(("x", label, "", f"Sentence {n}.") for n, label in enumerate(labels)))


def texts(task, split):
    task = seqio.TaskRegistry.get(task)
    dataset = task.preprocess_precache(task.source.get_dataset(split, shuffle=False))
    return [
        (int(row["row"]), row["inputs"].decode(), row["targets"].decode())
        for row in dataset.as_numpy_iterator()
    ]


def test_every_task_of_the_registry_has_its_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("PEMT_JAX_RAW_DATA", str(raw_files.write(tmp_path)))
    assert texts("pemt_cola", "train")[1] == (1, "sentence: Sat cat.", "unacceptable")
    assert texts("pemt_mnli", "test")[0][2] == "neutral"
    assert texts("pemt_stsb", "train")[0][2] == "3.8"
    assert texts("pemt_multirc", "train")[0] == (
        0,
        "question: Who? answer: a cat paragraph: A b.",
        "False",
    )
    assert texts("pemt_wsc", "train")[1][1] == "text: * The men * said # they # ran"
    entities = "record query: @placeholder left entities: Ann, Bob passage: "
    assert texts("pemt_record", "train")[0][1:] == (f"{entities}Ann met Bob. Ann left", "Ann")
    assert texts("pemt_squad", "train")[1][2] == "U"
    assert texts("pemt_nq", "train")[0][2] == "Bob"
    assert texts("pemt_winogrande", "train")[0][2] == "cat"
    assert texts("pemt_yelp", "train")[0] == (0, 'sentence: So ""good"" \\n here.', "1")
    assert texts("pemt_scitail", "train")[0][2] == "entailment"
    assert texts("pemt_paws", "train")[0][1:] == (
        "sentence1: `` A '' to B . sentence2: B to 5 \" A .",
        "0",
    )


def test_splits_follow_the_file_and_no_index_file(raw, tmp_path, monkeypatch):
    raw({"CoLA/train.tsv": cola(*"0101"), "CoLA/dev.tsv": cola(*"0110010")})
    (tmp_path / "pemt_cola.json").write_text(json.dumps({"validation": [6, 5, 4, 3, 2, 1, 0]}))
    monkeypatch.setenv("PEMT_JAX_INDEX_FILES", str(tmp_path))
    source = seqio.TaskRegistry.get("pemt_cola").source
    assert source.rows("train").tolist() == [0, 1, 2, 3]
    assert source.rows("validation").tolist() == torch_randperm(7)[:3].tolist()
    assert source.rows("test").tolist() == torch_randperm(7)[3:].tolist()
    assert source.num_input_examples("test") == 4


def test_a_data_set_without_files_there_is_tfdss(raw, tiny_data):
    raw({"CB/train.jsonl": "{}"})
    source = seqio.TaskRegistry.get("pemt_cola").source
    assert str(source.data) == "tfds glue/cola:2.0.0" and len(source.rows("train")) == 5
    raw({"CoLA/train.tsv": cola(*"01")})
    assert str(source.data) == "raw glue/cola" and len(source.rows("train")) == 2


@pytest.mark.parametrize("name", ["SST-2", "sst2", "sst_2", "GLUE/SST-2", "glue_data/SST-2"])
def test_folders_are_found_by_names_written_in_other_ways(raw, name):
    raw({f"{name}/train.tsv": "sentence\tlabel\nfine\t1\n", "SST/train.tsv": "sentence\tlabel\n"})
    assert RawRows("glue/sst2:2.0.0", "mine").size("train") == 1


def test_two_suites_may_share_a_folder(raw):
    raw({name: text for name, text in raw_files.FILES.items() if name.startswith("RTE/")})
    for name, fields in (("glue", "sentence1"), ("super_glue", "premise")):
        rows = RawRows(f"{name}/rte:1.0.2", "mine")
        assert rows.columns("train", [fields, "label"])["label"].tolist() == [1, 0]


def test_files_may_be_compressed_or_not(raw, tmp_path):
    mrqa = "MRQA/train/NewsQA.jsonl"
    raw({mrqa: raw_files.mrqa("NewsQA", "train")})
    assert RawRows("mrqa/news_qa:1.0.0", "mine").size("train") == 2
    raw({"CoLA/train.tsv.gz": cola(*"01")})
    assert RawRows("glue/cola:2.0.0", "mine").size("train") == 2


def test_gin_names_the_folder(tmp_path):
    raw_files.write(tmp_path, {"CoLA/train.tsv": cola(*"01")})
    gin.parse_config(
        "from __gin__ import dynamic_registration\n"
        "from pemt_jax.tasks.sources.raw import folder\n"
        f"folder.folder_of_raw_data.folder = '{tmp_path}'\n"
    )
    assert folder.found("glue/cola:2.0.0")[1] == tmp_path / "CoLA"
    gin.clear_config()
    assert folder.found("glue/cola:2.0.0") is None


def test_what_the_file_holds_is_part_of_the_cache_key(raw):
    raw({"CoLA/train.tsv": cola(*"01"), "CoLA/dev.tsv": cola(*"01")})
    source = seqio.TaskRegistry.get("pemt_cola").source
    before, other = source.fingerprint("train"), source.fingerprint("test")
    raw({"CoLA/train.tsv": cola(*"011")})
    assert source.fingerprint("train") != before and len(source.rows("train")) == 3
    assert source.fingerprint("test") == other


def test_prepare_and_list_need_no_tfds(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    raw({"CoLA/train.tsv": cola(*"01"), "CoLA/dev.tsv": cola(*"0110")})
    assert main(["list", "pemt_cola"]) == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line == "pemt_cola ? ? ? on disk matthews raw glue/cola".split()
    assert main(["prepare", "pemt_cola", f"--cache_dir={tmp_path / 'cache'}"]) == 0
    assert (tmp_path / "cache" / "pemt_cola" / "COMPLETED").exists()


def raises(kind, name, split, message):
    with pytest.raises(kind, match=message) as caught:
        RawRows(name, "mine").columns(split, ["label"])
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_sentence_that_names_it(raw):
    raw({"cola/train.tsv": cola(*"01"), "MNLI/train.tsv": ""})
    raises(
        UsageError,
        "glue/cola:2.0.0",
        "validation",
        "The file .*raw/cola/dev.tsv of split 'validation' of task 'mine' does not exist, "
        "expected GLUE's CoLA/dev.tsv there.$",
    )
    raises(
        PemtError,
        "glue/mnli:2.0.0",
        "validation",
        "GLUE's MNLI of task 'mine' has no split 'validation' .nearest: 'validation_",
    )


@pytest.mark.parametrize(
    "path, content, name, reason",
    [
        ("CoLA/train.tsv", "a\tb\n", "glue/cola", r"0 rows \(list index out of range\)"),
        ("CoLA/train.tsv", "", "glue/cola", r"0 rows \(it has none\)"),
        ("RTE/train.tsv", "index\tlabel\n", "glue/rte", r"0 rows \(it has no column 'sentence1'\)"),
        (
            "RTE/train.tsv",
            "sentence1\tsentence2\tlabel\na\tb\tentailment\na\tb\tmaybe\n",
            "glue/rte",
            r"1 rows \(invalid literal for int\(\) with base 10: 'maybe'\)",
        ),
        ("CB/train.jsonl", '{"premise": "a"}\n', "super_glue/cb", r"0 rows \(no 'hypothesis'\)"),
        ("CB/train.jsonl", "oops\n", "super_glue/cb", r"0 rows \(Expecting value: line 1"),
        ("SQuAD/train-v1.1.json", "[]", "squad/v1.1", "0 rows"),
        (
            "MRQA/train/NewsQA.jsonl",
            "{}\n",
            "mrqa/news_qa",
            r"0 rows \(its first line is no header",
        ),
    ],
)
def test_a_foreign_file_is_one_sentence(raw, path, content, name, reason):
    raw({path: content})
    found = path.replace(".jsonl", ".jsonl(.gz)?") if "MRQA" in path else path
    raises(
        PemtError,
        f"{name}:1.0.0",
        "train",
        f"The file .*raw/.* of split 'train' of task 'mine' cannot be read after {reason}.*, "
        rf"expected \w+'s {found}\.$",
    )


def test_a_damaged_archive_is_one_sentence(raw, tmp_path):
    raw({"MRQA/train/NewsQA.jsonl.gz": raw_files.mrqa("NewsQA", "train")})
    path = tmp_path / "raw" / "MRQA" / "train" / "NewsQA.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * 1000)[:-10])
    raises(PemtError, "mrqa/news_qa:1.0.0", "train", "cannot be read after 0 rows")


def test_a_missing_folder_or_data_set_is_one_sentence(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(PemtError) as caught:
        seqio.TaskRegistry.get("pemt_cb").source.rows("train")
    assert str(caught.value).endswith(
        "expected what `python -m pemt_jax.tasks prepare pemt_cb` puts there, or SuperGLUE's "
        f"CB/train.jsonl and its other files in {tmp_path}/raw."
    )
    monkeypatch.setenv("PEMT_JAX_RAW_DATA", str(tmp_path / "typo"))
    with pytest.raises(UsageError, match="The folder of raw data .*/typo does not exist, expected"):
        seqio.TaskRegistry.get("pemt_cb").source.rows("train")


def test_labels_that_are_not_the_tasks_are_found(raw):
    raw({"CoLA/train.tsv": cola(*"01"), "CoLA/dev.tsv": cola(*"0727")})
    with pytest.raises(PemtError, match="of task 'pemt_cola' has the label 7, expected 0 to 1"):
        seqio.TaskRegistry.get("pemt_cola").source.get_dataset("test")


def test_few_shot_draws_are_of_the_file(raw):
    raw({"CoLA/train.tsv": cola(*"0101010101"), "CoLA/dev.tsv": cola(*"01")})
    source = seqio.TaskRegistry.get("pemt_cola_4").source
    labels = source.data.columns("train", ["label"])["label"]
    assert np.bincount(labels[source.rows("train")]).tolist() == [4, 4]
