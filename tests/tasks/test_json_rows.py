"""JSON-lines files as rows, and the sentences for those that do not fit."""

import json

import pytest

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.tasks.sources.json_rows import JsonRows


@pytest.fixture
def rows(tmp_path):
    def make(*lines, split="train"):
        path = tmp_path / f"{split}.jsonl"
        path.write_text(
            "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        )
        return JsonRows({split: str(path)}, "mine")

    return make


def test_rows_are_read_with_their_numbers(rows):
    found = rows(
        {"text": "caf\u00e9", "label": 1, "deep": {"score": 0.5}, "all": ["a", "b"]},
        "",
        {"text": "", "label": 0, "deep": {"score": 2}, "all": []},
    )
    assert found.sizes() == {"train": 2}
    columns = found.columns("train", ["label", "deep/score", "text"])
    assert columns["label"].tolist() == [1, 0] and columns["deep/score"].tolist() == [0.5, 2.0]
    dataset = found.read("train", ["text", "all"], named="train", keep=None)
    read = list(dataset.as_numpy_iterator())
    assert [row["text"].decode() for row in read] == ["caf\u00e9", ""]
    assert [row["all"].tolist() for row in read] == [[b"a", b"b"], []]
    assert [(row["row"], row["split"]) for row in read] == [(0, b"train"), (1, b"train")]
    (kept,) = found.read(
        "train", ["text"], named="x", keep=columns["label"] == 0
    ).as_numpy_iterator()
    assert (kept["row"], kept["text"]) == (1, b"")


@pytest.mark.parametrize(
    "lines, message",
    [
        (
            ({"text": "a"}, {"txt": "b"}),
            "Row 1 of split 'train' of task 'mine' has no field 'text' "
            r"\(.*train.jsonl\) \(nearest: 'txt'\)",
        ),
        (
            ({"text": "a"}, {"text": None}),
            "Row 1 of split 'train' of task 'mine' has no field 'text'",
        ),
        (
            ({"text": "a"}, {"text": 3}),
            "Row 1 of split 'train' of task 'mine' has 3 in the field "
            "'text', expected a text as in row 0",
        ),
        (({"text": "a"}, "{oops"), "Line 2 of .*train.jsonl of task 'mine' is not JSON"),
        (({"text": "a"}, "[" * 100_000), "Line 2 .*is not JSON .it is nested too deep"),
        (
            ({"text": "a"}, '{"text": "\\ud800"}'),
            "Line 2 .*is not JSON .it has half of a surrogate",
        ),
        (({"text": 1}, {"text": 10**400}), "Row 1 .*has 1000.*00... in the field 'text', expected"),
        (({"text": "a"}, "[1]"), "Line 2 of .*train.jsonl of task 'mine' is not an object"),
    ],
)
def test_faulty_rows_are_one_sentence(rows, lines, message):
    with pytest.raises(PemtError, match=message) as caught:
        rows(*lines).columns("train", ["text"])
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path):
    rows = JsonRows({"train": str(tmp_path / "none.jsonl")}, "mine")
    assert rows.sizes() is None
    with pytest.raises(UsageError, match="none.jsonl of split 'train' of task 'mine' does not"):
        rows.columns("train", ["text"])
    with pytest.raises(PemtError, match="no file of a split 'trian' .nearest: 'train'"):
        rows.shards("trian")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_rows_in_another_encoding_are_one_sentence(tmp_path, encoding):
    file = tmp_path / "train.jsonl"
    file.write_bytes('{"text": "caf\u00e9"}\n'.encode(encoding))
    with pytest.raises(PemtError, match="train.jsonl is no UTF-8 text .*expected JSON lines for"):
        JsonRows({"train": str(file)}, "mine").columns("train", ["text"])
    file.write_bytes('\ufeff{"text": "caf\u00e9"}\n'.encode())
    found = JsonRows({"train": str(file)}, "other").columns("train", ["text"])
    assert found["text"].tolist() == ["caf\u00e9".encode()]
