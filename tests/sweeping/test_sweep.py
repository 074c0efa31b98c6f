"""A sweep: what is run, chosen on validation and tested; what is refused; and going on with it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_system
from tiny_sweep import config, lines, pretend, sweep
from tiny_system import world_fixture  # noqa: F401

from pemt_jax import evaluate
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.library.artefact import Card, write_artefact
from pemt_jax.library.expert import load_expert
from pemt_jax.reporting.records import read_run
from pemt_jax.sweeping import plan
from pemt_jax.sweeping.choosing import choose, metrics_on_test
from pemt_jax.sweeping.libraries import DERIVED, derive, expert_sets, experts_of, missing
from pemt_jax.sweeping.running import Sweep, run_sweep
from pemt_jax.training.held_back import check_split


def by_rate(flags):
    return {"0.01": 61.0, "0.03": 64.0}[flags["LEARNING_RATE"]] + int(flags["SEED"])


def test_the_rate_with_the_best_mean_on_validation_is_chosen_and_only_it_is_tested(made, tmp_path):
    calls = pretend(made(), by_rate)
    assert [module for module, _ in calls] == ["train"] * 4 + ["evaluate"] * 2
    rows = lines(tmp_path / "sweep")
    assert [(r["candidate"]["rate"], r["chosen"], bool(r["test"])) for r in rows] == [
        (0.01, False, False),
        (0.01, False, False),
        (0.03, True, True),
        (0.03, True, True),
    ]
    assert [row["curve"] for row in rows[::2]] == [[[2, 59.0], [4, 60.0]], [[2, 62.0], [4, 63.0]]]
    choice = json.loads((tmp_path / "sweep/choices/adapter-tiny_mood-full.json").read_text())
    assert choice["chosen"] == "rate 0.03"
    assert choice["validation"] == {"rate 0.01": 61.5, "rate 0.03": 64.5}


def test_test_metrics_cannot_be_read_before_the_choice(made, tmp_path):
    one = Sweep(made())
    with pytest.raises(KeyboardInterrupt):
        pretend(made(), by_rate, stop_after=4)  # all runs are trained, nothing is chosen
    run = one.runs[one.cells[0]][-1]
    folder = one.job_of[run].folder_of(run)
    shutil.rmtree(tmp_path / "sweep" / "choices")
    with pytest.raises(UsageError, match="no candidate has been chosen on validation"):
        metrics_on_test(one.folder, run, read_run(folder, "run"))
    for place in (folder, folder / "artefact"):  # by the command, whoever calls it
        with pytest.raises(UsageError, match="run of a sweep that has not been chosen yet"):
            evaluate.evaluate(model_dir=str(place), split="test")
    check_split(folder, "validation")
    choose(one.folder, run.cell, [(other, one.record(other)) for other in one.runs[run.cell]])
    check_split(folder, "test")
    other = one.runs[run.cell][0]
    with pytest.raises(UsageError, match=r"was not chosen \(rate 0.03 was\)"):
        check_split(one.job_of[other].folder_of(other), "test")
    with pytest.raises(UsageError, match="'rate 0.03' was chosen on validation"):
        metrics_on_test(one.folder, other, one.record(other))


def test_another_choice_for_the_same_cell_is_refused(made):
    pretend(made(), by_rate)
    with pytest.raises(UsageError, match="has chosen 'rate 0.03' .* found 'rate 0.1' now"):
        pretend(made(rates=(0.03, 0.1)), lambda flags: 80.0)
    # More seeds that agree are no other choice.
    assert len(pretend(made(seeds=(0, 1, 2)), by_rate)) == 2 + 1


def test_a_tested_run_that_is_not_chosen_is_found(made, tmp_path):
    pretend(made(), by_rate)
    shutil.rmtree(tmp_path / "sweep" / "choices")
    with pytest.raises(PemtError, match="was read although 'rate 0.1' is chosen"):
        pretend(made(rates=(0.03, 0.1)), lambda flags: 80.0)


def test_a_sweep_goes_on_where_it_was_with_the_same_results(made, tmp_path):
    pretend(made(), by_rate)
    expected = (tmp_path / "sweep/results.jsonl").read_bytes()
    for after in range(6):
        shutil.rmtree(tmp_path / "sweep")
        with pytest.raises(KeyboardInterrupt):
            pretend(made(), by_rate, stop_after=after)
        assert len(pretend(made(), by_rate)) == 6 - after
        assert (tmp_path / "sweep/results.jsonl").read_bytes() == expected
    assert pretend(made(), by_rate) == []


def test_a_failed_run_is_a_line_and_is_tried_again(made, tmp_path):
    def bad(flags):
        return None if (flags["SEED"], flags["LEARNING_RATE"]) == ("1", "0.03") else 60.0

    with pytest.raises(PemtError, match="1 runs failed, the first runs/adapter.* not finite"):
        pretend(made(), bad)
    rows = lines(tmp_path / "sweep")
    assert [row["state"] for row in rows] == ["finished"] * 3 + ["failed"]
    assert [row["chosen"] for row in rows] == [True, True, False, False]
    calls = pretend(made(), lambda flags: 60.0)
    assert [module for module, _ in calls] == ["train"]
    assert {row["state"] for row in lines(tmp_path / "sweep")} == {"finished"}


def test_a_failed_test_is_a_failed_run_and_the_choice_stays(made, tmp_path):
    with pytest.raises(PemtError, match="2 runs failed, .* There is no test split"):
        pretend(made(), by_rate, untestable=lambda folder: True)
    rows = lines(tmp_path / "sweep")
    assert [row["state"] for row in rows] == ["finished"] * 2 + ["failed"] * 2
    assert [row["chosen"] for row in rows] == [False, False, True, True]
    assert [module for module, _ in pretend(made(), by_rate)] == ["evaluate"] * 2


def test_a_failed_test_does_not_keep_others_from_being_tested(made, tmp_path):
    with pytest.raises(PemtError, match="1 runs failed, .* There is no test split"):
        pretend(made(), by_rate, untestable=lambda folder: "seed0" in folder.name)
    states = [(row["seed"], row["state"]) for row in lines(tmp_path / "sweep") if row["chosen"]]
    assert states == [(0, "failed"), (1, "finished")]
    (call,) = pretend(made(), by_rate)
    assert call[0] == "evaluate" and "seed0" in call[1]
    assert not list((tmp_path / "sweep" / "failures").iterdir())


def test_experts_that_were_replaced_are_found(made, tmp_path, save_expert):
    library = save_expert("films")
    values = {"methods": ("pemt",), "libraries": {"own": (str(library), ("films",))}}
    planned = Sweep(made(**values))
    run = planned.runs[planned.cells[0]][0]
    folder = planned.job_of[run].folder_of(run)
    card = Card("target", "pemt_target", "tiny_mood", "b" * 64, experts=(("films", "c" * 64),))
    write_artefact(folder / "artefact", {"x": np.zeros(2, np.float32)}, card)
    with pytest.raises(UsageError, match="was trained with another expert 'films'"):
        pretend(made(**values), by_rate)


def test_runs_that_differ_in_their_task_are_packed(made, tmp_path):
    values = {"tasks": ("tiny_mood", "tiny_topic"), "steps": {"tiny_mood": 4, "tiny_topic": 6}}
    calls = pretend(made(pack=2, **values), by_rate)
    assert [module for module, _ in calls] == ["train"] * 4 + ["evaluate"] * 4
    one = Sweep(made(pack=2, **values))
    flags = one.jobs[0].command
    assert "--gin.MIXTURE_OR_TASK_NAME=('tiny_mood', 'tiny_topic')" in flags
    assert "--gin.TRAIN_STEPS=(4, 6)" in flags
    costs = lines(tmp_path / "sweep", "costs.jsonl")
    assert {(line["seconds"], line["runs"], line["starts"]) for line in costs} == {(1.0, 2, 1)}


def test_shards_do_every_run_once_and_leave_the_results_to_the_last_command(made, tmp_path):
    calls = [pretend(made(seeds=tuple(range(8)), shard=f"{i}/3"), by_rate) for i in range(3)]
    trained = [name for part in calls for module, name in part if module == "train"]
    assert len(trained) == len(set(trained)) == 16 and all(calls)
    assert not (tmp_path / "sweep" / "results.jsonl").exists()
    pretend(made(seeds=tuple(range(8))), by_rate)
    assert {row["state"] for row in lines(tmp_path / "sweep")} == {"finished"}


def test_few_shot_tasks_and_draws_are_named_by_the_table(made):
    named = made(few_shot="{task}_{shots}_seed{seed}", draw=None, shots=(8, "full"), seeds=(3,))
    runs = [run for cell in plan.cells(named) for run in plan.runs_of(named, cell)]
    assert [run.task for run in runs[::2]] == ["tiny_mood_8_seed3", "tiny_mood"]
    bound = made(shots=(8, "full"), seeds=(3,))
    runs = [run for cell in plan.cells(bound) for run in plan.runs_of(bound, cell)]
    assert [dict(run.flags).get("FewShot.seed") for run in runs[::2]] == [3, None]


def test_a_target_leaves_out_experts_and_all_that_is_made_of_them(made, tmp_path, save_expert):
    for seed, name in enumerate(("films", "lamps", "news")):
        library = save_expert(name, seed=seed)
    values = {
        "methods": ("pemt", "random", "null_expert", "linear", "single"),
        "tasks": ("tiny_mood", "tiny_topic"),
        "seeds": (0,),
        "rates": (0.01,),
        "pack": 2,
        "libraries": {"own": (str(library), ("films", "lamps", "news"))},
        "leave_out": {"tiny_topic": ("lamps",)},
    }
    one = Sweep(made(**values))
    used = {
        (cell.method.name, cell.task): {names for run in one.runs[cell] for names in _experts(run)}
        for cell in one.cells
    }
    assert used["pemt", "tiny_mood"] == used["single", "tiny_mood"] == {"films", "lamps", "news"}
    assert used["pemt", "tiny_topic"] == used["single", "tiny_topic"] == {"films", "news"}
    assert used["random", "tiny_topic"] == {"random_films", "random_news"}
    assert used["null_expert", "tiny_topic"] == {"films", "news", "null"}
    assert {cell.set.name for cell in one.cells} == {"own"}
    assert all(len({run.task for run in job.runs}) == 1 for job in one.jobs)  # other experts
    pretend(made(**values))
    folders = {path.name for path in (tmp_path / "sweep" / "libraries").iterdir() if path.is_dir()}
    assert folders == {
        f"{name}.{kind}"
        for name in ("own", "own-without-lamps")
        for kind in ("random", "null", "linear")
    }
    null = load_expert(tmp_path / "sweep" / "libraries" / "own-without-lamps.null", "null")
    assert null.lora and not any(matrix.any() for pair in null.lora.values() for matrix in pair)


def _experts(run):
    flags = dict(run.flags)
    return flags["EXPERTS"] or [flags["INITIAL_EXPERT"]]


def test_rates_are_a_methods_own_and_few_shot_tasks_a_tasks_own(made):
    one = made(
        methods=("adapter", "lora", "bitfit"),
        tasks=("tiny_mood", "tiny_topic"),
        shots=(8,),
        seeds=(3,),
        rates={"lora": (0.02,), "*": (0.1, 0.3)},
        few_shot={"tiny_topic": "{task}_{shots}_seed{seed}", "*": "{task}_{shots}"},
    )
    runs = [run for cell in plan.cells(one) for run in plan.runs_of(one, cell)]
    found = {}
    for run in runs:
        found.setdefault(run.cell.method.name, set()).add(dict(run.candidate)["rate"])
    assert found == {"adapter": {0.1, 0.3}, "lora": {0.02}, "bitfit": {1.0, 3.0}}
    assert {run.task for run in runs} == {"tiny_mood_8", "tiny_topic_8_seed3"}


def test_a_changed_file_is_another_run_and_a_comment_is_not(made, tmp_path):
    folders = lambda: {job.folder for job in Sweep(made()).jobs}  # noqa: E731
    before = folders()
    (tmp_path / "target.gin").write_text("# why\ntrain.train.seed = 0\n")
    assert folders() == before
    (tmp_path / "target.gin").write_text("train.train.seed = 0\nBATCH_SIZE = 4\n")
    assert not folders() & before


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"methods": ("pmet",)}, "There is no method of a sweep 'pmet'.*nearest: 'pemt'"),
        ({"methods": ("pemt",)}, "'pemt' needs experts, expected LIBRARIES or SOURCES"),
        ({"rates": ()}, "Found RATES .*, expected some"),
        ({"seeds": (0, 0)}, "Found SEEDS .*, expected some, each once"),
        ({"shard": "3/3"}, "Found SHARD '3/3', expected I/N"),
        ({"steps": {"tiny_topic": 3}}, "STEPS has no number for 'tiny_mood'"),
        ({"shots": (0,)}, "Found a number of SHOTS 0"),
        ({"file": "runs/stage9.gin"}, "There is no gin file runs/stage9.gin"),
        ({"libraries": {"x": ("nowhere", ("films",))}, "methods": ("pemt",)}, "has no expert"),
        (
            {"folder": "gs://bucket/sweep"},
            "FOLDER is gs://bucket/sweep, expected a folder on a disk",
        ),
        ({"forgetting_text": "nowhere.txt"}, "There is no nowhere.txt, expected a file of text"),
        ({"methods": ("pooled",), "sources": ("tiny_mood",)}, "expected POOLED"),
        ({"rates": {"pemt": (0.1,)}}, "RATES has nothing for 'adapter', expected it or '*'"),
        ({"rates": {"adaptr": (0.1,), "*": (0.1,)}}, "no method of a sweep 'adaptr'"),
        ({"rates": {"adapter": ()}}, "Found RATES of 'adapter' .*, expected some"),
        ({"few_shot": {"tiny_topic": "x"}}, "no task of FEW_SHOT 'tiny_topic'"),
        ({"leave_out": {"tiny_topic": ()}}, "no task of LEAVE_OUT 'tiny_topic'"),
        ({"leave_out": {"tiny_mood": ("films",)}}, "no expert of LEAVE_OUT 'films'"),
        (
            {
                "methods": ("pemt",),
                "sources": ("tiny_topic",),
                "leave_out": {"tiny_mood": ("tiny_topic",)},
            },
            "LEAVE_OUT leaves no expert of 'seed0' for 'tiny_mood'",
        ),
        (
            {
                "methods": ("pooled",),
                "sources": ("tiny_topic", "tiny_mood"),
                "pooled": "tiny_both",
                "leave_out": {"tiny_mood": ("tiny_mood",)},
            },
            "'pooled' was trained on all sources, but LEAVE_OUT has some for 'tiny_mood'",
        ),
    ],
)
def test_wrong_use_is_one_sentence(made, values, sentence):
    with pytest.raises(UsageError, match=sentence):
        Sweep(made(**values))


@pytest.mark.slow
def test_real_runs_with_experts_end_in_tested_choices(world, tmp_path):
    made = config(
        tmp_path / "sweep",
        world.gin_file,
        methods=("single", "random"),
        base=str(world.base),
        seeds=(0,),
        rates=(0.01,),
        libraries={"two": (str(world.library), tiny_system.EXPERTS)},
    )
    sweep(made)
    rows = lines(tmp_path / "sweep")
    assert [row["chosen"] for row in rows if row["method"] == "single"].count(True) == 1
    assert all(("gate/random_tiny_mood" in row["test"]) == (row["method"] == "random")
               for row in rows if row["chosen"])  # fmt: skip
    random = next(row for row in rows if row["chosen"] and row["method"] == "random")
    assert set(random["gates"]) == {"encoder/layers_0/mlp", "decoder/layers_0/mlp"}
    for gates in random["gates"].values():
        assert sum(gates.values()) == pytest.approx(1) and len(gates) == 2
    assert [step for step, _ in random["curve"]][-1] == random["steps"]
    # A single expert as it is answers as the expert of the library does.
    single = next(row for row in rows if row["chosen"] and row["method"] == "single")
    ((name, sha256),) = single["experts"]
    assert load_expert(world.library, name).sha256 == sha256
    alone = evaluate.evaluate(
        model_dir=str(world.library / name), mixture_or_task_name="tiny_mood", split="test"
    )
    assert single["test"]["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert single["facts"]["examples"] == {"tiny_mood": 8}
    assert (single["parameters"], random["parameters"] > 0) == (0, True)


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_writes_the_same_results(world, tmp_path):
    rng = random.Random(0)
    gin_file = tmp_path / "table.gin"
    gin_file.write_text(
        "from __gin__ import dynamic_registration\nfrom pemt_jax import sweep\n"
        "sweep.sweep:\n    methods = ('adapter', 'random', 'single')\n    tasks = ('tiny_mood',)\n"
        f"    file = '{world.gin_file}'\n    steps = 20\n    seeds = (0,)\n"
        "    rates = (0.01,)\n"
        f"    base = '{world.base}'\n    sources = {tiny_system.EXPERTS}\n"
        f"    source_file = '{world.gin_file}'\n    source_seeds = (0,)\n"
    )

    def start(folder):
        command = [sys.executable, "-m", "pemt_jax.sweep", f"--gin_file={gin_file}"]
        return subprocess.Popen(
            [*command, f"--gin.FOLDER={folder}"],
            env=world.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    begin = time.monotonic()
    whole = start(tmp_path / "whole")
    said, _ = whole.communicate(timeout=900)
    assert whole.returncode == 0, said.decode()
    seconds = time.monotonic() - begin
    for kill in (os.killpg, os.kill, os.killpg):  # with its children, or leaving one behind
        process = start(tmp_path / "killed")
        time.sleep(rng.uniform(0.1, 0.5) * seconds)
        if process.poll() is None:
            kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=900)
    process = start(tmp_path / "killed")
    time.sleep(0.1 * seconds)
    process.terminate()
    said, _ = process.communicate(timeout=900)
    assert process.returncode in (0, 143), said.decode()
    last = start(tmp_path / "killed")
    said, _ = last.communicate(timeout=900)
    assert last.returncode == 0, said.decode()
    read = [(tmp_path / name / "results.jsonl").read_text() for name in ("whole", "killed")]
    assert read[0] == read[1]


def test_a_dry_run_prints_commands_and_writes_nothing(made, tmp_path, capsys):
    run_sweep(made(dry_run=True))
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 5 and out[-1] == "# 0 experts, 4 runs in 4 jobs, 1 choices"
    assert all(line.startswith("python -m pemt_jax.train --gin_file=") for line in out[:-1])
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("kind", DERIVED)
def test_what_is_made_of_a_set_is_made_once_and_leaves_the_set_as_it_was(
    made, tmp_path, save_expert, kind
):
    names = ("films", "lamps")
    for seed, name in enumerate(names):
        library = save_expert(name, seed=seed)
    before = tiny_system.snapshot(library)
    config = made(libraries={"own": (str(library), names)})
    (own,) = expert_sets(config)
    derive(config, own, kind)
    derived = experts_of(config, own, kind)
    after = tiny_system.snapshot(tmp_path / "sweep")
    assert missing(derived) == [] and load_expert(derived.library, derived.experts[0]).lora
    derive(config, own, kind)
    assert tiny_system.snapshot(tmp_path / "sweep") == after
    # What a killed sweep left of it is made again.
    shutil.rmtree(tmp_path / "sweep" / "libraries" / f"own.{kind}" / derived.experts[-1])
    derive(config, own, kind)
    assert missing(derived) == [] and tiny_system.snapshot(library) == before
