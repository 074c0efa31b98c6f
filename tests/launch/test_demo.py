"""The experts that ship with the package are whole, and the demo takes them as its own."""

import sys
from pathlib import Path

import jax
import pytest

from pemt_jax.common.errors import PemtError
from pemt_jax.common.hashing import fingerprint
from pemt_jax.config import MINI_T5
from pemt_jax.interop.base import load_base
from pemt_jax.library.artefact import read_artefact, read_card
from pemt_jax.library.expert import check_fits, expert_names, load_expert

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
        for name in {"experiment", "bag_of_words", "demo"} - before:
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
