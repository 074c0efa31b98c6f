"""Text in, text out: a finished run used line by line."""

import io
import json

import numpy as np
import pytest
from tiny_system import EXPERTS, snapshot, world_fixture  # noqa: F401

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.predict import predict
from pemt_jax.runs.predict import encode
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY


@pytest.fixture
def rows(world):
    return world.by_hand(world.target)


def lines(rows):
    return "".join(f"{row['input']}\n" for row in rows)


def test_lines_of_standard_input_are_answered_in_order(world, rows, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(lines(rows)))
    predict(model_dir=str(world.target), batch_size=4)
    assert capsys.readouterr().out.splitlines() == [row["prediction"] for row in rows]


def test_scanned_layers_answer_the_same(world, rows, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(lines(rows)))
    predict(model_dir=str(world.target), batch_size=4, scan_layers=True)
    assert capsys.readouterr().out.splitlines() == [row["prediction"] for row in rows]


def test_a_file_gets_an_object_a_line_with_score_and_gate(world, rows, tmp_path, capsys):
    (tmp_path / "in.txt").write_text(lines(rows))
    out = tmp_path / "new" / "out.jsonl"
    predict(
        model_dir=str(world.target),
        input_file=str(tmp_path / "in.txt"),
        output_file=str(out),
        batch_size=4,
    )
    assert capsys.readouterr().out == ""
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(found) == len(rows)
    for object_, row in zip(found, rows, strict=True):
        assert (object_["input"], object_["prediction"]) == (row["input"], row["prediction"])
        np.testing.assert_allclose(object_["log_probability"], row["score"], rtol=1e-5)
        assert tuple(object_["gate"]) == EXPERTS
        np.testing.assert_allclose(list(object_["gate"].values()), row["mean_gate"], rtol=1e-5)
        np.testing.assert_allclose(sum(object_["gate"].values()), 1, rtol=1e-5)


def test_another_file_gets_a_prediction_a_line(world, rows, tmp_path):
    (tmp_path / "in.txt").write_text(lines(rows))
    predict(
        model_dir=str(world.target),
        input_file=str(tmp_path / "in.txt"),
        output_file=str(tmp_path / "out.txt"),
        batch_size=4,
    )
    assert (tmp_path / "out.txt").read_text().splitlines() == [row["prediction"] for row in rows]


def test_a_model_without_experts_has_no_gate(world, tmp_path):
    (tmp_path / "in.txt").write_text("mood: the good film\n")
    predict(
        model_dir=str(world.library / "tiny_mood"),
        input_file=str(tmp_path / "in.txt"),
        output_file=str(tmp_path / "out.jsonl"),
        batch_size=1,
    )
    (found,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert found.keys() == {"input", "prediction", "log_probability"}


def test_empty_lines_are_lines_and_no_input_is_no_output(world, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\nmood: the good film"))
    predict(model_dir=str(world.target), batch_size=4)
    assert len(capsys.readouterr().out.splitlines()) == 3
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    predict(model_dir=str(world.target), batch_size=4)
    assert capsys.readouterr().out == ""


def test_beams_answer_every_line_and_leave_the_gate_alone(world, rows, tmp_path):
    (tmp_path / "in.txt").write_text(lines(rows))
    predict(
        model_dir=str(world.target),
        input_file=str(tmp_path / "in.txt"),
        output_file=str(tmp_path / "out.jsonl"),
        batch_size=4,
        num_beams=2,
    )
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [object_["input"] for object_ in found] == [row["input"] for row in rows]
    for object_, row in zip(found, rows, strict=True):
        np.testing.assert_allclose(list(object_["gate"].values()), row["mean_gate"], rtol=1e-5)


def test_a_long_line_keeps_its_end_token():
    text = "the good film " * 20
    assert encode(text, 7).tolist() == [*DEFAULT_VOCABULARY.encode(text)[:6], 1]
    assert encode("good", 7).tolist() == [*DEFAULT_VOCABULARY.encode("good"), 1]
    assert encode("", 1).tolist() == [1]


@pytest.mark.parametrize(
    "option", ["batch_size", "max_input_length", "num_beams", "max_decode_length"]
)
def test_a_count_below_one_is_refused(world, option):
    with pytest.raises(UsageError, match=f"Found {option.upper()} 0, expected 1 or more"):
        predict(model_dir=str(world.target), **{option: 0})


def test_input_that_is_no_text_is_one_sentence_and_no_output(world, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"mood: the good film\nmood: the b\xe4d film\n")
    before = snapshot(tmp_path)
    with pytest.raises(PemtError, match="in.txt is not UTF-8 text"):
        predict(
            model_dir=str(world.target),
            input_file=str(tmp_path / "in.txt"),
            output_file=str(tmp_path / "out.txt"),
            batch_size=1,
        )
    assert snapshot(tmp_path) == before


def test_a_missing_input_file_is_named(world, tmp_path):
    with pytest.raises(UsageError, match="There is no file .*in.txt, expected lines of text"):
        predict(model_dir=str(world.target), input_file=str(tmp_path / "in.txt"))
