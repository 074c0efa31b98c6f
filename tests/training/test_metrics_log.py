"""metrics.jsonl: its format, what a resumed run keeps of it, and the writers beside it."""

import json
import math
import resource
import sys
import time
from unittest import mock

import jax
import numpy as np
import pytest
from clu.metric_writers import MetricWriter

from pemt_jax.common.errors import PemtError
from pemt_jax.training.metrics_log import MetricsLog, read_metrics


def lines_only(folder, **options) -> MetricsLog:
    return MetricsLog(folder, tensorboard=False, **options)


def test_a_line_is_one_json_object(tmp_path):
    before = time.time()
    with lines_only(tmp_path) as log:
        log.write(np.int64(5), "train", {"loss": jax.numpy.float32(1.5), "gate/rte": 0.25})
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1  # flushed at once
        log.write(6, "validation", {"accuracy": 90})
    text = (tmp_path / "metrics.jsonl").read_text()
    first, second = (json.loads(line) for line in text.splitlines())
    assert list(first) == ["step", "kind", "time", "loss", "gate/rte"]
    assert before - 1 < first.pop("time") < time.time() + 1
    assert first == {"step": 5, "kind": "train", "loss": 1.5, "gate/rte": 0.25}
    assert (second["kind"], second["accuracy"]) == ("validation", 90.0)


def test_numbers_that_are_not_finite_are_null(tmp_path):
    with lines_only(tmp_path) as log:
        log.write(1, "train", {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.0})
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert [row[name] for name in "abcd"] == [None, None, None, 0.0]


def test_a_resumed_run_has_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with lines_only(tmp_path) as log:
        for step in (5, 10, 15):
            log.write(step, "train", {"loss": 1.0})
        log.write(10, "validation", {"loss": 1.0})
    with path.open("ab") as file:
        file.write(b'\xff\n[7]\n{"step": 20, "ki')  # a crash in the middle of a line
    before = path.read_bytes()
    with lines_only(tmp_path) as log:
        log.resume(10, evaluated=None)
        assert path.read_bytes() == before  # nothing is dropped until the first line is written
        log.write(15, "train", {"loss": 2.0})
    rows = [(row["step"], row["kind"], row["loss"]) for row in read_metrics(path)]
    assert rows == [(5, "train", 1.0), (10, "train", 1.0), (15, "train", 2.0)]
    assert path.read_text().count("\n") == 3
    with lines_only(tmp_path) as log:
        log.resume(15, evaluated=10)
        log.write(20, "validation", {"loss": 3.0})
    assert [row["step"] for row in read_metrics(path)] == [5, 10, 15, 20]


def test_other_writers_get_the_same_numbers(tmp_path):
    writer = mock.create_autospec(MetricWriter, instance=True)
    with lines_only(tmp_path, writers=[writer]) as log:
        log.write(3, "train", {"loss": 1.5, "gate/rte": 0.25})
        log.write(4, "validation", {"loss": 2.5})
        writer.close.assert_not_called()
    assert writer.write_scalars.call_args_list == [
        mock.call(3, {"train/loss": 1.5, "train/gate/rte": 0.25}),
        mock.call(4, {"validation/loss": 2.5}),
    ]
    assert [name for name, *_ in writer.method_calls][-2:] == ["flush", "close"]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["kind"], row["loss"]) for row in rows] == [
        (3, "train", 1.5),
        (4, "validation", 2.5),
    ]


def test_tensorboard_files_have_the_same_numbers(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(3, "train", {"loss": 1.5})
    (events,) = tmp_path.glob("events.*")
    assert b"train/loss" in events.read_bytes()
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1.5]


def test_json_lines_are_written_where_tensorboard_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "clu.metric_writers", None)
    with MetricsLog(tmp_path) as log:
        log.write(3, "train", {"loss": 1.5})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writer = mock.create_autospec(MetricWriter, instance=True)
    with lines_only(tmp_path / "run", writers=[writer]) as log:
        log.write(3, "train", {"loss": 1.5})
    assert not (tmp_path / "run").exists()
    assert writer.method_calls == []


def assert_cannot_be_written(log: MetricsLog, reason: str) -> None:
    with pytest.raises(PemtError, match=f"^Cannot write {log.path}: {reason}.$"):
        log.write(4, "train", {"loss": 1.0})
    log.close()  # and does not try to write again


def test_a_removed_file_is_one_sentence(tmp_path):
    log = lines_only(tmp_path)
    log.write(3, "train", {"loss": 1.0})
    log.path.unlink()
    assert_cannot_be_written(log, "No such file or directory")


@pytest.mark.parametrize("written", [0, 1])
def test_a_full_disk_is_one_sentence(tmp_path, written):
    log = lines_only(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    log.resume(1)
    for step in range(written):
        log.write(2 + step, "train", {"loss": 1.0})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, before[1]))
    try:
        assert_cannot_be_written(log, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_rows_that_no_run_writes_are_left_out(tmp_path):
    steps = ("null", '"x"', "[1]", "1e999", "true", "1" + "0" * 5000)
    lines = [f'{{"step": {step}, "kind": "train"}}' for step in steps]
    lines += ["[" * 100_000, '{"step": 3, "kind": "\\ud800"}', '{"step": 4, "kind": "train"}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 4, "kind": "train"}]
