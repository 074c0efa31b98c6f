"""LoraHub: weights found without gradients, against a grid and the evaluation of the result."""

import shutil

import numpy as np
import pytest
from tiny_system import EXPERTS, LENGTHS, world_fixture  # noqa: F401

from pemt_jax import evaluate
from pemt_jax.cli.library_command import main
from pemt_jax.common.errors import UsageError
from pemt_jax.library.artefact import read_card
from pemt_jax.library.combination import Combination
from pemt_jax.library.combine import combine_experts
from pemt_jax.runs.searching.lorahub import Search, find_weights


def cross_entropy(world, folder):
    """On the training examples of tiny_mood, by the command that evaluates an expert."""
    found = evaluate.evaluate(
        model_dir=str(folder),
        initial_checkpoint_path=str(world.base),
        mixture_or_task_name="tiny_mood",
        split="train",
        batch_size=8,
    )
    return found["cross_entropy"]


@pytest.mark.slow
def test_the_command_saves_the_expert_of_the_weights_that_it_finds(world, tmp_path, capsys):
    library = shutil.copytree(world.library, tmp_path / "library")
    flags = f"--experts {','.join(EXPERTS)} --task tiny_mood --inputs 16 --targets 4".split()
    assert main(["lorahub", "hub", *flags, f"--base={world.base}", f"--library={library}"]) == 0
    assert "hub  combined  (" in capsys.readouterr().out
    card = read_card(library / "hub")
    facts = card.config["lorahub"]
    assert card.config["method"] == "cat" and facts["task"] == "tiny_mood"
    np.testing.assert_allclose(cross_entropy(world, library / "hub"), facts["loss"], rtol=1e-5)

    def value(loss, weights):
        return loss + 0.05 * np.mean(np.abs(weights))

    found = value(facts["loss"], card.config["weights"])
    for number, grid in enumerate([(0, 0), (0.5, 0.5), (0, 1), (1, 0), (1, 1), (0, 1.5)]):
        other = f"grid_{number}"
        combine_experts(library, other, EXPERTS, Combination("cat", grid))
        assert found <= value(cross_entropy(world, library / other), grid) + 1e-6


def test_too_few_evaluations_are_refused(tmp_path):
    search = Search("tiny_mood", "t5", evaluations=3, **LENGTHS)
    with pytest.raises(UsageError, match="3 evaluations for 2 experts, expected 4 or more"):
        find_weights(tmp_path, EXPERTS, search)
