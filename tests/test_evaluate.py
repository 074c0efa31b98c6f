"""Evaluation of a finished run: the numbers that the model gives row by row."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import seqio
from tiny_system import EXPERTS, LENGTHS, snapshot, world_fixture  # noqa: F401

from pemt_jax.api import open_model
from pemt_jax.common.errors import UsageError
from pemt_jax.data.batching import make_batch
from pemt_jax.data.token_cache import open_split
from pemt_jax.evaluate import evaluate
from pemt_jax.finished_config import FinishedConfig
from pemt_jax.parallel import partitioning
from pemt_jax.reporting.gates import read_gates
from pemt_jax.runs.finished import open_run
from pemt_jax.tasks.pretraining import general_text
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY


def test_metrics_are_those_of_the_model_row_by_row(world):
    metrics = evaluate(model_dir=str(world.target), split="validation", batch_size=8)
    rows = world.by_hand(world.target, "validation")
    assert len(rows) == 9  # the second batch has one row
    accuracy = np.mean([row["prediction"] == row["target"] for row in rows])
    assert metrics["accuracy"] == metrics["average"] == accuracy
    tokens = sum(row["tokens"] for row in rows)
    cross_entropy = sum(row["cross_entropy"] for row in rows) / tokens
    # float32 sums in another order, on rows padded to another length
    np.testing.assert_allclose(metrics["cross_entropy"], cross_entropy, rtol=1e-5)
    for i, name in enumerate(EXPERTS):
        gate = np.mean([row["mean_gate"][i] for row in rows])
        np.testing.assert_allclose(metrics[f"gate/{name}"], gate, rtol=1e-5)


def test_the_gates_of_each_layer_are_kept_with_a_run(world, tmp_path):
    run = shutil.copytree(world.target, tmp_path / "run")
    metrics = evaluate(model_dir=str(run), split="validation", batch_size=8)
    kept = json.loads((run / "evaluation" / "gates" / "tiny_mood-validation.json").read_text())
    found = read_gates(open_run(FinishedConfig(str(run)), DEFAULT_VOCABULARY), "validation")
    assert set(kept) == set(found.layers)
    for i, layer in enumerate(found.layers):
        expected = found.gate_NLE[:, i].mean(axis=0)
        own = [kept[layer][name] for name in found.sources]
        np.testing.assert_allclose(own, expected, rtol=1e-5)
    means = np.mean([[gates[name] for name in EXPERTS] for gates in kept.values()], axis=0)
    np.testing.assert_allclose(means, [metrics[f"gate/{name}"] for name in EXPERTS], rtol=1e-5)


def test_several_runs_are_evaluated_one_after_the_other(world, tmp_path, capsys):
    folders = [str(shutil.copytree(world.target, tmp_path / name)) for name in ("one", "two")]
    evaluate(model_dir=folders[0], more_model_dirs=folders[1:], split="validation", batch_size=8)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[0] == said[1] and len(said) == 2
    for folder in folders:
        kept = Path(folder, "evaluation", "tiny_mood-validation.json").read_text()
        assert json.loads(kept) == said[0]
    with pytest.raises(UsageError, match="Found a folder of MORE_MODEL_DIRS ''"):
        evaluate(model_dir=folders[0], more_model_dirs=("",))
    with pytest.raises(UsageError, match="MORE_MODEL_DIRS is for the command"):
        open_model(folders[0]).evaluate(more_model_dirs=folders[1:])


def test_rows_that_only_fill_a_batch_count_nowhere(world):
    """The sparsity loss is a product of means over a batch: here one batch, full or filled."""
    full, filled = (evaluate(model_dir=str(world.target), batch_size=size) for size in (8, 16))
    for name, value in full.items():
        np.testing.assert_allclose(filled[name], value, rtol=1e-5)


def test_the_loss_is_what_training_minimised(world):
    metrics = evaluate(model_dir=str(world.target), batch_size=8)
    np.testing.assert_allclose(
        metrics["loss"], metrics["cross_entropy"] + 0.1 * metrics["task_sparsity_loss"], rtol=1e-5
    )


def test_validation_metrics_are_those_of_the_best_checkpoint(world):
    card = json.loads((world.target / "artefact" / "card.json").read_text())
    again = evaluate(model_dir=str(world.target), split="validation", batch_size=8)
    assert again.keys() == card["metrics"].keys()
    for name, value in again.items():
        np.testing.assert_allclose(value, card["metrics"][name], rtol=1e-5)


@pytest.mark.parametrize("kind", ["target", pytest.param("base", marks=pytest.mark.slow)])
def test_scanned_layers_give_the_same_metrics(world, kind):
    asked = dict(mixture_or_task_name="tiny_mood", task_feature_lengths=LENGTHS, batch_size=8)
    asked |= dict(model_dir=str(getattr(world, kind)))
    plain, scanned = (evaluate(**asked, scan_layers=scan) for scan in (False, True))
    assert scanned.keys() == plain.keys()
    for name, value in scanned.items():
        np.testing.assert_allclose(value, plain[name], rtol=1e-5)


@pytest.fixture
def run(world, tmp_path):
    """A finished run whose folder a test may write to."""
    shutil.copytree(world.target / "artefact", tmp_path / "artefact")
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


@pytest.mark.parametrize("kept", ["checkpoints", "artefact alone"])
def test_metrics_are_printed_and_written_beside_the_run(run, capsys, kept):
    if kept != "checkpoints":
        (run / "checkpoints").rmdir()
    metrics = evaluate(model_dir=str(run), batch_size=8)
    printed = capsys.readouterr().out
    assert json.loads(printed) == metrics
    assert (run / "evaluation" / "tiny_mood-test.json").read_text() == printed


def test_an_artefact_alone_is_left_as_it_is(run, capsys):
    before = snapshot(run)
    assert json.loads(
        json.dumps(evaluate(model_dir=str(run / "artefact"), batch_size=8))
    ) == json.loads(capsys.readouterr().out)
    assert snapshot(run) == before


def test_the_modules_of_config_gin_are_imported_and_nothing_else_is_done(run, monkeypatch, capsys):
    module = 'import seqio\nseqio.MixtureRegistry.add("my_mixture", [("tiny_mood", 1.0)])\n'
    (run / "my_mixtures.py").write_text(module)
    monkeypatch.syspath_prepend(run)
    (run / "config.gin").write_text(
        "from __gin__ import dynamic_registration\nimport my_mixtures\nimport not_here\n"
        "from pemt_jax import train\ntrain.train.batch_size = nonsense.value()\n"
    )
    with pytest.raises(UsageError, match="no task or mixture 'my_mixture'"):
        evaluate(model_dir=str(run), mixture_or_task_name="my_mixture")
    (run / "config.gin").write_text(
        "from __gin__ import dynamic_registration\nimport my_mixtures\nimport not_here\n"
        "from pemt_jax import train\ntrain.train.batch_size = @nonsense()\n"
    )
    capsys.readouterr()
    try:
        evaluate(model_dir=str(run), mixture_or_task_name="my_mixture", batch_size=8)
        evaluate(model_dir=str(run / "artefact"), mixture_or_task_name="my_mixture", batch_size=8)
    finally:
        seqio.MixtureRegistry.remove("my_mixture")
        sys.modules.pop("my_mixtures", None)
    assert (
        "There is no module 'not_here', expected one that is installed" in capsys.readouterr().err
    )


def test_another_task_or_a_mixture_may_be_asked_for(run):
    other = evaluate(model_dir=str(run), mixture_or_task_name="tiny_topic", batch_size=8)
    assert 0 <= other["accuracy"] <= 1
    both = evaluate(model_dir=str(run), mixture_or_task_name="tiny_both", batch_size=8)
    mood = evaluate(model_dir=str(run), batch_size=8)
    assert both["tiny_mood/accuracy"] == mood["accuracy"]
    assert both["tiny_topic/accuracy"] == other["accuracy"]
    np.testing.assert_allclose(both["average"], (mood["accuracy"] + other["accuracy"]) / 2)
    tokens = [16, 16]  # eight rows of two tokens each
    np.testing.assert_allclose(
        both["cross_entropy"],
        np.average([mood["cross_entropy"], other["cross_entropy"]], weights=tokens),
        rtol=1e-5,
    )
    facts = json.loads((run / "evaluation" / "splits" / "tiny_both-test.json").read_text())
    assert facts["examples"] == {"tiny_mood": 8, "tiny_topic": 8}
    assert facts["share"] == {"tiny_mood": 4 / 8, "tiny_topic": 3 / 8}
    assert facts["majority"]["tiny_topic/accuracy"] == 3 / 8
    assert sorted(path.name for path in (run / "evaluation").glob("*.json")) == [
        "tiny_both-test.json",
        "tiny_mood-test.json",
        "tiny_topic-test.json",
    ]


def test_a_base_that_a_run_made_knows_its_task_and_another_is_told(world, tmp_path):
    shutil.copytree(world.base, tmp_path / "base")
    own = evaluate(model_dir=str(tmp_path), batch_size=8)
    facts = tmp_path / "base" / "pemt_run.json"
    facts.unlink()
    with pytest.raises(UsageError, match="does not name its task, expected MIXTURE_OR_TASK_NAME"):
        evaluate(model_dir=str(tmp_path))
    asked = dict(mixture_or_task_name="tiny_both", task_feature_lengths=LENGTHS, batch_size=8)
    metrics = evaluate(model_dir=str(tmp_path), **asked)
    assert metrics == own
    assert metrics.keys() == {
        "loss",
        "cross_entropy",
        "tiny_mood/accuracy",
        "tiny_topic/accuracy",
        "average",
    }


@pytest.mark.slow
def test_general_text_is_span_corruption_under_the_trained_model(world, tmp_path):
    """The mean over all tokens of the targets, and nothing that a test split's rules speak of."""
    lines = "".join(f"Some people said in {1900 + i} that it rained.\n" for i in range(40))
    (tmp_path / "text.txt").write_text(lines)
    name = general_text.register_general_text(str(tmp_path))
    run = shutil.copytree(world.target, tmp_path / "run")
    metrics = evaluate(model_dir=str(run), general_text=str(tmp_path), batch_size=8)
    split = open_split(name, general_text.SPLIT, general_text.LENGTHS)
    opened = open_run(FinishedConfig(str(run)), DEFAULT_VOCABULARY)
    params = opened.built.placed(partitioning.make_mesh())
    total = count = 0
    for row in range(len(split)):
        batch = make_batch(split.pairs(np.array([row])), 1, 128, general_text.LENGTHS["targets"])
        found = opened.built.model.eval_fn(params, batch)[1]["cross_entropy"]
        total, count = total + float(found.total), count + float(found.count)
    np.testing.assert_allclose(metrics["cross_entropy"], total / count, rtol=1e-5)
    assert json.loads((run / "evaluation" / f"{name}-validation.json").read_text()) == metrics
    with pytest.raises(UsageError, match="GENERAL_TEXT is set, .* expected no MIXTURE_OR_TASK"):
        evaluate(model_dir=str(run), general_text="text.txt", mixture_or_task_name="tiny_mood")
