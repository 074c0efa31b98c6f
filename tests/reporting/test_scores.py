"""Runs of one kind are one row, with the noise of its number; what a reader is warned of."""

import json
import math

import numpy as np
import pytest
from fake_runs import fake_run

from pemt_jax.common.errors import UsageError
from pemt_jax.reporting.records import find_runs
from pemt_jax.reporting.scores import LOSSES, group_runs, metric_names, scores_of
from pemt_jax.training.validation import MODEL_METRICS

FACTS = {
    "examples": {"shop": 400},
    "share": {"shop": 0.55},
    "majority": {"accuracy": 55.0, "average": 55.0},
}


def scored(folder, split="test"):
    """{name of the group: its score on a split}."""
    scores = scores_of(group_runs(find_runs([str(folder)])))
    return {score.group.name: score for score in scores if score.split == split}


def test_runs_that_differ_only_in_their_seed_are_one_row(tmp_path):
    values = [70.0, 74.0, 75.0]
    for seed, value in enumerate(values):
        folder = tmp_path / f"a_seed{seed}"
        fake_run(folder, task=f"shop_8_seed{seed}", seed=seed, test=value, facts=FACTS)
    fake_run(tmp_path / "b", task="shop_8_seed0", settings={"rate": 0.1}, test=60.0, facts=FACTS)
    found = scored(tmp_path)
    assert list(found) == ["a_seed*", "b"]
    score = found["a_seed*"]
    assert score.group.seeds == "0, 1, 2" and score.values == values
    assert score.mean == pytest.approx(73) and score.spread == pytest.approx(np.std(values, ddof=1))
    # The seeds' part and the binomial part of the variance, in percent.
    binomial = 100**2 * 0.73 * 0.27 / 400
    assert score.error == pytest.approx(math.sqrt(np.var(values, ddof=1) / 3 + binomial))
    assert found["b"].error == pytest.approx(100 * math.sqrt(0.6 * 0.4 / 400))


def test_a_repeated_seed_adds_nothing_to_the_spread_of_seeds(tmp_path):
    for name in ("a", "b"):
        fake_run(tmp_path / name, seed=0)
    assert [len(group.runs) for group in group_runs(find_runs([str(tmp_path)]))] == [1, 1]


@pytest.mark.parametrize("scale", [1, 100])
def test_marks_of_noise_and_of_the_majority_class(tmp_path, scale):
    facts = FACTS | {"majority": {"accuracy": 0.55 * scale}}
    for name, value in {"best": 0.75, "near": 0.73, "far": 0.6, "same": 0.55, "under": 0.4}.items():
        settings = {"rate": name}
        fake_run(tmp_path / name, settings=settings, test=value * scale, facts=facts)
    marks = {name: score.marks for name, score in scored(tmp_path).items()}
    assert marks == {
        "best": ["best"],
        "near": ["within the noise of the best"],
        "far": [],  # two standard errors are 0.049
        "same": ["equals the majority class"],
        "under": ["below the majority class"],
    }


def test_a_share_of_unknown_examples_has_no_error_and_a_card_knows_the_majority(tmp_path):
    notes = {"majority_class": {"average": 70.0, "beaten": False}}
    for seed in (0, 1):
        fake_run(tmp_path / str(seed), seed=seed, notes=notes)
    (score,) = scored(tmp_path, "validation").values()
    assert score.spread == 0 and score.examples is None and score.error is None
    assert score.marks == ["equals the majority class"]


def test_what_is_missing_or_damaged_is_a_state_and_never_an_error(tmp_path):
    fake_run(tmp_path / "whole")
    fake_run(tmp_path / "stopped", finished=False)
    damaged = fake_run(tmp_path / "damaged", test=1.0)
    (damaged / "artefact" / "card.json").write_text('{"kind": 1}')
    (damaged / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": null}\n{"st')
    (damaged / "evaluation" / "shop-test.json").write_text("[1]")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    runs = {run.name: run for run in find_runs([str(tmp_path)])}
    assert {name: run.state for name, run in runs.items()} == {
        "whole": "finished",
        "stopped": "not finished",
        "damaged": "unreadable",
        "empty": "not finished",
    }
    assert "the last logged step is 30 of 30" in runs["stopped"].reason
    assert "damaged/artefact/card.json is damaged" in runs["damaged"].reason
    assert str(tmp_path) not in runs["damaged"].reason  # a page is for others
    assert runs["whole"].parameters == 24 and runs["whole"].seconds == 30
    assert runs["empty"].seconds is None and runs["empty"].steps == 0
    values = {name: score.values for name, score in scored(tmp_path, "validation").items()}
    assert values == {"whole": [70.0], "stopped": (), "damaged": (), "empty": ()}
    assert scored(tmp_path)["whole"].values == ()  # not evaluated on the test split


def test_places_without_a_run_are_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="nowhere does not exist, expected the MODEL_DIR"):
        find_runs([str(tmp_path / "nowhere")])
    with pytest.raises(UsageError, match="holds no run"):
        find_runs([str(tmp_path)])


def test_losses_are_no_scores_unless_there_is_nothing_else():
    assert set(MODEL_METRICS) == LOSSES
    metrics = json.loads('{"loss": 1, "gate/a": 1, "f1": 2, "em": 4, "average": 3}')
    assert metric_names(metrics) == ["f1", "em", "average"]
    assert metric_names({"accuracy": 3, "average": 3}) == ["accuracy"]
    assert metric_names({"loss": 1, "cross_entropy": 1}) == ["loss"]


def test_settings_are_those_of_config_gin_with_macros_replaced(tmp_path):
    (run,) = find_runs([str(fake_run(tmp_path / "run", settings={"rate": 0.5}))])
    assert run.settings == {
        "model_dir": repr(str(tmp_path / "run")),
        "seed": "0",
        "mixture_or_task_name": "'shop'",
        "method": "'pemt_target'",
        "rate": "0.5",
        "train_steps": "30",
    }
