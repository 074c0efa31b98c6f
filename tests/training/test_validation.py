"""How a run is judged: which metric chooses the best checkpoint, and what is reported."""

import math

import numpy as np
import pytest
import tiny_system  # registers the tasks

from pemt_jax.data import token_cache as data
from pemt_jax.parallel import partitioning
from pemt_jax.training import validation
from pemt_jax.training.validation import Validation


class FakeEvaluator:
    """Gives every row one answer and fixed numbers, and counts the rows that it was given."""

    def __init__(self, answer="positive"):
        self.answer = answer
        self.mesh = partitioning.make_mesh()

    def judge(self, params, splits):
        found = [([row for rows, _ in batches for row in rows], asked) for batches, asked in splits]
        self.rows = sum(len(rows) for rows, _ in found)
        self.predicted = [asked for _, asked in found]
        answers = [dict.fromkeys(rows, self.answer) if asked else {} for rows, asked in found]
        return {
            "loss": 2.0,
            "cross_entropy": 1.5,
            "task_sparsity_loss": 5.0,
            "gate/a": 0.25,
            "token_accuracy": 0.5,
            "gradient_norm": 3.0,
        }, answers


@pytest.fixture
def splits(tmp_path):
    def open_all(*names):
        return [
            data.open_split(name, "validation", tiny_system.LENGTHS, tmp_path) for name in names
        ]

    return open_all


def share(what, answer):
    targets = [target for _, target in tiny_system.rows(what, "validation")]
    return targets.count(answer) / len(targets)


def test_one_task_reports_losses_gates_and_its_own_metrics(splits):
    evaluator = FakeEvaluator()
    judge = Validation(evaluator, splits("tiny_mood"), 4)
    assert judge.best_metric == ("average", True)
    assert judge(None) == {
        "loss": 2.0,
        "cross_entropy": 1.5,
        "task_sparsity_loss": 5.0,
        "gate/a": 0.25,
        "accuracy": share("mood", "positive"),
        "average": share("mood", "positive"),
    }
    assert evaluator.rows == tiny_system.SIZES["validation"]


def test_tasks_of_a_mixture_are_reported_by_name_and_averaged(splits):
    evaluator = FakeEvaluator("film")
    metrics = Validation(evaluator, splits("tiny_mood", "tiny_topic"), 4)(None)
    assert metrics["tiny_mood/accuracy"] == 0
    assert metrics["tiny_topic/accuracy"] == share("topic", "film") > 0
    assert math.isclose(metrics["average"], share("topic", "film") / 2)
    assert evaluator.rows == 2 * tiny_system.SIZES["validation"]


def test_without_a_metric_the_loss_decides_and_nothing_is_decoded(splits):
    evaluator = FakeEvaluator()
    judge = Validation(evaluator, splits("tiny_text"), 4)
    assert judge.best_metric == ("loss", False)
    assert "average" not in judge(None) and evaluator.predicted == [False]


def test_a_task_without_metrics_counts_in_the_loss_only(splits):
    evaluator = FakeEvaluator()
    metrics = Validation(evaluator, splits("tiny_mood", "tiny_text"), 4)(None)
    assert metrics["accuracy"] == metrics["average"] == share("mood", "positive")
    assert evaluator.predicted == [True, False]
    assert evaluator.rows == 2 * tiny_system.SIZES["validation"]


def test_batches_have_the_lengths_asked_for(splits):
    (split,) = splits("tiny_mood")
    shapes = {
        batch["encoder_input_tokens"].shape
        for _, batch in Validation(FakeEvaluator(), [split], 4, buckets=(9, 12)).batches(split)
    }
    assert shapes == {(4, 9), (4, 12)}
    assert np.max(split.input_lengths) <= 12


def test_the_majority_class_is_scored_by_the_tasks_own_metric(splits):
    (mood,) = splits("tiny_mood")
    targets = [target for _, target in tiny_system.rows("mood", "validation")]
    share = max(map(targets.count, targets)) / len(targets)
    assert 0.5 < share < 1
    assert Validation(FakeEvaluator(), [mood], 4).majority == share
    both = Validation(FakeEvaluator(), splits("tiny_mood", "tiny_topic"), 4).majority
    topics = [target for _, target in tiny_system.rows("topic", "validation")]
    topic = max(map(topics.count, topics)) / len(topics)
    assert math.isclose(both, (share + topic) / 2)


def test_what_is_no_classification_has_no_majority_class(splits, monkeypatch):
    assert Validation(FakeEvaluator(), splits("tiny_text"), 4).majority is None  # no metric
    monkeypatch.setattr(validation, "MOST_CLASSES", 2)
    assert Validation(FakeEvaluator(), splits("tiny_topic"), 4).majority is None
    assert Validation(FakeEvaluator(), splits("tiny_mood", "tiny_topic"), 4).majority is None
