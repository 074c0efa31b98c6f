"""Whatever is wrong with a command: one sentence, a non-zero exit code, nothing written over.

The commands run in this process, as from a shell; the last tests run some as processes.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from forking import REPORTS
from tiny_system import T5, random_base, snapshot, world_fixture  # noqa: F401

from pemt_jax.checkpoints.manifest import read_manifest, replace_manifest
from pemt_jax.interop.hf import load_hf, save_hf
from pemt_jax.library import artefact
from pemt_jax.library import expert as library
from pemt_jax.tasks.vocabulary import PACKAGED

TARGET = {"METHOD": "pemt_target", "EXPERTS": "('tiny_mood','tiny_topic')"}


def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def from_elsewhere(base, place):
    """A copy of a base without our own checksums, as if it had been downloaded."""
    return shutil.copytree(base, place, ignore=shutil.ignore_patterns("SHA256SUMS"))


@pytest.fixture
def refused(world, tmp_path, capsys):
    """Run a command and check its failure for what every failure must be."""

    def check(main, code, *parts, flags):
        places = {place: snapshot(place) for place in (world.library, world.base, tmp_path)}
        capsys.readouterr()
        assert world.command(main, *map(str, flags)) == code
        out, err = capsys.readouterr()
        assert out == ""
        lines = [line for line in err.splitlines() if not line.startswith(REPORTS)]
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        for part in parts:
            assert part in lines[0]
        for place, before in places.items():
            after = snapshot(place)
            assert {path: after.get(path) for path in before} == before, "written over"
        return lines[0]

    return check


# (exit code, what the sentence says ..., macros of the training command)
NAMES = {
    "binding": (2, "no argument 'trian'", {"train.train.trian": 3}),
    "binding of nothing": (2, "'trian.seed'", "nearest: 'train.seed'", {"trian.seed": 3}),
    "macro": (2, "TRIAN_STEPS", "nearest: 'TRAIN_STEPS'", {"TRIAN_STEPS": 3}),
    "no MODEL_DIR": (2, "MODEL_DIR", "--gin.MODEL_DIR=", {"MODEL_DIR": None}),
    "no task": (2, "MIXTURE_OR_TASK_NAME", {"MIXTURE_OR_TASK_NAME": None}),
    "gin file": (2, "'tiny.gim'", {"gin_file": "tiny.gim"}),
    "expert": (
        2,
        "'tiny_mod'",
        "tiny_mood, tiny_topic",
        "nearest: 'tiny_mood'",
        {"METHOD": "pemt_target", "EXPERTS": "('tiny_topic','tiny_mod')"},
    ),
    "expert named twice": (
        2,
        "'tiny_mood' was named twice",
        {"METHOD": "pemt_target", "EXPERTS": "('tiny_mood','tiny_mood')"},
    ),
    "start": (
        2,
        "'tiny_mod'",
        "nearest: 'tiny_mood'",
        {"METHOD": "lora", "INITIAL_EXPERT": "tiny_mod"},
    ),
    "expert of another run": (
        2,
        "an expert 'tiny_mood' made by",
        "another EXPERT_NAME",
        {"INITIAL_EXPERT": None},
    ),
    "name of an expert": (2, "'a/b' is no name", {"EXPERT_NAME": "a/b"}),
    "method": (2, "'pemt_targt'", "nearest: 'pemt_target'", {"METHOD": "pemt_targt"}),
    "base": (1, "There is no model folder", {"INITIAL_CHECKPOINT_PATH": "nowhere"}),
    "no base": (2, "'pemt_source' has no base", {"INITIAL_CHECKPOINT_PATH": "None"}),
    "text for a number": (2, "'many'", "expected a whole number", {"TRAIN_STEPS": "many"}),
    "mesh": (2, "3 model needs 3 devices", {"MODEL_PARALLEL": 3}),
    "no model axis": (2, "Found MODEL_PARALLEL 0", {"MODEL_PARALLEL": 0}),
    "expert axis": (2, "1 data x 2 expert x 1 model needs 2 devices", {"EXPERT_PARALLEL": 2}),
    "no rows": (2, "Found BATCH_SIZE 0", "expected 1 or more", {"BATCH_SIZE": 0}),
    "no rows to evaluate": (
        2,
        "Found EVAL_BATCH_SIZE 0",
        "expected 1 or more",
        {"EVAL_BATCH_SIZE": 0},
    ),
    "seed": (2, "SEED -1", {"SEED": -1}),
    "dtype": (2, "'float23'", "nearest: 'float32'", {"FROZEN_DTYPE": "float23"}),
    "compute dtype": (2, "'float23'", "nearest: 'float32'", {"DTYPE": "float23"}),
    "steps": (2, "TRAIN_STEPS", "-1", {"TRAIN_STEPS": -1}),
    "optimizer": (2, "'adam'", "nearest: 'adamw'", {"optimizers.make_optimizer.name": "adam"}),
    "random numbers": (2, "'threefly'", "nearest: 'threefry2x32'", {"PRNG": "threefly"}),
    "mixture without a text": (
        2,
        "'tiny_both' has no description",
        "PROMPT_TEXT",
        {"MIXTURE_OR_TASK_NAME": "tiny_both"},
    ),
    "task": (
        2,
        "There is no task or mixture 'tiny_mod' (nearest: 'tiny_mood')",
        "`import MODULE`",
        {"MIXTURE_OR_TASK_NAME": "tiny_mod"},
    ),
    "empty split": (1, "'train'", "'tiny_empty' is empty", {"MIXTURE_OR_TASK_NAME": "tiny_empty"}),
    "long target": (1, "target of 14 tokens", "allows 4", {"MIXTURE_OR_TASK_NAME": "tiny_wordy"}),
    "no length": (
        2,
        "TASK_FEATURE_LENGTHS",
        "'targets'",
        {"train.task_feature_lengths": "{'inputs':16}"},
    ),
    "no such thing as patience": (
        2,
        "atience",
        {"MIXTURE_OR_TASK_NAME": "tiny_train_only", "PATIENCE": 2},
    ),
}


@pytest.mark.parametrize("case", NAMES.values(), ids=NAMES)
def test_a_wrong_name_or_value(world, tmp_path, refused, case):
    code, *parts, macros = case
    if {"EXPERTS", "INITIAL_EXPERT"} & macros.keys():
        macros = {"LIBRARY": world.library} | macros
    gin_file = macros.pop("gin_file", None)
    flags = world.train_flags(tmp_path / "run", **macros)
    if gin_file:
        flags[0] = f"--gin_file={gin_file}"
    refused("train", code, *parts, flags=flags)
    assert not (tmp_path / "run" / "checkpoints").exists() or not any(
        (tmp_path / "run" / "checkpoints").iterdir()
    )


def test_model_dir_is_a_file(world, tmp_path, refused):
    (tmp_path / "file").write_text("precious")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        refused("train", 2, "file is a file", flags=world.train_flags(place))
    for main in ("evaluate", "predict"):
        refused(main, 2, "expected the MODEL_DIR", flags=[f"--gin.MODEL_DIR={tmp_path}/file"])


def test_vocabulary_of_another_checkpoint(world, tmp_path, refused, monkeypatch):
    few = random_base(tmp_path / "few", dataclasses.replace(T5, vocab_size=4096))
    bare = ("train", 2, "has no tokenizer")
    refused(*bare, flags=world.train_flags(tmp_path / "run", INITIAL_CHECKPOINT_PATH=few))
    shutil.copy(PACKAGED, few / "spiece.model")
    refused(
        "train",
        2,
        "8100 entries",
        "4096 embedding rows",
        flags=world.train_flags(tmp_path / "run", INITIAL_CHECKPOINT_PATH=few),
    )
    # As many pieces, but other ones: the file stored beside the weights decides.
    monkeypatch.setenv("PEMT_JAX_VOCABULARY", str(PACKAGED))
    other = from_elsewhere(world.base, tmp_path / "other")
    model = (other / "spiece.model").read_bytes()
    (other / "spiece.model").write_bytes(model + b"\0")
    refused(
        "train",
        2,
        "set VOCABULARY",
        flags=world.train_flags(tmp_path / "run", INITIAL_CHECKPOINT_PATH=other),
    )
    assert PACKAGED.read_bytes() == model


def test_widths_that_do_not_fit(world, tmp_path, refused, expert_arrays):
    # A configuration that is not that of its weights.
    base = from_elsewhere(world.base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"d_ff": 64}))
    refused(
        "train",
        1,
        "has shape [32, 16], expected [64, 16]",
        flags=world.train_flags(tmp_path / "run", INITIAL_CHECKPOINT_PATH=base),
    )
    # An expert of another width that claims this base.
    card = artefact.read_card(world.library / "tiny_mood")
    library.save_expert(
        tmp_path / "library",
        "wide",
        expert_arrays(D=24, F=48),
        artefact.Card(
            kind="expert",
            method="pemt_source",
            task="wide",
            description="wide",
            base_fingerprint=card.base_fingerprint,
        ),
    )
    refused(
        "train",
        1,
        "'wide'",
        "has a prompt of width 24, expected 16 as the base has",
        flags=world.train_flags(
            tmp_path / "run",
            METHOD="pemt_target",
            EXPERTS="('wide',)",
            LIBRARY=tmp_path / "library",
        ),
    )


@pytest.mark.slow
def test_experts_of_another_base(world, tmp_path, refused):
    t5, params = load_hf(world.base)
    params["token_embedder/embedding"] = params["token_embedder/embedding"].copy()
    params["token_embedder/embedding"][5, 5] += 1e-3
    save_hf(tmp_path / "base", t5, params, "float32")
    refused(
        "train",
        1,
        "tiny_mood was trained on the base 'base'",
        "expected the base of this run",
        flags=world.train_flags(
            tmp_path / "run",
            LIBRARY=world.library,
            **TARGET,
            INITIAL_CHECKPOINT_PATH=tmp_path / "base",
        ),
    )
    refused(
        "evaluate",
        1,
        "was trained on the base 'base'",
        flags=[f"--gin.MODEL_DIR={world.target}", f"--gin.INITIAL_CHECKPOINT_PATH={tmp_path}/base"],
    )


@pytest.mark.parametrize("damage", [truncate, flip])
def test_a_damaged_expert(world, tmp_path, refused, damage):
    experts = shutil.copytree(world.library, tmp_path / "library")
    damage(experts / "tiny_topic" / "weights.safetensors")
    flags = world.train_flags(tmp_path / "run", LIBRARY=experts, **TARGET)
    refused("train", 1, "tiny_topic/weights.safetensors is damaged or exchanged", flags=flags)
    for main in ("evaluate", "predict"):
        refused(
            main,
            1,
            "is damaged or exchanged",
            flags=[f"--gin.MODEL_DIR={world.target}", f"--gin.LIBRARY={experts}"],
        )
    shutil.copytree(world.library, experts, dirs_exist_ok=True)
    damage(experts / "tiny_topic" / "card.json")
    refused("train", 1, "tiny_topic/card.json", flags=flags)


def test_a_damaged_base(world, tmp_path, refused):
    base = from_elsewhere(world.base, tmp_path / "base")
    flags = world.train_flags(tmp_path / "run", INITIAL_CHECKPOINT_PATH=base)
    truncate(base / "model.safetensors")
    refused("train", 1, "model.safetensors", "truncated", flags=flags)
    shutil.copy(world.base / "model.safetensors", base)
    flip(base / "model.safetensors")  # still a model, but not the one of the experts
    refused(
        "train",
        1,
        "was trained on the base",
        flags=world.train_flags(
            tmp_path / "run", INITIAL_CHECKPOINT_PATH=base, LIBRARY=world.library, **TARGET
        ),
    )
    (base / "model.safetensors").unlink()
    refused("train", 1, "Expected model.safetensors", flags=flags)
    (base / "config.json").write_text("{")
    refused("train", 1, "config.json is no JSON", flags=flags)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "spiece.model"])
def test_a_damaged_base_of_ours(world, tmp_path, refused, name):
    base = shutil.copytree(world.base, tmp_path / "base")
    flip(base / name)
    refused(
        "train",
        1,
        f"base/{name} is damaged or exchanged",
        "as in its SHA256SUMS",
        flags=world.train_flags(tmp_path / "run", INITIAL_CHECKPOINT_PATH=base),
    )


@pytest.mark.parametrize("damage", [truncate, flip])
def test_a_damaged_artefact(world, tmp_path, refused, damage):
    shutil.copytree(world.target / "artefact", tmp_path / "run" / "artefact")
    damage(tmp_path / "run" / "artefact" / "weights.safetensors")
    for main in ("evaluate", "predict"):
        refused(main, 1, "is damaged or exchanged", flags=[f"--gin.MODEL_DIR={tmp_path}/run"])


def test_a_missing_or_unfinished_run(world, tmp_path, refused):
    (tmp_path / "stopped" / "checkpoints").mkdir(parents=True)
    for main in ("evaluate", "predict"):
        refused(main, 2, "does not exist", flags=[f"--gin.MODEL_DIR={tmp_path}/nowhere"])
        refused(main, 2, "has not ended", flags=[f"--gin.MODEL_DIR={tmp_path}/stopped"])


def test_arguments_of_evaluate_and_predict(world, tmp_path, refused):
    shutil.copytree(world.target / "artefact", tmp_path / "run" / "artefact")
    run = f"--gin.MODEL_DIR={tmp_path}/run"
    refused("evaluate", 2, "no split 'tset'", "nearest: 'test'", flags=[run, "--gin.SPLIT=tset"])
    refused(
        "evaluate",
        2,
        "'tiny_mod'",
        "nearest: 'tiny_mood'",
        flags=[run, "--gin.MIXTURE_OR_TASK_NAME=tiny_mod"],
    )
    refused("evaluate", 2, "Found BATCH_SIZE 0", flags=[run, "--gin.BATCH_SIZE=0"])
    refused("evaluate", 1, "is empty", flags=[run, "--gin.MIXTURE_OR_TASK_NAME=tiny_empty"])
    for main in ("evaluate", "predict"):
        nowhere = f"--gin.VOCABULARY={tmp_path}/nowhere"
        refused(main, 2, "There is no file", "nowhere, expected VOCAB", flags=[run, nowhere])
        many = "--gin.BATCH_SIZE=1000000000"
        refused(main, 2, "BATCH_SIZE 1000000000", "GiB that are here", flags=[run, many])
    refused("evaluate", 2, "a length of BUCKETS -3", flags=[run, "--gin.BUCKETS=(-3,)"])
    refused("predict", 2, "Found NUM_BEAMS 0", flags=[run, "--gin.NUM_BEAMS=0"])
    refused(
        "predict", 2, "There is no file nowhere.txt", flags=[run, "--gin.INPUT_FILE=nowhere.txt"]
    )


def test_output_that_cannot_be_written(world, tmp_path, refused):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "in.txt").write_text("mood: good\n")
    refused(
        "predict",
        1,
        "Cannot write",
        "out.txt",
        flags=[
            f"--gin.MODEL_DIR={world.target}",
            f"--gin.INPUT_FILE={tmp_path}/in.txt",
            f"--gin.OUTPUT_FILE={tmp_path}/file/out.txt",
        ],
    )


@pytest.fixture
def own_run(world, tmp_path):
    """A finished run that a test may spoil: ten steps of stage 1."""
    shutil.copytree(world.source, tmp_path / "run")
    return tmp_path / "run"


def test_the_folder_of_another_run(world, own_run, refused):
    for key, macros in {
        "method": {"METHOD": "lora"},
        "seed": {"SEED": 1},
        "data": {"MIXTURE_OR_TASK_NAME": "tiny_topic", "PROMPT_TEXT": "Say the mood of a text."},
        "prompt_text": {"PROMPT_TEXT": "Say the kind of a text."},
        "batch_size": {"BATCH_SIZE": 4},
        "pemt": {"config.PemtConfig.expert_rank": 5},
        "optimizer": {"LEARNING_RATE": 0.02},
    }.items():
        refused(
            "train",
            2,
            "holds the checkpoints of another run",
            f"whose {key}",
            flags=world.train_flags(own_run, **macros),
        )


def test_fewer_steps_than_were_made(world, own_run, refused):
    refused(
        "train",
        2,
        "is at step 20",
        "TRAIN_STEPS",
        "found 10",
        flags=world.train_flags(own_run, TRAIN_STEPS=10),
    )


def test_a_damaged_checkpoint(world, own_run, refused):
    """When no other is intact, the message names it and the leaf that has changed."""
    for step in (own_run / "checkpoints").iterdir():
        manifest = read_manifest(step)
        manifest["leaves"]["trainable/prompt/embedding"]["sha256"] = "0" * 64
        replace_manifest(step, manifest)
    refused(
        "train",
        1,
        "checkpoints/20 is damaged",
        "trainable/prompt/embedding",
        flags=world.train_flags(own_run, TRAIN_STEPS=30),
    )
    assert own_run.joinpath("artefact").is_dir()


def test_loss_that_is_not_finite(world, tmp_path, refused):
    t5, params = load_hf(world.base)
    params["encoder/encoder_norm/scale"] = np.full_like(
        params["encoder/encoder_norm/scale"], np.nan
    )
    save_hf(tmp_path / "base", t5, params, "float32")
    refused(
        "train",
        1,
        "Step 0 had loss nan",
        "no checkpoint was saved before it",
        flags=world.train_flags(
            tmp_path / "run",
            LIBRARY=tmp_path / "library",
            INITIAL_CHECKPOINT_PATH=tmp_path / "base",
        ),
    )
    assert not (tmp_path / "library").exists()
    refused("evaluate", 2, "has not ended", flags=[f"--gin.MODEL_DIR={tmp_path}/run"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "main, code, part, flags",
    [
        ("train", 2, "nearest: 'TRAIN_STEPS'", {"TRIAN_STEPS": 3}),
        ("train", 2, "nearest: 'tiny_mood'", {"METHOD": "pemt_target", "EXPERTS": "('tiny_mod',)"}),
        ("train", 1, "'tiny_empty' is empty", {"MIXTURE_OR_TASK_NAME": "tiny_empty"}),
        ("evaluate", 2, "does not exist", None),
    ],
)
def test_a_process_ends_with_the_code_and_the_sentence_after_what_it_was_doing(
    world, tmp_path, main, code, part, flags
):
    flags = (
        [f"--gin.MODEL_DIR={tmp_path}/run"]
        if flags is None
        else world.train_flags(tmp_path / "run", LIBRARY=world.library, **flags)
    )
    done = world.python("-m", f"pemt_jax.{main}", *flags)
    assert (done.returncode, done.stdout) == (code, "")
    *doing, sentence = done.stderr.splitlines()
    assert sentence.startswith("error: ") and part in sentence
    assert all(line.startswith(REPORTS) for line in doing)
