"""PEMT under real T5X. T5X is not on PyPI; without it this file is one line of skipped tests."""

import importlib.util
import itertools
import json
import signal
import subprocess
import time

import jax
import numpy as np
import optax
import pytest
import seqio
from flax import traverse_util

if importlib.util.find_spec("t5x") is None:
    pytest.skip("T5X is not installed (pemt_jax/t5x/README.md)", allow_module_level=True)

import tiny_system
from built import assemble
from t5x import adafactor, utils
from t5x.examples.t5 import network
from t5x_system import (
    batch_at,
    command,
    experts_of_t5x,
    make,
    make_t5x_trainer,
    run,
    target_of_t5x,
    train_once,
    under_t5x,
)
from tiny_system import EXPERTS, LENGTHS, world_fixture  # noqa: F401

from pemt_jax import optimizers
from pemt_jax.common.errors import UsageError
from pemt_jax.common.weights import load_weights
from pemt_jax.config import T5Config
from pemt_jax.interop.hf import load_hf
from pemt_jax.library.expert import load_expert
from pemt_jax.model.methods import split
from pemt_jax.t5x import bridge as t5x_bridge
from pemt_jax.t5x import model as t5x_runs
from pemt_jax.t5x import state as t5x_state
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY
from pemt_jax.training.trainer import Trainer

pytestmark = pytest.mark.t5x


@pytest.fixture(autouse=True)
def rank_promotion_as_t5x_has_it():
    """T5X itself broadcasts between ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("t5x")


def train(t5x_trainer, steps: int) -> list[float]:
    losses = []
    for step in range(steps):
        summary = t5x_trainer.train(iter([batch_at(step)]), 1, start_step=step).result()
        losses.append(float(summary["loss"].value))
    return losses


def flat(params) -> dict[str, np.ndarray]:
    return jax.device_get(traverse_util.flatten_dict(params, sep="/"))


@pytest.mark.parametrize(
    "method, dropout_rate, linears",
    [
        ("pemt_source", 0.1, ("wo",)),
        ("pemt_target", 0.0, ("wo",)),
        ("pemt_source", 0.1, ("q", "v")),
        ("pemt_target", 0.0, ("q", "v")),
        ("ia3", 0.1, ("wo",)),
        ("attempt", 0.0, ("wo",)),
    ],
)
def test_both_drivers_train_alike(world, folder, method, dropout_rate, linears):
    """The same losses and parameters, dropout included; the frozen ones do not move."""
    made = make(folder, method, dropout_rate, linears)
    theirs = make_t5x_trainer(made, seed=3)
    their_losses = train(theirs, 10)
    trainable, frozen = split(made.nested(), made.method)
    ours = Trainer(
        made.model.loss_fn, trainable, frozen, optimizers.make_optimizer(schedule=0.01), seed=3
    )
    losses = [float(ours.step(batch_at(step))["loss"].compute()) for step in range(10)]
    np.testing.assert_allclose(their_losses, losses, rtol=1e-6)
    assert losses[-1] < losses[0] - (0.1 if method.startswith("pemt") else 0)  # few are trained
    params = flat(theirs.train_state.params)
    for path, value in flat(ours.params()).items():
        if path in frozen:
            np.testing.assert_array_equal(params[path], made.params[path], err_msg=path)
        else:
            np.testing.assert_allclose(params[path], value, atol=1e-5, err_msg=path)


def test_the_gradient_of_microbatches_is_that_of_the_batch(folder):
    """Of parts with equally many target tokens: it is what the optimizer is given to clip."""
    made = make(folder, "full")
    whole, parts = (make_t5x_trainer(made, optax.sgd(0.1), microbatches=n) for n in (None, 4))
    part = {name: value[:2] for name, value in batch_at(0).items()}
    batch = {name: np.concatenate([value] * 4) for name, value in part.items()}
    losses = [trainer.train(iter([batch]), 1).result()["loss"].value for trainer in (whole, parts)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    expected, found = flat(whole.train_state.params), flat(parts.train_state.params)
    for path, value in expected.items():
        assert np.abs(value - made.params[path]).max() > 1e-4, path
        np.testing.assert_allclose(found[path], value, atol=1e-6, err_msg=path)


def compiled_step(made, **options):
    t5x_trainer = make_t5x_trainer(made, **options)
    t5x_trainer.compile_train(batch_at(0))
    return t5x_trainer, t5x_trainer._compiled_train_step


def test_frozen_parameters_get_no_gradient_and_no_optimizer_state(folder):
    made, full = make(folder, "pemt_source"), make(folder, "full")
    partial, step = compiled_step(made)
    _, full_step = compiled_step(full)
    flops = [compiled.cost_analysis()["flops"] for compiled in (step, full_step)]
    assert flops[0] < 0.75 * flops[1]  # of forward, gradient to activations, gradient to weights
    trained = sum(value.size for value in split(made.nested(), made.method)[0].values())
    state = sum(leaf.size for leaf in jax.tree.leaves(partial.train_state.param_states))
    assert 2 * trained <= state <= 2 * trained + 4  # two moments and counters


def test_the_first_state_is_what_t5x_itself_would_initialise(world, folder):
    made = make(folder, "pemt_target")
    ours = make_t5x_trainer(made).train_state
    theirs = make_t5x_trainer(made, initializer=utils.TrainStateInitializer).train_state
    assert jax.tree.structure(ours.state_dict()) == jax.tree.structure(theirs.state_dict())
    jax.tree.map(np.testing.assert_array_equal, ours.state_dict(), theirs.state_dict())
    for path, value in flat(ours.params).items():
        np.testing.assert_array_equal(value, made.params[path])


def test_rows_without_targets_are_decoded(world, folder):
    model = t5x_bridge.PemtT5X(make(folder, "pemt_target"), num_decodes=2)
    batch = batch_at(0)
    blind = batch | {name: np.zeros_like(batch[name]) for name in batch if "decoder" in name}
    predict = jax.jit(model.predict_batch)
    params = model.built.nested()
    tokens = predict(params, blind)
    assert np.any(tokens, axis=1).all()
    np.testing.assert_array_equal(tokens, predict(params, batch))
    decodes, aux = jax.eval_shape(
        lambda: model.predict_batch_with_aux(params, batch, return_all_decodes=True)
    )
    assert decodes.shape == (8, 2, 4) and aux["scores"].shape == (8, 2)
    scores = jax.eval_shape(lambda: model.score_batch(params, batch, return_intermediates=True))
    assert scores[0].shape == (8,) and set(scores[1]) == {"decoder"}


def test_the_vocabularies_of_tasks_and_model_are_equal_for_t5x(folder):
    model = t5x_bridge.PemtT5X(make(folder, "full"))
    config = utils.DatasetConfig("tiny_mood", LENGTHS, "train", 8, False, None)
    utils.verify_matching_vocabs(config, model)
    same = seqio.SentencePieceVocabulary(DEFAULT_VOCABULARY.sentencepiece_model_file, 100)
    for name, vocabulary in (("same", same), ("other", seqio.ByteVocabulary())):
        seqio.TaskRegistry.add(
            f"t5x_{name}",
            source=seqio.FunctionDataSource(lambda split, shuffle_files: None, ()),
            output_features={name: seqio.Feature(vocabulary) for name in LENGTHS},
        )
    config.mixture_or_task_name = "t5x_same"
    utils.verify_matching_vocabs(config, model)
    config.mixture_or_task_name = "t5x_other"
    with pytest.raises(ValueError, match="vocabularies do not match"):
        utils.verify_matching_vocabs(config, model)


def test_what_t5x_cannot_train_is_refused_in_a_sentence(folder):
    made = make(folder, "pemt_source")
    with pytest.raises(UsageError, match="T5X cannot train with this optimizer .*FactoredState"):
        t5x_bridge.PemtT5X(made, optimizers.make_optimizer("adafactor"))
    with pytest.raises(UsageError, match="'pemt_source' freezes parameters, which Adafactor"):
        t5x_bridge.PemtT5X(made, adafactor.Adafactor(1e-3))
    with pytest.raises(UsageError, match="packed data set, expected pack=False"):
        t5x_bridge.PemtT5X(made).get_initial_variables(None, {"encoder_segment_ids": (8, 16)})


def new_model(folder, **options):
    options = {"method": "pemt_source", "initial_checkpoint_path": str(folder / "base")} | options
    return t5x_runs.new_model(
        mixture_or_task_name="tiny_mood",
        task_feature_lengths=LENGTHS,
        model_dir=options.pop("model_dir", str(folder / "run")),
        train_steps=20,
        batch_size=8,
        library=str(folder / "library"),
        optimizer=optimizers.make_optimizer(),
        **options,
    )


def test_a_size_of_t5x_is_the_shape_of_a_backbone_or_must_be_the_bases(folder):
    make(folder, "full")
    fields = {
        name: getattr(tiny_system.T5, name)
        for name in vars(network.T5Config(1))
        if hasattr(tiny_system.T5, name)
    }
    size = network.T5Config(**fields | {"dtype": "bfloat16"})
    assert t5x_runs.shape_of(size) == T5Config(**fields | {"dtype": "bfloat16"})
    assert new_model(folder, t5=size).built.model.t5.dtype == "bfloat16"
    new = new_model(folder, method="full", t5=size, initial_checkpoint_path=None)
    assert new.built.model.t5 == t5x_runs.shape_of(size)
    with pytest.raises(UsageError, match="has mlp_dim = 32, expected 64 as the T5Config says"):
        new_model(folder, t5=network.T5Config(**fields | {"mlp_dim": 64}))


def test_a_folder_takes_up_no_run_but_its_own(folder):
    make(folder, "pemt_source")
    publish = t5x_state.Publish(new_model(folder))
    state = {"target": publish.model.built.nested(), "state": {"step": np.int32(0)}}
    assert publish(state, {}) == (state, {}) and not (folder / "run" / "artefact").exists()
    publish({**state, "state": {"step": np.int32(10)}}, {})
    assert (folder / "run" / "artefact_10" / "card.json").is_file()
    new_model(folder)
    with pytest.raises(UsageError, match="run holds another run, whose pemt.prompt_length is 9"):
        new_model(folder, prompt_text="Other.")
    (folder / "run" / "t5x_run.json").unlink()  # a run of an earlier version
    with pytest.raises(UsageError, match="whose prompt_text is 'Say the mood of a text.'"):
        new_model(folder, prompt_text="Other.")
    new_model(folder)
    with pytest.raises(UsageError, match="cannot be written to gs://b/x, .* set ARTEFACT_DIR"):
        new_model(folder, model_dir="gs://b/x")


def test_an_identity_is_checked_before_anything_is_restored(world, folder):
    """From T5X's first checkpoint on, where nothing is published yet."""
    make(folder, "pemt_source")
    run = dict(model_dir=str(folder / "killed"))
    new_model(folder, **run)
    (folder / "killed" / "checkpoint_0").mkdir()
    new_model(folder, **run)
    for changed, words in (
        ({"initial_checkpoint_path": str(world.base)}, "base is"),
        ({"prompt_text": "Say the mode of a text."}, "prompt_text is"),
        ({"seed": 7}, "seed is"),
        ({"dropout_rate": 0.5}, "t5.dropout_rate is"),
    ):
        with pytest.raises(UsageError, match=f"killed holds another run, whose {words}"):
            new_model(folder, **run | changed)
    with pytest.raises(UsageError, match="Found SEED None, expected a number"):
        new_model(folder, seed=None)


def test_a_run_that_goes_on_from_step_0_misses_no_batch(world, tmp_path):
    """T5X fetches a batch before it saves checkpoint_0."""
    config = utils.DatasetConfig("tiny_mood", LENGTHS, "train", 2, True, 42)
    converter = seqio.EncDecFeatureConverter

    def rows(data, count=5):
        return [batch["encoder_input_tokens"].tolist() for batch in itertools.islice(data, count)]

    expected = rows(t5x_state.train_data(config, 0, 1, converter))
    data = t5x_state.train_data(config, 0, 1, converter)
    for step in (0, 2):  # saved after one batch, and after two
        next(data)
        data.save(tmp_path / f"checkpoint_{step}" / "dataset")
    for step, position in ((0, 0), (2, 2)):
        resumed = t5x_state.train_data(config, 0, 1, converter)
        resumed.restore(tmp_path / f"checkpoint_{step}" / "dataset")
        assert rows(resumed, 5 - position) == expected[position:]


# Real commands of T5X, each a process of 10 to 40 seconds.


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 10])
def test_a_killed_run_resumes_to_the_same_bits(world, tmp_path, step):
    experts_of_t5x(world)
    task, name = EXPERTS[0], f"t5x_killed_{step}"
    arguments, macros = under_t5x(
        world, name, "stage1", MIXTURE_OR_TASK_NAME=task, LIBRARY=str(tmp_path)
    )
    killed = world.folder / name
    process = subprocess.Popen(
        command(world, *arguments, **macros),
        cwd=world.folder,
        env=world.environment(1),
        stderr=subprocess.DEVNULL,
    )
    while not (killed / f"checkpoint_{step}").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / f"checkpoint_{step + 10}").exists()
    run(world, *arguments, **macros)
    whole = load_weights(world.folder / f"t5x_{task}" / "artefact" / "weights.safetensors")
    resumed = load_weights(killed / "artefact_20" / "weights.safetensors")
    assert whole.keys() == resumed.keys()
    for path, value in whole.items():
        np.testing.assert_array_equal(resumed[path], value, err_msg=path)


@pytest.mark.slow
def test_a_wrong_command_ends_with_a_sentence_and_writes_nothing(world):
    arguments, macros = under_t5x(world, "t5x_wrong", "stage1", TRIAN_STEPS=5)
    done = run(world, *arguments, **macros, expected_code=2)
    assert "Traceback" not in done and done.endswith(
        "error: The macro TRIAN_STEPS is set by --gin.TRIAN_STEPS=... but nothing reads it "
        "(nearest: 'TRAIN_STEPS').\n"
    )
    assert not (world.folder / "t5x_wrong").exists()


@pytest.mark.slow
def test_experts_of_t5x_are_mixed_by_our_trainer(world):
    library = experts_of_t5x(world)
    assert load_expert(library, EXPERTS[0]).metrics == {"step": 20}
    folder = world.folder / "target_of_t5x_experts"
    metrics = world.train(folder, library=str(library), experts=EXPERTS)
    card = json.loads((folder / "artefact" / "card.json").read_text())
    assert [expert["name"] for expert in card["experts"]] == list(EXPERTS)
    assert metrics["accuracy"] > 0.5


@pytest.mark.slow
def test_experts_of_our_trainer_are_mixed_by_t5x_on_two_by_two_devices(world):
    library = str(world.library)
    folders = [
        train_once(world, "t5x_of_ours", "stage2", EXPERTS=EXPERTS, LIBRARY=library),
        train_once(
            world,
            "t5x_2x2",
            "stage2",
            devices=4,
            EXPERTS=EXPERTS,
            LIBRARY=library,
            **{
                "partitioning.PjitPartitioner.num_partitions": None,
                "partitioning.PjitPartitioner.model_parallel_submesh": (1, 1, 1, 2),
            },
        ),
    ]
    placed = [(f / "checkpoint_20" / "state" / "_sharding").read_text() for f in folders]
    assert "[1, 1]" in placed[0] and "[2, 2]" in placed[1]
    assert "partition spec (None, 'model')" in (folders[1] / "model-info.txt").read_text()
    one, four = (load_weights(f / "artefact" / "weights.safetensors") for f in folders)
    for path, value in one.items():
        np.testing.assert_allclose(four[path], value, atol=1e-4, err_msg=path)


@pytest.mark.slow
def test_t5x_evaluates_and_infers_what_our_commands_say_of_the_artefact(world, capsys):
    """From a checkpoint that holds nothing frozen."""
    target = target_of_t5x(world)
    checkpoint = str(target / "checkpoint_20")
    saved = (target / "checkpoint_20" / "state" / "_METADATA").read_text()
    assert "gate" in saved and "token_embedder" not in saved and "lora_a" not in saved
    macros = {
        "MODEL_DIR": str(target),
        "CHECKPOINT_PATH": checkpoint,
        "MIXTURE_OR_TASK_NAME": "tiny_mood",
    }
    run(world, "eval", **macros, EVAL_OUTPUT_DIR=str(target / "eval"))
    run(world, "infer", **macros, INFER_OUTPUT_DIR=str(target / "infer"), MODE="predict_with_aux")
    metrics = json.loads(
        (target / "eval" / "inference_eval" / "tiny_mood-metrics.jsonl")
        .read_text()
        .splitlines()[-1]
    )
    capsys.readouterr()
    assert world.command("evaluate", f"--gin.MODEL_DIR={target / 'artefact_20'}") == 0
    assert metrics["accuracy"] == json.loads(capsys.readouterr().out)["accuracy"] > 0
    [file] = (target / "infer").glob("tiny_mood-predict_with_aux.jsonl-00000-of-00001")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    texts, ours = target / "texts", target / "ours.jsonl"
    texts.write_text("\n".join(text for text, _ in tiny_system.rows("mood", "test")))
    flags = (f"MODEL_DIR={target / 'artefact_20'}", f"INPUT_FILE={texts}", f"OUTPUT_FILE={ours}")
    assert world.command("predict", *(f"--gin.{flag}" for flag in flags)) == 0
    expected = [json.loads(line) for line in ours.read_text().splitlines()]
    for row, found in zip(expected, rows, strict=True):
        assert found["inputs"]["inputs_pretokenized"] == row["input"]
        assert found["prediction"] == row["prediction"]
        np.testing.assert_allclose(found["aux"]["scores"], row["log_probability"], rtol=1e-4)
        np.testing.assert_allclose(found["aux"]["gate"], list(row["gate"].values()), rtol=1e-4)


@pytest.mark.slow
def test_a_size_of_t5x_is_pretrained_by_its_recipe_and_leaves_a_base(world):
    shape = {
        "emb_dim": 16,
        "num_heads": 2,
        "head_dim": 8,
        "mlp_dim": 32,
        "vocab_size": 8192,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "dtype": "float32",
    }
    folder = train_once(
        world,
        "t5x_pretrain",
        "pretrain",
        files=["t5x/examples/t5/t5_1_1/base.gin"],
        MIXTURE_OR_TASK_NAME="tiny_both",
        INITIAL_CHECKPOINT_PATH=None,
        **{f"network.T5Config.{name}": value for name, value in shape.items()},
    )
    t5, params = load_hf(folder / "base")
    assert {name: getattr(t5, name) for name in shape} == shape
    assert t5.mlp_activations == ("gelu", "linear") and not t5.logits_via_embedding
    begun = assemble("full", DEFAULT_VOCABULARY, base=None, t5=t5, seed=42).params
    moved = [path for path, value in begun.items() if not np.array_equal(value, params[path])]
    assert len(moved) == len(begun)
