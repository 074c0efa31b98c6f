"""The experts that ship with the package are whole, and the demo takes them as its own."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from pemt_jax.common.errors import PemtError
from pemt_jax.common.hashing import fingerprint
from pemt_jax.config import MINI_T5
from pemt_jax.interop.base import load_base
from pemt_jax.library.artefact import read_artefact, read_card
from pemt_jax.library.expert import check_fits, expert_names, load_expert
from pemt_jax.runs.predict import Prediction

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture(scope="module")
def experiment():
    """The module launch/experiment.py."""
    before = set(sys.modules)
    sys.path.insert(0, str(LAUNCH))
    try:
        import experiment

        yield experiment
    finally:
        sys.path.remove(str(LAUNCH))
        for name in {"experiment", "bag_of_words", "demo", "ceiling"} - before:
            sys.modules.pop(name, None)


@pytest.fixture
def demo(experiment, tmp_path):
    """A demo that writes to a new folder."""
    before = jax.config.jax_compilation_cache_dir
    yield experiment.Experiment(tmp_path / "demo")
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_packaged_experts_are_those_of_the_packaged_base(experiment):
    library = experiment.PACKAGED
    assert expert_names(library) == sorted(experiment.SOURCES)
    t5, params = load_base(MINI_T5)
    base = fingerprint(params)
    for name in experiment.SOURCES:
        expert = load_expert(library, name, base)
        check_fits(name, expert.prompt, expert.lora, t5, every=True)
        arrays, card = read_artefact(library / name)
        assert {array.dtype.name for array in arrays.values()} == {"bfloat16"}
        assert card.config["majority_class"]["average"] < card.metrics["average"] <= 100
        assert card.config["base"] == "mini_t5" and card.task == name
    files = [path for path in library.rglob("*") if path.is_file()]
    assert len(files) == 8 and sum(path.stat().st_size for path in files) < 5e6


def test_a_packaged_expert_is_in_the_library_and_a_finished_run(demo, experiment):
    for _ in range(2):  # a demo that was stopped goes on
        demo.packaged_source("vader_nyt")
    card = read_card(experiment.PACKAGED / "vader_nyt")
    assert expert_names(demo.library) == ["vader_nyt"]
    assert read_card(demo.library / "vader_nyt") == card
    assert read_artefact(demo.folder / "vader_nyt" / "artefact", demo.base)[1] == card
    demo.source("vader_nyt")
    assert demo.trained == 0


def test_packaged_experts_of_another_base_are_refused(demo):
    demo.base = "0" * 64
    with pytest.raises(PemtError, match="expected the base of this run"):
        demo.packaged_source("vader_nyt")
    assert not demo.folder.exists()


def test_a_demo_that_fails_ends_with_a_sentence_and_the_code_of_its_command(
    demo, experiment, capfd
):
    def wrong_use():
        demo.command(experiment.evaluate, MODEL_DIR=demo.folder, SPLIT="validation")

    def failure():
        demo.base = "0" * 64
        demo.packaged_source("vader_nyt")

    assert experiment.program(wrong_use) == 2
    assert experiment.program(failure) == 1
    assert experiment.program(lambda: None) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 2 and "expected the base of this run" in said[1]


def test_log_odds_have_the_sign_of_the_answer(experiment):
    import ceiling

    answers = [
        Prediction("", "positive", np.log(0.75)),
        Prediction("", "negative", np.log(0.75)),
        Prediction("", "posi", -0.1),
        Prediction("", "positive", 0.0),
    ]
    found = ceiling.log_odds(answers)
    np.testing.assert_allclose(found[:3], [np.log(3), -np.log(3), 0])
    assert np.isfinite(found).all()


def test_a_weighted_vote_of_experts_that_err_apart_is_above_each(experiment):
    import ceiling

    rng = np.random.default_rng(0)
    positive = np.arange(600) % 2 == 0
    sign = np.where(positive, 1.0, -1.0)
    odds = {name: sign + rng.normal(0, 1.2, 600) for name in "abc"}
    draws = [rng.choice(600, 64, replace=False) for _ in range(3)]
    found = ceiling.ceiling(odds, positive, draws)
    alone = [np.mean((odds[name] > 0) == positive) for name in "abc"]
    assert [found[name] for name in "abc"] == alone
    gain, error = found["  above the best expert"], found["  standard error of that"]
    assert found["weighted vote, all labels"] == pytest.approx(max(alone) + gain)
    assert gain > 2 * error > 0
    assert found["weighted vote, all labels"] < found["an expert is right"] <= 1
    # A vote that no expert informs is worth nothing.
    noise = {"a": odds["a"], "b": rng.normal(0, 1, 600)}
    found = ceiling.ceiling(noise, positive, draws)
    assert abs(found["  above the best expert"]) < 3 * found["  standard error of that"] + 0.01
