"""What a run may replace, and what could not be published is refused before training."""

import dataclasses
import math
import shlex
import shutil

import pytest
from tiny_system import EXPERTS, LENGTHS, T5, snapshot, world_fixture  # noqa: F401

from pemt_jax.cli import library_command
from pemt_jax.common.errors import UsageError
from pemt_jax.finished_config import FinishedConfig, PredictConfig
from pemt_jax.library.artefact import read_card
from pemt_jax.run_config import TrainConfig
from pemt_jax.runs import predict
from pemt_jax.runs.finished import open_run
from pemt_jax.runs.publish import against_majority, publish
from pemt_jax.runs.task_run import TaskRun
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY
from pemt_jax.training.validation import Validation

FULL = dict(method="full", initial_checkpoint_path=None, t5=T5, eval_every=None)


def test_a_users_files_at_model_dir_base_are_not_replaced(world, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "thesis.txt").write_text("precious")
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match="base holds 'thesis.txt', which no run wrote"):
        world.train(tmp_path, "tiny_both", 1, **FULL)
    assert snapshot(tmp_path) == before


@pytest.mark.slow
@pytest.mark.walk
def test_a_file_beside_an_earlier_base_stops_the_next_publication(world, tmp_path):
    world.train(tmp_path, "tiny_both", 1, **FULL)
    world.train(tmp_path, "tiny_both", 2, **FULL)  # its own base is replaced
    (tmp_path / "base" / "notes.txt").write_text("precious")
    with pytest.raises(UsageError, match="base holds 'notes.txt'"):
        world.train(tmp_path, "tiny_both", 3, **FULL)
    assert (tmp_path / "base" / "notes.txt").read_text() == "precious"


def test_a_shape_that_cannot_be_stored_is_refused_before_training(world, tmp_path):
    gelu = dataclasses.replace(T5, mlp_activations=("gelu", "gelu"))
    with pytest.raises(UsageError, match=r"mlp_activations \('gelu', 'gelu'\) cannot be saved"):
        world.train(tmp_path / "run", "tiny_both", 1, **FULL | {"t5": gelu})
    assert not (tmp_path / "run").exists()


def test_a_metric_that_is_not_finite_is_left_out_with_a_warning(world, tmp_path, capsys):
    config = TrainConfig.of(
        model_dir=str(tmp_path / "run"),
        mixture_or_task_name="tiny_mood",
        task_feature_lengths=LENGTHS,
        batch_size=8,
        train_steps=1,
        method="pemt_source",
        initial_checkpoint_path=str(world.base),
        library=str(tmp_path / "library"),
    )
    run = TaskRun(config)
    metrics = {"accuracy": 0.5, "mine": math.nan, "other": math.inf}
    folder = publish(run.config, run.trainable, run.built, metrics)
    assert read_card(folder).metrics == {"accuracy": 0.5}
    assert "The metric mine is nan, expected a finite number" in capsys.readouterr().err


@pytest.mark.parametrize("average, beaten", [(56.0, False), (55.5, False), (57.0, True)])
def test_a_result_at_chance_is_a_warning_and_in_the_card(average, beaten, capsys):
    note = against_majority("films", {"average": average}, 56.0)
    assert note == {"majority_class": {"average": 56.0, "beaten": beaten}}
    said = capsys.readouterr().err
    assert ("'films'" in said and "56 of the majority class" in said) == (not beaten)
    assert against_majority("films", {"loss": 1.0}, None) == {} and capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.walk
def test_an_expert_that_learned_nothing_says_so_in_the_log_the_card_and_the_list(
    world, tmp_path, capsys
):
    library = tmp_path / "my library"
    flags = world.train_flags(tmp_path / "run", TRAIN_STEPS=1, LIBRARY=library)
    assert world.command("train", *flags, "--gin.LEARNING_RATE=0.0") == 0
    output, log = capsys.readouterr()
    card = read_card(library / "tiny_mood")
    at_chance = card.config["majority_class"]
    assert at_chance == {"average": 5 / 9, "beaten": False}
    assert card.metrics["average"] <= 5 / 9
    assert "warning: The best validation score of 'tiny_mood' is " in log
    first, last = output.splitlines()
    assert "e-" not in first and "{" not in first and first.count(str(tmp_path)) == 1
    list_command = f"python -m pemt_jax.library list --library '{library}'"
    assert last == f"expert 'tiny_mood' is in the library {library}: {list_command}"
    assert library_command.main(shlex.split(list_command)[3:]) == 0
    assert "(at chance: the majority class has 0.5556)" in capsys.readouterr().out


def test_a_run_of_method_full_is_predicted_with_at_its_own_lengths(world):
    run = open_run(FinishedConfig(str(world.pretrained)), DEFAULT_VOCABULARY)
    assert (run.task, run.lengths) == ("tiny_both", LENGTHS)
    config = PredictConfig.of(model_dir=str(world.pretrained))
    assert predict.Predictor(run, config)._input_length == LENGTHS["inputs"]


def test_a_base_from_elsewhere_must_be_told_its_lengths(world):
    run = open_run(FinishedConfig(str(world.base)), DEFAULT_VOCABULARY)
    run = dataclasses.replace(run, task=None, lengths=None)
    with pytest.raises(UsageError, match="expected MAX_INPUT_LENGTH and MAX_DECODE_LENGTH"):
        predict.Predictor(run, PredictConfig.of(model_dir=str(world.base)))


@pytest.mark.slow
def test_a_number_of_buckets_is_taken_by_evaluate_as_by_train(world, capsys):
    flags = [f"--gin.MODEL_DIR={world.target}", "--gin.BATCH_SIZE=8", "--gin.SPLIT=test"]
    assert world.command("evaluate", *flags) == 0
    plain = capsys.readouterr().out
    assert world.command("evaluate", *flags, "--gin.BUCKETS=2") == 0
    assert capsys.readouterr().out.splitlines()[-1] == plain.splitlines()[-1]
    assert EXPERTS[0] in plain


@pytest.mark.slow
def test_a_damaged_best_checkpoint_does_not_stop_publication(world, tmp_path, monkeypatch, capsys):
    scores = iter([3.0, 1.0])
    monkeypatch.setattr(Validation, "__call__", lambda *_: {"average": next(scores)})
    run, options = tmp_path / "run", dict(method="pemt_source", library=str(tmp_path / "library"))
    world.train(run, **options)
    assert read_card(run / "artefact").metrics == {"average": 3.0}  # of step 10
    shutil.rmtree(run / "artefact")
    for path in (run / "checkpoints" / "10" / "state").rglob("d/*"):
        path.write_bytes(bytes(len(path.read_bytes())))
    world.train(run, **options)
    assert read_card(run / "artefact").metrics == {"average": 1.0}
    assert "is damaged" in capsys.readouterr().err


def test_a_majority_that_is_no_number_says_nothing(capsys):
    assert against_majority("x", {"average": math.nan}, math.nan) == {}
    assert capsys.readouterr().err == ""
