"""What a run prints about its progress, on a terminal and elsewhere."""

import sys

import jax
import pytest

from pemt_jax.training import progress as module
from pemt_jax.training.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when a test moves it, in seconds."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_a_log_point_is_one_line_without_a_terminal(capsys, clock):
    with Progress(total=20, done=10) as progress:
        for _ in range(4):
            clock[0] += 0.5
            progress.step(8)
        progress.report(14, {"loss": 1.25, "accuracy": 90.0} | progress.rates())
    # Four steps took 2 seconds; six are left.
    expected = "step 14/20  loss 1.25  examples/s 16.0  left 00:03\n"
    assert capsys.readouterr() == ("", expected)


def test_what_takes_long_is_a_line_the_first_time_where_there_is_no_bar(capsys):
    with Progress(total=20, done=10) as progress:
        for text in ("compiling", "", "evaluating", "compiling"):
            progress.note(text)
    assert capsys.readouterr().err == "step 10/20  compiling\nstep 10/20  evaluating\n"


def test_an_evaluation_shows_each_number_once_with_four_digits(capsys):
    metrics = {"cross_entropy": 0.19596175849437714, "loss": 0.19596175849437714}
    metrics |= {"accuracy": 58.23333333, "average": 58.23333333}
    Progress(total=20, done=10).evaluated(10, metrics)
    assert capsys.readouterr().err == "step 10/20  validation: loss 0.196  accuracy 58.23\n"
    Progress(total=20, done=10).evaluated(10, {"cross_entropy": 0.5, "loss": 0.6, "average": 1.0})
    shown = "step 10/20  validation: cross_entropy 0.5  loss 0.6  average 1\n"
    assert capsys.readouterr().err == shown


def test_evaluations_are_no_part_of_the_rates(capsys, clock):
    progress = Progress(total=20, done=0, name="rte")
    clock[0] += 1.0
    progress.step(4)
    clock[0] += 60.0
    progress.evaluated(1, {"loss": 0.5, "accuracy": 75})
    clock[0] += 2.0
    progress.step(4)
    assert progress.rates() == {"examples_per_second": 2.0}
    assert capsys.readouterr().err == "rte: step 1/20  validation: loss 0.5  accuracy 75\n"


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_process_prints_and_only_if_asked(capsys, monkeypatch, first):
    monkeypatch.setattr(jax, "process_index", lambda: 0 if first else 1)
    progress = Progress(total=2, done=0, shown=not first)
    progress.step(1)
    progress.report(1, {"loss": 1.0, "examples_per_second": 1.0})
    progress.evaluated(1, {"loss": 1.0})
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_and_evaluations_above_it(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(total=4, done=2) as progress:
        progress.note("compiling")
        progress.step(8)
        progress.evaluated(3, {"loss": 0.5})
        progress.step(8)
        progress.report(4, {"loss": 0.25, "examples_per_second": 8.0})
    shown = capsys.readouterr().err
    assert "step 3/4  validation: loss 0.5\n" in shown
    assert "compiling" in shown and "4/4" in shown and "loss=0.25" in shown


def test_a_job_of_several_tasks_has_no_bars(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(total=4, done=0, name="rte") as progress:
        progress.step(8)
        progress.report(1, {"loss": 0.25, "examples_per_second": 8.0})
    assert capsys.readouterr().err.startswith("rte: step 1/4  loss 0.25  ")
