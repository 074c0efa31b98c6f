import clu.metrics
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
from tiny_system import world_fixture  # noqa: F401

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.data.batching import eval_batches
from pemt_jax.data.token_cache import open_split
from pemt_jax.finished_config import FinishedConfig
from pemt_jax.parallel import partitioning
from pemt_jax.runs.finished import open_run
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY
from pemt_jax.training.evaluator import Evaluator, decode, score, with_average

VOCABULARY = seqio.ByteVocabulary()
LABELS = ("bad", "good")


def to_label(text, example=None, is_target=False):
    """Targets are wrapped to show that postprocessing knows which side it is on."""
    assert example["label"] in LABELS
    return ("target", text) if is_target else ("predicted", text.strip())


def accuracy(targets, predictions):
    assert all(
        t[0] == "target" and p[0] == "predicted" for t, p in zip(targets, predictions, strict=True)
    )
    right = [t[1] == p[1] for t, p in zip(targets, predictions, strict=True)]
    return {"accuracy": 100 * np.mean(right)}


def others(targets, predictions):
    return {"rows": seqio.metrics.Scalar(len(targets)), "sample": seqio.metrics.Text("no number")}


def make_task(**options):
    features = {name: seqio.Feature(VOCABULARY) for name in ("inputs", "targets")}
    source = seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=("test",))
    options = {"postprocess_fn": to_label, "metric_fns": [accuracy, others]} | options
    return seqio.Task("evaluator_test", source, features, [], **options)


class Split:
    """What the evaluator needs of data.TokenizedSplit."""

    def __init__(self, texts, pretokenized=True):
        self.texts, self.pretokenized = texts, pretokenized

    def __len__(self):
        return len(self.texts)

    def targets(self, row):
        return np.array([*VOCABULARY.encode(self.texts[row]), VOCABULARY.eos_id], np.int32)

    def example(self, row):
        text = {"targets_pretokenized": self.texts[row].encode()} if self.pretokenized else {}
        return {"label": self.texts[row], **text}


@pytest.mark.parametrize("pretokenized", [True, False])
def test_task_scores_texts_by_its_own_functions(pretokenized):
    split = Split(["good", "bad", "good", "good"], pretokenized)
    predictions = {3: "good", 0: " good ", 1: "good", 2: "nonsense"}
    assert score(make_task(), split, predictions) == {"accuracy": 50.0, "rows": 4.0}


def test_row_without_prediction_is_one_sentence():
    with pytest.raises(UsageError, match="1 predictions, expected 2"):
        score(make_task(), Split(["good", "bad"]), {0: "good"})


def test_task_without_metric_is_one_sentence():
    with pytest.raises(UsageError, match="no metric function"):
        score(make_task(metric_fns=[]), Split(["good"]), {0: "good"})


@pytest.mark.parametrize("tail", [[1, 0, 0], [0, 0], [], [1, 35, 36]])
def test_text_ends_at_the_end_of_sequence_or_the_first_padding(tail):
    assert decode(VOCABULARY, np.array(VOCABULARY.encode("good") + tail)) == "good"


def test_average_is_over_tasks_not_over_metrics():
    found = with_average({"a": {"em": 1.0, "f1": 3.0}, "b": {"accuracy": 8.0}})
    assert found == {"a/em": 1.0, "a/f1": 3.0, "b/accuracy": 8.0, "average": 5.0}
    assert with_average({"a": {"em": 1.0, "f1": 3.0}}) == {"em": 1.0, "f1": 3.0, "average": 2.0}


def echo(params, batch):
    return batch["decoder_target_tokens"] + params["shift"]


def batches_of(texts, size):
    """Batches in reverse order, the last filled with empty rows."""
    width = 8
    for start in range(0, len(texts), size):
        rows = np.arange(len(texts))[::-1][start : start + size]
        tokens = np.zeros((size, width), np.int32)
        for i, row in enumerate(rows):
            ids = [*VOCABULARY.encode(texts[row]), 1]
            tokens[i, : len(ids)] = ids
        yield (
            rows,
            {
                "decoder_target_tokens": tokens,
                "decoder_loss_weights": (tokens > 0).astype(np.int32),
            },
        )


def token_loss(params, batch):
    """Loss of a token is its number; one metric by token, one by row."""
    weights = batch["decoder_loss_weights"]
    tokens = batch["decoder_target_tokens"]
    rows = jnp.any(weights > 0, axis=-1)
    first = clu.metrics.Average(total=jnp.sum(tokens[:, 0] * rows), count=rows.sum())
    loss = clu.metrics.Average(total=(tokens * weights).sum(), count=weights.sum())
    return loss.compute(), {"cross_entropy": loss, "gate/first": first}


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_predictions_come_back_by_row_whatever_the_batch(size):
    texts = ["good", "bad", "a", "b", "ab"]
    evaluator = Evaluator(echo, token_loss, VOCABULARY, partitioning.make_mesh())
    found = evaluator.predict({"shift": jnp.int32(0)}, batches_of(texts, size))
    assert [found[row] for row in range(5)] == texts


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_mean_loss_and_metrics_do_not_depend_on_the_batch_size(size):
    texts = ["good", "bad", "a", "b", "ab"]
    evaluator = Evaluator(echo, token_loss, VOCABULARY, partitioning.make_mesh())
    found = evaluator.mean_metrics({}, batches_of(texts, size))
    ids = [[*VOCABULARY.encode(text), 1] for text in texts]
    assert found["cross_entropy"] == pytest.approx(np.mean(np.concatenate(ids)), rel=1e-6)
    assert found["gate/first"] == pytest.approx(np.mean([i[0] for i in ids]), rel=1e-6)


def test_splits_are_judged_together_and_predicted_where_it_is_asked():
    texts = [["good", "bad", "a"], ["b", "ab"]]
    evaluator = Evaluator(echo, token_loss, VOCABULARY, partitioning.make_mesh())
    params = {"shift": jnp.int32(0)}
    asked = [(batches_of(texts[0], 2), True), (batches_of(texts[1], 2), False)]
    means, (predicted, nothing) = evaluator.judge(params, asked)
    assert [predicted[row] for row in range(3)] == texts[0] and nothing == {}
    assert means == evaluator.mean_metrics(params, batches_of(texts[0] + texts[1], 1))


def test_a_model_judged_in_one_program_has_the_numbers_of_two(world):
    run = open_run(FinishedConfig(str(world.target)), DEFAULT_VOCABULARY)
    split = open_split("tiny_mood", "test", run.lengths)
    batches, model = list(eval_batches(split, 4)), run.built.model
    mesh = partitioning.make_mesh()
    params = run.built.placed(mesh)
    evaluator = Evaluator(model.predict_batch, model.eval_fn, DEFAULT_VOCABULARY, mesh)
    means, (predicted,) = evaluator.judge(params, [(batches, True)])
    assert predicted == evaluator.predict(params, batches) and len(predicted) == len(split)
    assert means == pytest.approx(evaluator.mean_metrics(params, batches), rel=1e-6)


def test_nothing_to_evaluate_is_one_sentence():
    evaluator = Evaluator(echo, token_loss, VOCABULARY, partitioning.make_mesh())
    with pytest.raises(UsageError, match="no batch"):
        evaluator.mean_metrics({}, [])


def returning(value):
    def metric(targets, predictions):
        return value() if callable(value) else value

    return metric


def fails():
    raise ValueError("oh")


METRICS = {
    "none": (
        returning(None),
        "metric metric .*test_evaluator.py line .* returned None, expected a",
    ),
    "number": (returning(1.0), "returned 1.0, expected a dictionary of names and numbers"),
    "text": (returning("x"), "returned 'x', expected a dictionary"),
    "no number": (returning({"a": "b"}), "The metrics of .*, metric, returned no number"),
    "nothing": (returning({}), "returned no number, expected at least one"),
    "other name": (returning({3: 1.0}), "returned the name 3, expected a text"),
    "huge": (returning({"a": 10**400}), "The metric metric of .*OverflowError: int too large"),
    "raises": (returning(fails), r"failed at .*test_evaluator.py line \d+: ValueError: oh"),
    "arguments": (
        lambda t, p: {},
        r"signature of a metric .*test_evaluator.py line .*\('t', 'p'\)",
    ),
    "no function": (3, "signature of a metric of task 'evaluator_test' failed: TypeError"),
}


@pytest.mark.parametrize("metric, found", METRICS.values(), ids=METRICS)
def test_a_metric_function_that_is_none_is_one_sentence(metric, found):
    task = make_task(metric_fns=[metric])
    with pytest.raises(PemtError, match=found) as caught:
        score(task, Split(["good"]), {0: "good"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "postprocess, found",
    [
        (lambda text, **_: int(text), "ValueError: invalid literal for int"),
        (lambda text: text, "TypeError: .* unexpected keyword argument 'example'"),
    ],
)
def test_a_postprocessor_that_fails_is_one_sentence(postprocess, found):
    task = make_task(postprocess_fn=postprocess)
    place = r"The postprocessor of task 'evaluator_test' failed at .*test_evaluator.py line \d+: "
    with pytest.raises(PemtError, match=place + found):
        score(task, Split(["good"]), {0: "good"})
