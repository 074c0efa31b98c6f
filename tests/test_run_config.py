"""A run is one value: given by flat names or by parts, and what it refuses."""

import dataclasses
from pathlib import Path

import gin
import pytest

from pemt_jax import configs
from pemt_jax.common.errors import UsageError
from pemt_jax.config import PemtConfig
from pemt_jax.optimizers import Optimizer, Schedule
from pemt_jax.run_config import DataConfig, LoopConfig, MeshConfig, TrainConfig

GIVEN = dict(
    model_dir="runs/x",
    mixture_or_task_name="reviews",
    task_feature_lengths={"inputs": 8, "targets": 2},
    batch_size=4,
    train_steps=10,
)


def test_flat_names_and_parts_give_the_same_value():
    by_parts = TrainConfig(
        model_dir="runs/x",
        data=DataConfig("reviews", {"inputs": 8, "targets": 2}, 4),
        loop=LoopConfig(10, patience=2),
        mesh=MeshConfig(model_parallel=2),
    )
    assert TrainConfig.of(**GIVEN, patience=2, model_parallel=2) == by_parts
    assert TrainConfig.of(**by_parts.flat()) == by_parts
    assert by_parts.replace(batch_size=8).data.batch_size == 8


def test_every_field_has_a_name_of_its_own():
    parts = TrainConfig.parts()
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in parts]
    for part in parts.values():
        names += [field.name for field in dataclasses.fields(part)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_siez": 3}, "no 'batch_siez' .nearest: 'batch_size'"),
        ({"batch_size": 0}, "Found BATCH_SIZE 0, expected 1 or more"),
        ({"seed": -1}, "Found SEED -1, expected 0 or more"),
        ({"prng": "rgb"}, "Found PRNG 'rgb', expected one of .*nearest: 'rbg'"),
        ({"task_loop": "vmpa"}, "Found TASK_LOOP 'vmpa', .*nearest: 'vmap'"),
        ({"log_every": 0}, "Found log_every 0, expected 1 or more"),
        ({"batch_size": 10**12}, "Found BATCH_SIZE 1000000000000, expected at most"),
        ({"batch_size": [4]}, r"Found BATCH_SIZE \[4\], expected a whole number"),
        ({"batch_size": True}, "Found BATCH_SIZE True, expected a whole number"),
        ({"seed": 2**70}, "Found SEED .*, expected at most"),
        ({"train_steps": [3, -1]}, "Found TRAIN_STEPS -1, expected 0 or more"),
        ({"train_steps": "ten"}, "Found TRAIN_STEPS 'ten', expected a whole number"),
        ({"max_decode_length": 0}, "Found MAX_DECODE_LENGTH 0, expected 1 or more"),
        ({"embedding_rows": -1}, "Found EMBEDDING_ROWS -1, expected 1 or more"),
        ({"dropout_rate": 1.0}, "Found DROPOUT_RATE 1.0, expected 0 or more and less than 1"),
        ({"model_parallel": 0}, "Found MODEL_PARALLEL 0, expected 1 or more"),
        ({"expert_parallel": -2}, "Found EXPERT_PARALLEL -2, expected 1 or more"),
        ({"buckets": -3}, "Found BUCKETS -3, expected 1 or more"),
        ({"buckets": (8, -4)}, "Found a length of BUCKETS -4, expected 1 or more"),
        ({"buckets": ((8, 4.5),)}, "Found a length of BUCKETS 4.5, expected a whole number"),
        ({"buckets": "many"}, "Found BUCKETS 'many', expected lengths or how many"),
        (
            {"task_feature_lengths": {"inputs": 8}},
            "TASK_FEATURE_LENGTHS has no length for 'targets'",
        ),
        ({"task_feature_lengths": [8, 8]}, "expected a dictionary of lengths"),
        (
            {"task_feature_lengths": {"inputs": -3, "targets": 1}},
            r"Found TASK_FEATURE_LENGTHS\['inputs'\] -3, expected 1 or more",
        ),
        ({"prng": "x" * 10**5}, r"Found PRNG 'x{99}\.\.\., expected one of"),
        ({"frozen_dtype": "floaty"}, "Found FROZEN_DTYPE 'floaty'.*nearest: 'float32'"),
    ],
)
def test_what_is_wrong_is_one_sentence(change, sentence):
    with pytest.raises(UsageError, match=sentence):
        TrainConfig.of(**GIVEN | change)


def test_a_missing_field_is_named():
    with pytest.raises(UsageError, match="TrainConfig has no value for train_steps"):
        TrainConfig.of(**{name: value for name, value in GIVEN.items() if name != "train_steps"})


def test_each_task_of_a_job_has_its_own_folder_steps_prompt_and_schedule():
    optimizer = Optimizer(schedule=Schedule(train_steps=(10, 20)))
    job = GIVEN | dict(mixture_or_task_name=("a", "b"), train_steps=(10, 20), optimizer=optimizer)
    one, other = TrainConfig.of(**job, prompt_text=("say a", "say b")).of_tasks()
    assert one.model_dir.endswith("a") and other.tasks == ("b",)
    assert (one.loop.train_steps, other.loop.train_steps) == (10, 20)
    assert other.model.prompt_text == "say b"
    assert other.optimizer.schedule == Schedule(train_steps=20)


def test_the_reference_preset_is_what_its_gin_file_says():
    """--gin_file=runs/stage1.gin --gin_file=runs/reference.gin and `as_reference` are one."""
    from pemt_jax.cli.command import arguments_of
    from pemt_jax.train import train

    macros = ["MODEL_DIR=x", "MIXTURE_OR_TASK_NAME=pemt_cb", "TRAIN_STEPS=600"]
    macros += ["INITIAL_CHECKPOINT_PATH=base"]
    flags = [f"--gin.{macro}" for macro in macros]
    plain = TrainConfig.of(**arguments_of(train, ["--gin_file=runs/stage1.gin", *flags]))
    files = ["--gin_file=runs/stage1.gin", "--gin_file=runs/reference.gin"]
    preset = TrainConfig.of(**arguments_of(train, [*files, *flags]))
    gin.clear_config()
    assert configs.__file__ and plain != preset
    assert plain.as_reference() == preset
    assert preset.model.options == PemtConfig(
        prompt_init="normal",
        lora_b_init="uniform",
        tsl_counts_padding=True,
        decoder_attends_padding=True,
        prompt_attention_dropout=0.1,
    )


def test_the_packaged_base_has_a_name_unless_a_folder_here_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = TrainConfig.of(**GIVEN, initial_checkpoint_path="mini_t5")
    assert given == TrainConfig.of(**GIVEN)
    assert Path(str(given.model.initial_checkpoint_path), "model.safetensors").is_file()
    (tmp_path / "mini_t5").mkdir()
    own = TrainConfig.of(**GIVEN, initial_checkpoint_path="mini_t5")
    assert own.model.initial_checkpoint_path == "mini_t5"
    assert TrainConfig.of(**GIVEN) == given  # the default is always the packaged one


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"method": [1]}, r"Found METHOD \[1\], expected a text"),
        ({"model_dir": ["a"]}, "Found MODEL_DIR .*, expected a text"),
        ({"mixture_or_task_name": [3]}, "Found MIXTURE_OR_TASK_NAME .*, expected a text or a list"),
        ({"initial_checkpoint_path": ("a", "b")}, "Found INITIAL_CHECKPOINT_PATH .*a text or None"),
        ({"initial_checkpoint_path": ""}, "Found INITIAL_CHECKPOINT_PATH '', expected a path"),
        ({"library": {"a": 1}}, "Found LIBRARY .*, expected a text or None"),
        ({"experts": [3]}, r"Found EXPERTS \[3\], expected a list of texts"),
        ({"expert_name": ""}, "Found EXPERT_NAME '', expected a name"),
        ({"prompt_text": "  "}, "Found PROMPT_TEXT '  ', expected a text"),
        ({"prompt_text": "a\ud800"}, "Found PROMPT_TEXT .*, expected a text that UTF-8 can hold"),
        ({"buckets": [(8,)]}, r"Found BUCKETS with \(8,\), expected pairs of the lengths"),
        ({"task_feature_lengths": {"inputs": 8, "targets": 8, "x": 8}}, "a length for 'x'"),
        ({"prompt_text": [3]}, "Found PROMPT_TEXT 3, expected a text"),
        ({"dtype": []}, r"Found DTYPE \[\], expected a text or None"),
        ({"scan_layers": [1]}, r"Found SCAN_LAYERS \[1\], expected True or False or None"),
        ({"options": {"expert_rank": 3}}, "Found OPTIONS .*, expected PemtConfig or None"),
        ({"optimizer": "adamw"}, "Found OPTIMIZER 'adamw', expected an optimizer, such as"),
        ({"train_steps": None}, "Found TRAIN_STEPS None, expected a whole number"),
    ],
)
def test_a_value_of_another_type_is_one_sentence(change, sentence):
    with pytest.raises(UsageError, match=sentence):
        TrainConfig.of(**GIVEN | change)
