"""Files of every distribution are read as TFDS's own generators read them, in their order."""

import gzip

import numpy as np
import pytest
import raw_files
import tensorflow_datasets as tfds

from pemt_jax.tasks.sources.raw import glue, others
from pemt_jax.tasks.sources.raw.layouts import LAYOUTS
from pemt_jax.tasks.sources.raw.raw_rows import RawRows

VERSIONS = {"glue": "2.0.0", "super_glue": "1.0.2", "squad": "3.0.0", "mrqa": "1.0.0"}
OWN = ("glue/mrpc", "sci_tail")  # TFDS reads MSR's files; quotes as quotation marks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return raw_files.write(tmp_path_factory.mktemp("raw"))


@pytest.fixture
def raw(folder, monkeypatch):
    monkeypatch.setenv("PEMT_JAX_RAW_DATA", str(folder))
    return lambda name: RawRows(name, "mine")


def flat(example, builder):
    """An example of a TFDS generator with numbers for its labels and slashes in nested names."""
    made = {}
    for name, value in example.items():
        if name == "label":
            made[name] = builder.info.features[name].encode_example(value)
        elif isinstance(value, dict):
            made |= {f"{name}/{part}": inner for part, inner in value.items()}
        else:
            made[name] = value
    return made


def generated(name, path, split):
    """The examples that TFDS makes of a file."""
    builder = tfds.builder(name)
    kind = name.partition("/")[0]
    arguments = {
        "glue": (path, split.partition("_")[0]),
        "super_glue": (path, split),
        "mrqa": (path, split),
        "paws_wiki": (path, path, {}),
    }.get(kind, (path,))
    for _, example in builder._generate_examples(*arguments):
        yield flat(example, builder)


def plain(value):
    return value.decode() if isinstance(value, bytes) else value


CASES = [
    (name, split)
    for name, (layout, *_) in LAYOUTS.items()
    for split in layout.files
    if name not in OWN and name != "mrqa/squad"
]


@pytest.mark.parametrize("name, split", CASES)
def test_rows_are_those_of_tfds(raw, tmp_path, name, split):
    rows = raw(name)
    path = rows.shards(split)[0]
    if path.endswith(".gz"):  # TFDS unpacks what it downloads
        unpacked = tmp_path / "file"
        unpacked.write_bytes(gzip.decompress(open(path, "rb").read()))
        path = unpacked
    expected = list(generated(name, path, split))
    fields = [field for field in expected[0] if field in rows._columns(split)]
    missing = set(expected[0]) - set(fields)
    assert missing <= {
        "answers/answer_start",
        "context_tokens",
        "question_tokens",
        "detected_answers",
    }
    columns = rows.columns(split, fields)
    found = [{field: plain(columns[field][n]) for field in fields} for n in range(rows.size(split))]
    assert found == [{field: row[field] for field in fields} for row in expected]
    assert len(found) > 1 or split.startswith("test")


def test_every_tfds_split_of_a_task_has_a_file():
    for name, (layout, *_) in LAYOUTS.items():
        assert {*tfds.builder(name).info.features}  # the name is one of TFDS
        if name.startswith(("glue/mnli", "winogrande")):
            assert len(layout.files) in (5, 7)
        elif name.endswith(("ax", "axb", "axg")):
            assert {*layout.files} == {"test"}
        else:
            assert {"train", "validation", "test"} >= {*layout.files} >= {"train"}


def test_mrpc_begins_with_a_mark_and_keeps_its_quotes(raw):
    rows = raw("glue/mrpc:2.0.0")
    columns = rows.columns("validation", ["sentence1", "sentence2", "label", "idx"])
    assert columns["sentence1"].tolist() == [b'He said "no.', b"x"]
    assert columns["label"].tolist() == [1, 0] and columns["idx"].tolist() == [0, 1]
    assert rows.columns("test", ["label"])["label"].tolist() == [-1]


@pytest.mark.parametrize("form", ["snli_format", "tsv_format"])
def test_an_unpaired_quote_of_scitail_swallows_nothing(tmp_path, monkeypatch, form):
    files = raw_files.OTHERS if form == "snli_format" else raw_files.SCITAIL_TSV
    raw_files.write(tmp_path, {name: text for name, text in files.items() if form in name})
    monkeypatch.setenv("PEMT_JAX_RAW_DATA", str(tmp_path))
    rows = RawRows("sci_tail:1.0.0", "mine")
    assert form in rows.shards("train")[0]
    columns = rows.columns("train", ["premise", "hypothesis", "label"])
    assert columns["premise"].tolist() == [b'An "odd quote.', b"Water"]
    assert columns["hypothesis"].tolist() == [b"It is odd.", b'boils" now']
    assert columns["label"].tolist() == [0, 1]


def test_numbers_of_classes_are_those_of_tfds():
    def names(name):
        return tuple(tfds.builder(name).info.features["label"].names)

    assert glue.INFERRED == names("glue/mnli:2.0.0")
    assert glue.ENTAILED == names("glue/qnli:2.0.0") == names("super_glue/rte:1.0.2")
    assert others.SCITAIL == names("sci_tail:1.0.0")


def test_a_score_is_rounded_to_float32_as_in_tfds(raw):
    labels = raw("glue/stsb:2.0.0").columns("train", ["label"])["label"]
    assert labels.tolist() == [float(np.float32(3.85)), 0.25, 5.0]
