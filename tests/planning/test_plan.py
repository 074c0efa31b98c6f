"""Plans: what a step needs of a slice, by the compiler and by arithmetic, and the command."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import pytest
from tiny_model import T5, TARGET

from pemt_jax import optimizers, plan
from pemt_jax.common.errors import UsageError
from pemt_jax.planning import report, topology
from pemt_jax.planning.arithmetic import AT_WORK, estimate, sizes_of
from pemt_jax.planning.chips import CHIPS, parse_topology
from pemt_jax.planning.collectives import by_kind, find_collectives, sent_bytes
from pemt_jax.planning.host import host_memory
from pemt_jax.planning.job import Job, job_of_shape
from pemt_jax.planning.layout import Layout
from pemt_jax.planning.search import Sizing, search
from pemt_jax.planning.shapes import shape_named
from pemt_jax.run_config import TrainConfig

TINY = Job(
    T5,
    TARGET,
    "pemt_target",
    optimizers.make_optimizer(),
    batch_size=8,
    inputs=6,
    targets=4,
    eval_batch_size=8,
    decode_length=4,
)
TINY_SLICE = topology.Topology("v5e:1x1", CHIPS["v5e"], tuple(jax.devices("cpu")[:1]), False)
NO_TPU_COMPILER = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='no libtpu: pip install "pemt_jax[tpu]"'
)


@pytest.fixture(scope="module")
def step_on_8():
    """What tests/plan_step.py prints of the steps on 8 virtual devices, all of them data."""
    script = Path(__file__).parents[1] / "plan_step.py"
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", ["pemt_target", "pemt_source"])
@pytest.mark.slow
@pytest.mark.walk
def test_step_on_data_devices_sends_gradients_of_trainables_and_nothing_of_the_backbone(
    step_on_8, method
):
    found = step_on_8[method]
    assert {kind for kind, _, _ in found["collectives"]} == {"all-reduce"}
    sent = Counter(
        math.prod(map(int, shape[4:-1].split(","))) if shape[4:-1] else 1
        for _, _, shapes in found["collectives"]
        for shape in shapes
    )
    trained = Counter(math.prod(shape) for shape in found["trainable"].values())
    assert not trained - sent  # each gradient once
    # The rest are sums for losses and metrics: numbers, or one an expert.
    assert set(sent - trained) <= {1, TARGET.num_experts}
    total = sum(size for _, size, _ in found["collectives"])
    assert total - 4 * sum(math.prod(s) for s in found["trainable"].values()) <= 4 * 32
    smallest_matrix = min(math.prod(s) for s in found["frozen"].values() if len(s) > 1)
    assert max(sent - trained) < smallest_matrix


@pytest.mark.slow
@pytest.mark.walk
def test_arguments_are_counted_as_the_compiler_counts_them(step_on_8):
    for method, found in step_on_8.items():
        key_and_step = 4  # the step number; the key is not used without dropout
        assert sum(found["arguments"].values()) + key_and_step - found["argument_bytes"] in (
            0,
            4,
        ), method
    sizes = sizes_of(TINY.parameters(), Layout(8))
    memory = estimate(TINY, sizes, CHIPS["v5e"], Layout(8)).memory
    counted = step_on_8["pemt_target"]["arguments"]
    kinds = ("frozen", "trainable", "batch")
    assert [memory[kind] for kind in kinds] == [counted[kind] for kind in kinds]
    assert memory["optimizer"] == counted["optimizer"] - 8  # its counters of steps


def test_temporaries_are_gradients_what_is_kept_and_the_logits_or_a_layer_at_work():
    def temporaries(trained_more=0, **shape):
        job = dataclasses.replace(TINY, t5=dataclasses.replace(T5, **shape))
        sizes = sizes_of(job.parameters(), Layout())
        sizes = dataclasses.replace(sizes, trainable_here=sizes.trainable_here + trained_more)
        made = estimate(job, sizes, CHIPS["v5e"], Layout()).memory["temporaries"]
        return made - 4 * sizes.trainable_here, made

    (rest, made), logits = temporaries(), 8 * TINY.batch_size * TINY.targets
    assert temporaries(trained_more=10)[1] - made == 4 * 10
    layers = dict(
        num_encoder_layers=2 * T5.num_encoder_layers, num_decoder_layers=2 * T5.num_decoder_layers
    )
    kept = temporaries(**layers)[0] - rest  # of all layers; at work there is still one
    at_work = rest - kept
    assert kept / (T5.num_encoder_layers + T5.num_decoder_layers) <= at_work / AT_WORK <= kept
    # A vocabulary so large that the logits are more than a layer at work.
    assert temporaries(vocab_size=1000)[0] == kept + logits * 1000
    assert temporaries(vocab_size=1010)[0] == kept + logits * 1010


def test_evaluation_counts_with_its_own_rows_and_the_optimizer_that_is_there_meanwhile():
    def estimated(**changes):
        job = dataclasses.replace(TINY, **changes)
        return estimate(job, sizes_of(job.parameters(), Layout()), CHIPS["v5e"], Layout())

    few, many = estimated(), estimated(eval_batch_size=8000)
    assert many.memory == few.memory and many.train == few.train
    assert many.total == sum(many.evaluation.values()) > few.total
    assert many.evaluation["optimizer"] == many.memory["optimizer"] > 0


def test_what_is_trained_and_sharded_is_gathered_at_once_but_in_a_loop_layer_by_layer():
    layout, chip = Layout(8, fully_sharded=True), CHIPS["v5e"]
    job = job_of_shape(shape_named("base"), "full", batch_size=32)
    sizes = Sizing(job)(layout)
    scanned = dataclasses.replace(job, t5=dataclasses.replace(job.t5, scan_layers=True))
    whole, by_layer = (
        estimate(x, sizes, chip, layout).memory["temporaries"] for x in (job, scanned)
    )
    stacks = 2 * 4 * sizes.trainable_here  # the parameters and their gradients
    assert whole - by_layer == 4 * sizes.reduce_scattered - stacks > 0


def test_a_host_holds_the_slices_of_its_chips_in_the_dtype_in_which_they_are_kept():
    job = job_of_shape(shape_named("base"), "pemt_target", batch_size=32)
    half = dataclasses.replace(job, frozen_dtype="bfloat16")
    parameters = job.parameters()

    def held(job, *layout, **sharded):
        return host_memory(job, parameters, Layout(*layout, **sharded))["parameters"]

    counts = [sum(math.prod(x.shape) for x in tree.values()) for tree in parameters[:2]]
    whole = held(job)
    assert whole == 4 * sum(counts) == held(job, 8)  # replicated: all of it
    assert whole - held(half) == 2 * counts[1]
    # 4 of 8 chips; the experts, an eighth of T5-base, are not sharded over data.
    assert 0.5 * whole < held(job, 8, fully_sharded=True) < 0.65 * whole


def test_every_kind_of_collective_is_read():
    lines = {
        "reduce-scatter": "%a = f32[2,8]{1,0} reduce-scatter(%p), dimensions={0}",
        "all-to-all": "%a = f32[2,8]{1,0} all-to-all(%p), dimensions={0}",
        "collective-permute": "%a = f32[2,8]{1,0} collective-permute(%p), source_target_pairs={}",
        "all-gather": "%a = f32[2,8]{1,0} all-gather(%p), dimensions={0}",
        "all-reduce": "%a = f32[2,8]{1,0} all-reduce(%p), replica_groups={}",
    }
    for kind, line in lines.items():
        assert by_kind(find_collectives(f"  {line}\n")) == {
            kind: {"count": 1, "bytes": 64, "largest": 64}
        }


def test_collectives_are_read_from_both_forms_of_the_compilers_text():
    text = """
  %ar = (f32[4,8]{1,0}, f32[]) all-reduce(%a, %b), replica_groups={}
  %ags = (bf16[2,8]{1,0:T(8,128)}, bf16[8,8]{1,0}) all-gather-start(bf16[2,8] %p), dimensions={0}
  %agd = bf16[8,8]{1,0} all-gather-done(%ags)
  %f = f32[4]{0} fusion(%all-reduce.1), kind=kLoop
"""
    table = by_kind(find_collectives(text))
    assert table == {
        "all-reduce": {"count": 1, "bytes": 132, "largest": 132},
        "all-gather": {"count": 1, "bytes": 128, "largest": 128},
    }
    assert sent_bytes(table) == 2 * 132 + 128


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("base", 222_903_552),
        ("3B", 2_851_598_336),
        ("11B", 11_307_321_344),
        ("1.1-XXL", 11_135_332_352),
    ],
)
def test_shapes_have_the_published_numbers_of_parameters(name, count):
    trainable, frozen, _ = job_of_shape(shape_named(name), "full").parameters()
    assert sum(math.prod(x.shape) for x in trainable.values()) == count and not frozen


@pytest.mark.slow
@pytest.mark.walk
def test_search_lists_only_what_fits_quickest_first_and_more_memory_helps():
    job = job_of_shape(shape_named("3B"), "pemt_target", batch_size=32)
    found = search(job, CHIPS["v5e"], 8)
    assert found and all(way.estimate.total <= CHIPS["v5e"].hbm for way in found)
    rates = [way.rows_per_second for way in found]
    assert rates == sorted(rates, reverse=True)
    assert len(search(job, CHIPS["v5p"], 8)) > len(found)
    close = {way.is_close(CHIPS["v5e"]) for way in found if way.estimate.total > 12.7 * 2**30}
    assert close == {True} and not found[-1].is_close(CHIPS["v5p"])


def test_split_over_data_too_a_chip_keeps_a_part_of_the_backbone_and_sends_half_more():
    job, chip = job_of_shape(shape_named("base"), "full", batch_size=32), CHIPS["v5e"]
    sizing = Sizing(job)
    whole, split = (
        estimate(job, sizing(layout), chip, layout)
        for layout in (Layout(4), Layout(4, fully_sharded=True))
    )
    assert split.memory["optimizer"] < 0.3 * whole.memory["optimizer"]
    assert split.total < whole.total and split.flops == whole.flops
    # All but the norms is split. An all-reduce is a reduce-scatter and a gather of float32; here
    # the weights are gathered twice beside the reduce-scatter.
    assert split.sent == pytest.approx(1.5 * whole.sent, rel=1e-3)


def test_search_tries_the_expert_axis_and_full_sharding_and_prefers_fewer_messages():
    job = job_of_shape(shape_named("base"), "pemt_target", batch_size=32)
    found = search(job, CHIPS["v5p"], 4)
    assert {way.layout.expert for way in found} == {1, 2}  # 4 chips and 6 experts
    assert {way.layout.fully_sharded for way in found} == {True, False}
    first = [way for way in found if way.rows_per_second == found[0].rows_per_second]
    assert first[0].estimate.sent == min(way.estimate.sent for way in first)


def test_rematerialisation_takes_less_memory_and_more_flops():
    sizing = Sizing(TINY)
    totals = []
    for policy in ("none", "minimal", "full"):
        job = dataclasses.replace(TINY, t5=dataclasses.replace(T5, remat_policy=policy))
        found = estimate(job, sizing(Layout()), CHIPS["v4"], Layout())
        totals.append((found.total, -found.flops))
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("v5:2x2", "There is no chip 'v5'"),
        ("v4:4x4", "has the sizes '4x4'"),
        ("v5e:3x5", "has the sizes '3x5'"),
        ("v5e", "has the sizes ''"),
        ("v5e:\u0662x\u0662", "has the sizes"),
        ("v5e:4000x4000", "has 16000000 chips, expected at most 8960"),
    ],
)
def test_wrong_topology_is_one_sentence(name, sentence):
    with pytest.raises(UsageError, match=sentence):
        parse_topology(name)


@pytest.fixture(scope="module")
def made():
    """The plan of the tiny run, by the CPU's compiler."""
    return report.make_plan(TINY, TINY_SLICE, Layout(), evaluation=True)


def test_without_the_tpu_compiler_a_plan_says_what_is_missing(made, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not topology.open_topology("v5e:1x1").real_compiler
    assert made["compiler"] == "CPU" and made["fits"] and "pemt_jax[tpu]" in made["missing"]
    assert made["train_step"]["memory"]["total"] > 0 < made["decode_step"]["flops"]
    assert made["eval_step"]["memory"]["optimizer"] == made["arithmetic"]["memory"]["optimizer"]
    text = report.render(json.loads(json.dumps(made)))
    assert "missing: there is no TPU compiler here" in text and text.endswith("fits: yes")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"scan_layers": False, "broadcast_dropout": True}),
        (["--scan_layers", "--compile_time"], {"scan_layers": True, "broadcast_dropout": True}),
        (["--no-broadcast_dropout"], {"scan_layers": False, "broadcast_dropout": False}),
    ],
)
def test_choices_of_the_model_reach_the_plan_and_times_are_printed(
    made, monkeypatch, capsys, flags, expected
):
    seen = []

    def make_plan(job, *_):
        seen.append((job.t5, jax.config.jax_enable_compilation_cache))
        return made

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(report, "make_plan", make_plan)
    before = jax.config.jax_enable_compilation_cache
    try:
        plan.plan(["--topology=v5e:1x1", "--shape=small", *flags])
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
    ((t5, cache),), timed = seen, "--compile_time" in flags
    assert {name: getattr(t5, name) for name in expected} == expected
    assert cache == (before and not timed)
    line = re.search(r"  \d+\.\d s to lower, \d+\.\d s to compile\n", capsys.readouterr().out)
    assert bool(line) == timed


def test_a_run_that_is_too_large_for_its_chip_does_not_fit():
    small = dataclasses.replace(CHIPS["v5e"], hbm=1000)
    devices = topology.virtual_devices(1)
    made = report.make_plan(
        TINY, topology.Topology("v5e:1x1", small, devices, False), Layout(), evaluation=False
    )
    assert made["fits"] is False and report.render(made).endswith("fits: no")


@NO_TPU_COMPILER
@pytest.mark.slow
def test_the_tpu_compiler_compiles_both_steps_for_a_slice():
    made = report.make_plan(TINY, topology.open_topology("v5e:2x2"), Layout(2, 2), evaluation=True)
    assert made["compiler"] == "TPU" and made["fits"] and "missing" not in made
    assert made["train_step"]["flops"] > 0 and "all-reduce" in made["train_step"]["collectives"]


@pytest.mark.parametrize(("shape", "code"), [("base", 0), ("11B", plan.DOES_NOT_FIT)])
def test_search_exits_with_0_when_something_fits_and_3_when_nothing_does(
    tmp_path, monkeypatch, shape, code, capsys
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    file = tmp_path / "plan.json"
    assert (
        plan.plan(
            [
                "--topology=v5e:1x1",
                f"--shape={shape}",
                "--method=full",
                "--search",
                "--compile=0",
                f"--json={file}",
            ]
        )
        == code
    )
    made = json.loads(file.read_text())
    assert made["fits"] == (code == 0) == bool(made["ways"])
    assert f"{len(made['ways'])} ways fit by arithmetic" in capsys.readouterr().out


SMALL = ["--topology=v5e:1x1", "--shape=small"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--topolgy=v5e:1x1"], "nearest: '--topology'"),
        (["--shape=base"], "no slice to plan for"),
        (["--topology=v5e:1x1"], "nothing to plan"),
        (["--topology=v5e:1x1", "--shape=bass"], "nearest: 'base'"),
        ([*SMALL, "--model_parallel=0"], "Found MODEL_PARALLEL 0, expected 1 or more"),
        ([*SMALL, "--search", "--batch_size=0"], "Found batch_size 0, expected 1 or more"),
        ([*SMALL, "--inputs=-4"], "Found inputs -4, expected 1 or more"),
        ([*SMALL, "--prng=rgb"], "Found prng 'rgb', expected one of .*nearest: 'rbg'"),
        ([*SMALL, "--dtype=float23"], "T5Config.dtype is 'float23'.*nearest: 'float32'"),
    ],
)
def test_wrong_use_is_one_sentence(flags, sentence):
    with pytest.raises(UsageError, match=sentence):
        plan.plan(flags)


def test_an_unknown_task_does_not_fit():
    flags = [
        "--topology=v5e:1x1",
        "--shape=small",
        "--gin_file=runs/stage1.gin",
        "--gin.MODEL_DIR=run",
        "--gin.INITIAL_CHECKPOINT_PATH=base",
        "--gin.TRAIN_STEPS=1000",
        "--gin.MIXTURE_OR_TASK_NAME=pemt_mnlli",
    ]
    with pytest.raises(UsageError, match="no task or mixture 'pemt_mnlli' .nearest: 'pemt_mnli'"):
        plan.plan(flags)


def test_gin_files_give_the_run_that_train_would_make_of_them():
    from pemt_jax import train
    from pemt_jax.cli import command as cli
    from pemt_jax.planning.from_config import job_of_training

    arguments = cli.arguments_of(
        train.train,
        [
            "--gin_file=runs/stage2.gin",
            "--gin.MODEL_DIR=x",
            "--gin.TRAIN_STEPS=7",
            "--gin.MIXTURE_OR_TASK_NAME=pemt_cb",
            "--gin.EXPERTS=('mnli','qnli')",
            "--gin.INITIAL_CHECKPOINT_PATH=nowhere",
            "--gin.BATCH_SIZE=16",
            "--gin.train.dtype=bfloat16",
            "--gin.LIBRARY=nowhere",
        ],
    )
    job = job_of_training(TrainConfig.of(**arguments), shape_named("base"))
    assert (job.method, job.batch_size, job.train_steps) == ("pemt_target", 16, 7)
    assert (job.t5.dtype, job.inputs, job.targets) == ("bfloat16", 256, 128)
    assert job.pemt.expert_names == ("mnli", "qnli") and job.pemt.adapter_dim == 48
    assert any("'mnli'" in sentence for sentence in job.assumed)


def test_the_plan_of_many_tasks_is_that_of_the_longest_prompt_with_the_steps_of_all():
    from pemt_jax import train
    from pemt_jax.cli import command as cli
    from pemt_jax.planning.from_config import job_of_training

    def plan_of(tasks):
        flags = [
            "--gin_file=runs/stage1.gin",
            "--gin.MODEL_DIR=x",
            "--gin.TRAIN_STEPS=1000",
            f"--gin.MIXTURE_OR_TASK_NAME={tasks}",
            "--gin.LIBRARY=nowhere",
            "--gin.INITIAL_CHECKPOINT_PATH=nowhere",
        ]
        config = TrainConfig.of(**cli.arguments_of(train.train, flags))
        return job_of_training(config, shape_named("base"))

    many, *each = map(plan_of, ("('pemt_mnli','pemt_qnli')", "pemt_mnli", "pemt_qnli"))
    lengths = [job.pemt.prompt_length for job in each]
    assert many.pemt.prompt_length == max(lengths) > min(lengths)
    assert many.train_steps == 2000 and each[0].train_steps == 1000
    assert any("one of the 2 tasks" in sentence for sentence in many.assumed)
    assert each[0].assumed == ()
