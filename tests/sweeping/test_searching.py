"""What a sweep searches for on a target's few examples, LoraHub's weights, and what it refuses."""

import pytest
import tiny_system
from tiny_sweep import config, lines, sweep
from tiny_system import world_fixture  # noqa: F401

from pemt_jax import evaluate
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.library.artefact import read_card
from pemt_jax.sweeping.commands import Commands, Ended
from pemt_jax.sweeping.running import Sweep
from pemt_jax.sweeping.searching import lorahub


@pytest.mark.slow
def test_lorahub_searches_once_for_each_draw_and_is_taken_as_it_is(world, tmp_path):
    made = config(
        tmp_path / "sweep",
        world.gin_file,
        methods=("lorahub",),
        base=str(world.base),
        bindings={"TASK_FEATURE_LENGTHS": {"inputs": 16, "targets": 4}},
        draw=None,
        seeds=(0,),
        libraries={"two": (str(world.library), tiny_system.EXPERTS)},
    )
    sweep(made)
    (row,) = lines(tmp_path / "sweep")
    assert (row["state"], row["steps"], bool(row["test"])) == ("finished", 1, True)
    folder = tmp_path / "sweep" / "libraries" / "two.lorahub"
    card = read_card(folder / "lorahub_tiny_mood")
    assert card.rank == 8 and card.config["lorahub"]["inputs"] == 16
    before = tiny_system.snapshot(folder)
    sweep(made)
    assert tiny_system.snapshot(folder) == before
    # Its answers are those of the expert that the public command has found.
    alone = evaluate.evaluate(
        model_dir=str(folder / "lorahub_tiny_mood"),
        mixture_or_task_name="tiny_mood",
        split="test",
        task_feature_lengths={"inputs": 16, "targets": 4},
    )
    assert row["test"]["loss"] == pytest.approx(alone["loss"], rel=1e-5)


def test_a_search_imports_what_the_gin_files_of_a_run_import(made, tmp_path):
    file = tmp_path / "own.gin"
    included = tmp_path / "included.gin"
    file.write_text(f"import my_tasks\nfrom pemt_jax import train\ninclude '{included}'\n")
    included.write_text("from more.tasks import films\nimport my_tasks\n")
    values = {"sources": ("tiny_topic",), "base": "a_base", "draw": None, "shots": (8,)}
    few_shot = "{task}_{shots}_seed{seed}"
    config = made(methods=("lorahub",), file=str(file), few_shot=few_shot, seeds=(3,), **values)
    (job,) = Sweep(config).jobs
    command = lorahub(config, job)
    assert command[:2] == ["lorahub", "lorahub_tiny_mood_8_seed3"]
    assert "--task=tiny_mood_8_seed3" in command and "--experts=tiny_topic" in command
    assert command[-2:] == ["--import=my_tasks", "--import=more.tasks"]


def test_a_search_that_failed_is_a_failed_run(made, tmp_path, save_expert):
    class NoTask(Commands):
        def run(self, module, arguments, log):
            assert module == "library"
            return Ended(2, "There is no task 'tiny_mood'.", 1.0, 10)

    library = save_expert("films")
    values = {"methods": ("lorahub",), "base": "a_base", "draw": None, "seeds": (0,)}
    with pytest.raises(PemtError, match="1 runs failed.*There is no task"):
        sweep(made(libraries={"own": (str(library), ("films",))}, **values), NoTask())
    (row,) = lines(tmp_path / "sweep")
    assert (row["state"], row["reason"]) == ("failed", "There is no task 'tiny_mood'.")


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"base": "a_base"}, "searches on the examples of a task, expected DRAW None, and"),
        ({"draw": None}, "evaluates the base, expected BASE"),
    ],
)
def test_a_table_without_what_a_search_needs_is_refused_at_once(made, values, sentence):
    with pytest.raises(UsageError, match=f"'lorahub' {sentence}"):
        Sweep(made(methods=("lorahub",), sources=("tiny_topic",), **values))
