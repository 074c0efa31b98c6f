"""Whole runs of a tiny system: both stages and the baselines, stopped, resumed, on four devices.

The steps themselves are in test_trainer.py, what is published in test_runs.py, and what goes wrong
in faults/.
"""

import json
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_system import EXPERTS, T5, Recorder, leaves, snapshot, stop, world_fixture  # noqa: F401

from pemt_jax.checkpoints.manifest import flatten_state
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.weights import load_weights
from pemt_jax.finished_config import FinishedConfig
from pemt_jax.interop.hf import load_hf
from pemt_jax.library import artefact
from pemt_jax.library import expert as library
from pemt_jax.parallel.stop_signals import Stopped
from pemt_jax.runs.finished import open_run
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY
from pemt_jax.training.metrics_log import read_metrics


def losses(model_dir):
    """[(step, loss)] of the log, written after each step."""
    return [
        (row["step"], row["loss"])
        for row in read_metrics(model_dir / "metrics.jsonl")
        if row["kind"] == "train"
    ]


def assert_same_run(one, other):
    """Every number of two runs is equal to the last bit; only times differ."""
    assert leaves(one, 20) == leaves(other, 20)
    logs = [
        [
            {
                name: value
                for name, value in row.items()
                if name not in ("time", "examples_per_second")
            }
            for row in read_metrics(folder / "metrics.jsonl")
        ]
        for folder in (one, other)
    ]
    assert logs[0] == logs[1]


def test_stage_one_learns_and_leaves_checkpoints_log_config_and_artefact(world):
    run = world.source
    steps, values = zip(*losses(run), strict=True)
    assert steps == tuple(range(1, 21))
    assert np.mean(values[-5:]) < np.mean(values[:5])
    assert {path.name for path in run.iterdir()} >= {
        "checkpoints",
        "metrics.jsonl",
        "config.gin",
        "artefact",
    }
    validation = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "validation"]
    assert [row["step"] for row in validation] == [10, 20]
    card = artefact.read_card(run / "artefact")
    best = max(validation, key=lambda row: row["average"])
    assert card.metrics["average"] == best["average"]
    assert card.description == "Say the mood of a text."


def test_the_frozen_stay_as_they_were_and_have_no_slot(world, tmp_path, monkeypatch):
    recorder = Recorder(world, monkeypatch)
    world.train(tmp_path, library=str(world.library), experts=EXPERTS)
    (trainer,) = recorder.trainers
    _, base = load_hf(world.base)
    trained = {path for path in base if path.endswith("norm/scale")}
    for path in base.keys() - trained:
        np.testing.assert_array_equal(np.asarray(trainer.frozen[path]), base[path])
    for i, name in enumerate(EXPERTS):
        expert = library.load_expert(world.library, name)
        for linear, pair in expert.lora.items():
            for ab, value in zip("ab", pair, strict=True):
                bank = np.asarray(trainer.frozen[f"{linear.removesuffix('wo')}experts/lora_{ab}"])
                np.testing.assert_array_equal(np.take(bank, i, "ba".index(ab)), value)
    # Whatever has the name of a parameter in the optimizer, or in a checkpoint, is trained.
    trainable = trainer.state.trainable.keys()
    assert trained <= trainable and not trainable & trainer.frozen.keys()
    for path in [*flatten_state(trainer.state.opt_state), *leaves(tmp_path, 20)]:
        assert not any(path.endswith(frozen) for frozen in trainer.frozen), path
    slots = [path for path in leaves(tmp_path, 20) if path.startswith("opt_state")]
    for path in trainable:
        assert sum(slot.endswith(f"/{path}") for slot in slots) == 2  # Adam's two moments
        assert not np.array_equal(
            np.asarray(trainer.state.trainable[path]), trainer.first_trainable[path]
        ), f"{path} was not trained"


def test_full_from_nothing_leaves_a_base_for_others(world, tmp_path):
    t5, params = load_hf(world.base)
    assert t5 == T5
    assert load_weights(world.base / "model.safetensors").keys()
    values = [value for _, value in losses(world.pretrained)]
    assert np.mean(values[-5:]) < np.mean(values[:5]) - 1
    # Everything moves on from that base, which itself stays.
    before = snapshot(world.base)
    world.train(tmp_path, "tiny_both", 10, method="full", base_dtype="bfloat16")
    after_t5, after = load_hf(tmp_path / "base")
    assert after_t5 == t5 and after.keys() == params.keys()
    assert snapshot(world.base) == before
    assert losses(tmp_path)[0][1] < values[0]
    moved = [path for path in params if not np.array_equal(params[path], after[path])]
    assert set(moved) == set(params)


def test_the_decoder_alone_leaves_a_base_that_differs_in_the_decoder(world, tmp_path):
    before, (_, params) = snapshot(world.base), load_hf(world.base)
    world.train(tmp_path, "tiny_both", 4, method="decoder", eval_every=None)
    _, after = load_hf(tmp_path / "base")
    assert after.keys() == params.keys() and snapshot(world.base) == before
    for path, value in params.items():
        assert np.array_equal(value, after[path]) != path.startswith("decoder/"), path
    assert open_run(FinishedConfig(str(tmp_path)), DEFAULT_VOCABULARY).task == "tiny_both"
    with pytest.raises(UsageError, match="'decoder' has no base model"):
        world.train(tmp_path, "tiny_both", 4, method="decoder", initial_checkpoint_path=None, t5=T5)


def test_a_mixture_trains_as_one_task_with_the_text_given(world, tmp_path, monkeypatch):
    metrics = world.train(
        tmp_path / "pooled",
        "tiny_both",
        10,
        method="lora",
        prompt_text="Say the kind of a text.",
        library=str(tmp_path / "library"),
        expert_name="tiny_both",
    )
    assert metrics.keys() >= {"tiny_mood/accuracy", "tiny_topic/accuracy", "average", "loss"}
    assert metrics["average"] == np.mean(
        [metrics["tiny_mood/accuracy"], metrics["tiny_topic/accuracy"]]
    )
    card = artefact.read_card(tmp_path / "library" / "tiny_both")
    assert (card.task, card.description) == ("tiny_both", "Say the kind of a text.")

    # The pooled expert is where the next training starts. A lora that is given no name stays out
    # of the library, where its task may have an expert of stage 1.
    pooled = library.load_expert(tmp_path / "library", "tiny_both")
    recorder = Recorder(world, monkeypatch)
    world.train(
        tmp_path / "few",
        "tiny_mood",
        10,
        method="lora",
        initial_expert="tiny_both",
        library=str(tmp_path / "library"),
    )
    first = recorder.trainers[0].first_trainable
    for linear, (a_FR, b_RD) in pooled.lora.items():
        np.testing.assert_array_equal(first[f"{linear.removesuffix('wo')}expert/lora_a"], a_FR)
        np.testing.assert_array_equal(first[f"{linear.removesuffix('wo')}expert/lora_b"], b_RD)
    np.testing.assert_array_equal(first["prompt/embedding"], pooled.prompt)
    assert library.expert_names(tmp_path / "library") == ["tiny_both"]
    assert library.load_expert(tmp_path / "library", "tiny_both").sha256 == pooled.sha256
    card = artefact.read_card(tmp_path / "few" / "artefact")
    assert card.experts == (("tiny_both", pooled.sha256),)


def test_a_part_without_validation_is_trained_on_and_not_judged(world, tmp_path):
    metrics = world.train(
        tmp_path / "half",
        "tiny_half",
        10,
        method="lora",
        library=str(tmp_path / "library"),
        prompt_text="Say the kind of a text.",
    )
    assert "accuracy" in metrics and "tiny_mood/accuracy" not in metrics


@pytest.mark.parametrize(
    "method, stop_at", [("pemt_target", 10), pytest.param("full", 7, marks=pytest.mark.slow)]
)
def test_stopped_and_resumed_is_the_run_that_never_stopped(
    world, tmp_path, monkeypatch, method, stop_at
):
    options = dict(method=method)
    if method == "pemt_target":
        options |= dict(library=str(world.library), experts=EXPERTS)
    straight = Recorder(world, monkeypatch)
    expected = world.train(tmp_path / "straight", **options)
    resumed = Recorder(world, monkeypatch, stop_at, stop)
    with pytest.raises(Stopped, match=f"Stopped by SIGTERM after step {stop_at} of 20") as stopped:
        world.train(tmp_path / "resumed", **options)
    assert stopped.value.exit_code == 143
    assert not (tmp_path / "resumed" / ("base" if method == "full" else "artefact")).exists()
    assert world.train(tmp_path / "resumed", **options) == expected
    assert len(resumed.trainers) == 2
    assert resumed.batches == straight.batches and len(set(straight.batches)) > 6
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    made = "base/model.safetensors" if method == "full" else "artefact/weights.safetensors"
    assert (tmp_path / "straight" / made).read_bytes() == (tmp_path / "resumed" / made).read_bytes()


def test_more_steps_continue_a_run_that_had_ended(world, tmp_path):
    options = dict(method="pemt_source", library=str(tmp_path / "library"))
    world.train(tmp_path / "run", steps=10, **options)
    world.train(tmp_path / "run", steps=20, **options)
    assert_same_run(world.source, tmp_path / "run")
    before = snapshot(tmp_path / "run" / "checkpoints")
    world.train(tmp_path / "run", steps=20, **options)  # nothing is left to do
    assert snapshot(tmp_path / "run" / "checkpoints") == before


def test_a_step_that_is_not_finite_ends_the_run_and_publishes_nothing(world, tmp_path, monkeypatch):
    def poison(trainer):
        prompt = trainer.state.trainable["prompt/embedding"]
        trainer.state.trainable["prompt/embedding"] = prompt * jnp.nan

    options = dict(method="pemt_source", library=str(tmp_path / "library"), save_every=2)
    Recorder(world, monkeypatch, 5, poison)
    with pytest.raises(PemtError, match="Step 5 had loss nan, .*last finite checkpoint is step 4"):
        world.train(tmp_path / "run", **options)
    assert not (tmp_path / "run" / "artefact").exists() and not (tmp_path / "library").exists()
    assert losses(tmp_path / "run")[-1][0] == 5
    # The same command goes on from the checkpoint that was kept, as if nothing had happened.
    world.train(tmp_path / "run", **options)
    assert_same_run(world.source, tmp_path / "run")


FOUR_DEVICES = """
import sys
from pathlib import Path

import pytest

import tiny_system
from pemt_jax.parallel.stop_signals import Stopped

folder, method = Path(sys.argv[1]), sys.argv[2]
world = tiny_system.World(folder)
out = Path(sys.argv[3])
options = dict(method=method, task="tiny_train_only")  # no validation: one step to compile
if method == "pemt_target":
    options |= dict(library=str(world.library), experts=tiny_system.EXPERTS)
if sys.argv[4] == "data":
    world.train(out / "data", **options)
else:
    monkeypatch = pytest.MonkeyPatch()
    straight = tiny_system.Recorder(world, monkeypatch)
    world.train(out / "straight", model_parallel=2, **options)
    assert dict(straight.trainers[0].mesh.shape) == {"data": 2, "model": 2}
    resumed = tiny_system.Recorder(world, monkeypatch, 10, tiny_system.stop)
    try:
        world.train(out / "resumed", model_parallel=2, **options)
    except Stopped:
        world.train(out / "resumed", model_parallel=2, **options)
    assert resumed.batches == straight.batches and len(resumed.trainers) == 2
"""


def four_devices(world, out, method, mesh):
    done = world.python("-c", FOUR_DEVICES, world.folder, method, out, mesh, devices=4)
    assert done.returncode == 0, done.stderr


def assert_close_to_one_device(world, tmp_path, method, folder, loss_rtol):
    options = dict(method=method, task="tiny_train_only")
    if method == "pemt_target":
        options |= dict(library=str(world.library), experts=EXPERTS)
    assert world.train(tmp_path / "one", **options) == {}  # nothing to judge it on
    steps, one = zip(*losses(tmp_path / "one"), strict=True)
    more_steps, more = zip(*losses(folder), strict=True)
    assert steps == more_steps
    np.testing.assert_allclose(more, one, rtol=loss_rtol)
    if method == "pemt_target":
        trained = [
            load_weights(run / "artefact" / "weights.safetensors")
            for run in (tmp_path / "one", folder)
        ]
        for path, value in trained[0].items():
            np.testing.assert_allclose(trained[1][path], value, rtol=0, atol=1e-4, err_msg=path)


@pytest.mark.slow
def test_two_by_two_devices_resume_to_the_same_bits_and_agree_with_one(world, tmp_path):
    assert world.library
    four_devices(world, tmp_path, "pemt_target", "model")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    assert_close_to_one_device(world, tmp_path, "pemt_target", tmp_path / "straight", 1e-5)


@pytest.mark.slow
def test_four_data_devices_agree_with_one(world, tmp_path):
    assert world.library
    four_devices(world, tmp_path, "pemt_target", "data")
    assert_close_to_one_device(world, tmp_path, "pemt_target", tmp_path / "data", 1e-5)


@pytest.mark.slow
def test_full_on_two_by_two_devices_resumes_and_agrees_with_one(world, tmp_path):
    assert world.base
    four_devices(world, tmp_path, "full", "model")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    # A change in the last bit of a gradient that is nearly 0 turns an Adam step around.
    assert_close_to_one_device(world, tmp_path, "full", tmp_path / "straight", 1e-4)


@pytest.mark.slow
@pytest.mark.walk
def test_the_commands_train_evaluate_and_predict(world, tmp_path, capsys):
    """As a user calls them, in this process: files, macros, what they print."""
    run, experts = tmp_path / "run", str(EXPERTS)
    flags = world.train_flags(
        run, METHOD="pemt_target", EXPERTS=experts, TRAIN_STEPS=10, LIBRARY=world.library
    )
    assert world.command("train", *flags) == 0
    assert f"{run}/artefact: pemt_target on tiny_mood, step 10" in capsys.readouterr().out
    assert "tiny_topic" in (run / "config.gin").read_text()
    assert world.command("evaluate", f"--gin.MODEL_DIR={run}", "--gin.BATCH_SIZE=8") == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics.keys() >= {"gate/tiny_topic", "gate/tiny_mood", "accuracy", "loss"}
    experts = artefact.read_card(run / "artefact").experts
    assert [name for name, _ in experts] == list(EXPERTS)  # in the order named
    (tmp_path / "in.txt").write_text("mood: the good film\n")
    flags = [f"--gin.MODEL_DIR={run}", f"--gin.INPUT_FILE={tmp_path}/in.txt", "--gin.BATCH_SIZE=4"]
    assert world.command("predict", *flags) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    # The configuration that was written is a gin file that goes on with the run.
    assert world.command("train", f"--gin_file={run}/config.gin", "--gin.TRAIN_STEPS=12") == 0
    assert "12" in {path.name for path in (run / "checkpoints").iterdir()}


@pytest.mark.slow
def test_experts_beside_other_layers_go_the_whole_way(world, tmp_path, monkeypatch, capsys):
    """One on q and v, by commands, mixed with one on wo; stopped, resumed, judged and asked."""
    shelf = tmp_path / "library"
    linears = {"PemtConfig.expert_linears": "('q', 'v:2')"}
    flags = dict(MIXTURE_OR_TASK_NAME="tiny_topic", TRAIN_STEPS=10, LIBRARY=shelf)
    assert world.command("train", *world.train_flags(tmp_path / "topic", **flags, **linears)) == 0
    expert = library.load_expert(shelf, "tiny_topic")
    assert expert.lora.keys() == {
        f"{layer}/{name}"
        for layer in (
            "encoder/layers_0/attention",
            "decoder/layers_0/self_attention",
            "decoder/layers_0/encoder_decoder_attention",
        )
        for name in ("query", "value")
    }
    assert all(
        (a.shape[1], bool(np.any(b))) == (2 if linear.endswith("value") else 4, True)
        for linear, (a, b) in expert.lora.items()
    )
    arrays, card = artefact.read_artefact(library.expert_folder(world.library, "tiny_mood"))
    library.save_expert(shelf, "tiny_mood", arrays, card)
    options = dict(library=str(shelf), experts=EXPERTS, eval_every=5, steps=10)
    world.train(tmp_path / "straight", **options)
    Recorder(world, monkeypatch, 5, stop)
    with pytest.raises(Stopped):
        world.train(tmp_path / "resumed", **options)
    world.train(tmp_path / "resumed", **options)
    trained, resumed = (
        load_weights(tmp_path / name / "artefact" / "weights.safetensors")
        for name in ("straight", "resumed")
    )
    assert trained.keys() == resumed.keys()
    assert all(np.array_equal(resumed[path], value) for path, value in trained.items())
    gates = {path for path in trained if path.endswith("gate/kernel")}
    assert len(gates) == 5 and all(np.any(trained[path]) for path in gates)
    flags = [f"--gin.MODEL_DIR={tmp_path}/straight", "--gin.BATCH_SIZE=4"]
    capsys.readouterr()
    assert world.command("evaluate", *flags) == 0
    assert json.loads(capsys.readouterr().out).keys() >= {f"gate/{name}" for name in EXPERTS}
    (tmp_path / "in.txt").write_text("mood: the good film\n")
    assert world.command("predict", *flags, f"--gin.INPUT_FILE={tmp_path}/in.txt") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.slow
def test_the_commands_in_processes_of_their_own(world, tmp_path):
    run = tmp_path / "run"
    flags = world.train_flags(
        run, METHOD="pemt_target", EXPERTS=str(EXPERTS).replace(" ", ""), LIBRARY=world.library
    )
    trained = world.python("-m", "pemt_jax.train", *flags)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.startswith(f"{run}/artefact: pemt_target on tiny_mood, step ")
    first, *_ = lines = trained.stderr.splitlines()
    assert first == "importing TensorFlow and the tasks"
    known = ("importing ", "reading the base ", "tokenising ", "step ", "warning: The best ")
    assert all(line.startswith(known) for line in lines), trained.stderr
    assert "step 0/20  compiling" in lines
    assert_same_run(world.target, run)
    evaluated = world.python("-m", "pemt_jax.evaluate", f"--gin.MODEL_DIR={run}")
    assert evaluated.returncode == 0
    assert all(line.startswith("tokenising ") for line in evaluated.stderr.splitlines())
    assert json.loads(evaluated.stdout).keys() >= {"accuracy", "loss", "gate/tiny_mood"}
    rows = world.by_hand(run)
    predicted = world.python(
        "-m",
        "pemt_jax.predict",
        f"--gin.MODEL_DIR={run}",
        input="".join(f"{row['input']}\n" for row in rows),
    )
    assert (predicted.returncode, predicted.stderr) == (0, "")
    assert predicted.stdout.splitlines() == [row["prediction"] for row in rows]


@pytest.mark.slow
def test_a_run_is_evaluated_and_used_alike_on_four_devices(world, tmp_path):
    rows = world.by_hand(world.target)
    (tmp_path / "tasks.gin").write_text(
        "from __gin__ import dynamic_registration\nimport tiny_system\n"
    )
    one, four = (
        world.python(
            "-m",
            "pemt_jax.evaluate",
            f"--gin_file={tmp_path}/tasks.gin",
            f"--gin.MODEL_DIR={world.target}/artefact",
            "--gin.BATCH_SIZE=8",
            f"--gin.MODEL_PARALLEL={model}",
            devices=devices,
        )
        for devices, model in ((1, 1), (4, 2))
    )
    assert (four.returncode, four.stderr) == (0, "")
    one, four = json.loads(one.stdout), json.loads(four.stdout)
    assert one.keys() == four.keys()
    for name, value in one.items():
        np.testing.assert_allclose(four[name], value, rtol=1e-5, err_msg=name)
    predicted = world.python(
        "-m",
        "pemt_jax.predict",
        f"--gin.MODEL_DIR={world.target}",
        "--gin.BATCH_SIZE=3",
        devices=4,
        input="".join(f"{row['input']}\n" for row in rows),
    )
    assert (predicted.returncode, predicted.stderr) == (0, "")
    assert predicted.stdout.splitlines() == [row["prediction"] for row in rows]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=(pytest.mark.slow, pytest.mark.walk)),
    ],
)
def test_a_process_that_was_stopped_or_killed_resumes_to_the_same_bits(world, tmp_path, number):
    run = tmp_path / "run"
    flags = world.train_flags(
        run,
        METHOD="pemt_target",
        EXPERTS=str(EXPERTS).replace(" ", ""),
        LIBRARY=world.library,
        **{"train.save_every": 2},
    )
    command = [sys.executable, "-m", "pemt_jax.train", *flags]
    process = subprocess.Popen(
        command,
        env=world.environment(),
        cwd=world.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while len(losses(run)) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, error = process.communicate(timeout=100)
    if number == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 128 + number, error
        assert error.splitlines()[-1].startswith(f"error: Stopped by {number.name} after step ")
    assert not (run / "artefact").exists()
    done = world.python("-m", "pemt_jax.train", *flags)
    assert done.returncode == 0, done.stderr
    assert leaves(world.target, 20) == leaves(run, 20)
    assert losses(world.target) == losses(run)


def test_devices_are_one_here():
    """The comparisons above take this process for the one-device run."""
    assert len(jax.devices()) == 1
