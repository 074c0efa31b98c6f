"""What a run leaves behind, and opening it again: also elsewhere, never with exchanged parts."""

import dataclasses
import shutil
from pathlib import Path

import built
import numpy as np
import pytest
from tiny_system import EXPERTS, LENGTHS, T5, random_base, snapshot, world_fixture  # noqa: F401

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.weights import load_weights, save_weights
from pemt_jax.interop.hf import load_hf
from pemt_jax.library import artefact
from pemt_jax.library import expert as library
from pemt_jax.library.combination import Combination
from pemt_jax.library.combine import combine_experts, random_expert
from pemt_jax.run_config import TrainConfig
from pemt_jax.runs import publish
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY


def open_run(folder, **moved):
    return built.open_run(str(folder), DEFAULT_VOCABULARY, **moved)


def copy_of(world, tmp_path: Path) -> Path:
    """A copy of the target's artefact; what it stands on stays where it is."""
    shutil.copytree(world.target / "artefact", tmp_path / "run" / "artefact")
    return tmp_path / "run"


def test_an_opened_run_is_the_base_the_experts_and_what_was_trained(world):
    made, card = open_run(world.target)
    trained = load_weights(world.target / "artefact" / "weights.safetensors")
    _, base = load_hf(world.base)
    for path, value in (base | trained).items():
        np.testing.assert_array_equal(made.params[path], value)
    for i, name in enumerate(EXPERTS):
        for linear, (a_FR, _) in library.load_expert(world.library, name).lora.items():
            np.testing.assert_array_equal(
                made.params[f"{linear.removesuffix('wo')}experts/lora_a"][:, i], a_FR
            )
    assert made.model.pemt.expert_names == EXPERTS
    assert (card.kind, card.method, card.task) == ("target", "pemt_target", "tiny_mood")
    assert card.config["task_feature_lengths"] == {"inputs": 16, "targets": 4}
    assert card.metrics["accuracy"] == card.metrics["average"]


def test_an_expert_made_of_experts_is_opened_like_they_are(world, tmp_path):
    folder = shutil.copytree(world.library, tmp_path / "library")
    combine_experts(folder, "both", EXPERTS, Combination("cat", (0.5, 0.5)))
    random_expert(folder, "random", "both")
    for name in ("both", "random"):
        made, card = open_run(folder / name)
        arrays = load_weights(folder / name / "weights.safetensors")
        assert arrays["encoder/layers_0/mlp/expert/lora_a"].shape == (T5.mlp_dim, 8)
        for path, value in arrays.items():
            np.testing.assert_array_equal(made.params[path], value)
        assert card.method == "pemt_source" and "model_dir" not in card.config


def test_an_expert_whose_layers_differ_in_rank_is_opened_filled_up_with_zeros(world, tmp_path):
    arrays, card = artefact.read_artefact(library.expert_folder(world.library, EXPERTS[0]))
    arrays["encoder/layers_0/mlp/expert/lora_a"] = arrays["encoder/layers_0/mlp/expert/lora_a"][
        :, :3
    ]
    arrays["encoder/layers_0/mlp/expert/lora_b"] = arrays["encoder/layers_0/mlp/expert/lora_b"][:3]
    library.save_expert(tmp_path, "uneven", arrays, card)
    made, _ = open_run(tmp_path / "uneven")
    a_FR = made.params["encoder/layers_0/mlp/expert/lora_a"]
    b_RD = made.params["encoder/layers_0/mlp/expert/lora_b"]
    np.testing.assert_array_equal(a_FR[:, :3], arrays["encoder/layers_0/mlp/expert/lora_a"])
    assert a_FR.shape[1] == b_RD.shape[0] == 4 and not np.any(a_FR[:, 3]) and not np.any(b_RD[3])


def test_an_artefact_holds_only_what_was_trained(world):
    paths = set(load_weights(world.target / "artefact" / "weights.safetensors"))
    assert "prompt/embedding" in paths and "encoder/encoder_norm/scale" in paths
    for path in paths:
        assert (
            path == "prompt/embedding"
            or "/gate/" in path
            or "/adapter/" in path
            or (path.endswith("norm/scale"))
        ), path


def test_a_source_expert_is_in_the_library_and_in_its_run(world):
    for name in EXPERTS:
        run = world.library.parent / "stage1" / name / "artefact"
        mine, here = artefact.read_artefact(run)
        theirs, there = artefact.read_artefact(world.library / name)
        assert here.sha256 == there.sha256 and here.kind == there.kind == "expert"
        assert here.task == there.task == name and here.metrics == there.metrics
        assert here.base_fingerprint == there.base_fingerprint
        assert mine.keys() == theirs.keys()
        opened, card = open_run(run.parent)
        assert opened.model.pemt.source_expert and card.method == "pemt_source"
        np.testing.assert_array_equal(opened.params["prompt/embedding"], mine["prompt/embedding"])


def test_a_run_an_artefact_and_a_base_can_each_be_named(world):
    made, _ = open_run(world.target / "artefact")
    assert made.identity == open_run(world.target)[0].identity
    from_run, card = open_run(world.pretrained)
    from_base, _ = open_run(world.base)
    assert card is None and from_run.identity == from_base.identity
    assert (world.base / "spiece.model").read_bytes() == Path(
        DEFAULT_VOCABULARY.sentencepiece_model_file
    ).read_bytes()


def test_base_and_library_may_have_moved(world, tmp_path):
    run = copy_of(world, tmp_path)
    base = shutil.copytree(world.base, tmp_path / "base")
    experts = shutil.copytree(world.library, tmp_path / "experts")
    before, after = snapshot(run), open_run(run, base=str(base), library=str(experts))
    for path, value in open_run(world.target)[0].params.items():
        np.testing.assert_array_equal(after[0].params[path], value)
    assert snapshot(run) == before


def test_another_base_is_refused(world, tmp_path):
    other = random_base(tmp_path / "other", T5, seed=1)
    with pytest.raises(PemtError, match="trained on the base 'base' with fingerprint"):
        open_run(world.target, base=str(other))
    # A run without experts has no other witness than its own card.
    shutil.copytree(world.library / "tiny_mood", tmp_path / "run" / "artefact")
    with pytest.raises(PemtError, match=f"'base' with fingerprint .* found .* at {other}"):
        open_run(tmp_path / "run", base=str(other))


def test_an_exchanged_expert_is_refused(world, tmp_path):
    """A whole expert of the same name, base and widths, but not the one of the run."""
    experts = shutil.copytree(world.library, tmp_path / "experts")
    arrays, card = artefact.read_artefact(experts / "tiny_mood")
    library.save_expert(
        experts,
        "tiny_mood",
        {k: v + 1 for k, v in arrays.items()},
        artefact.Card(
            kind="expert",
            method="pemt_source",
            task=card.task,
            description=card.description,
            base_fingerprint=card.base_fingerprint,
        ),
    )
    with pytest.raises(PemtError, match="'tiny_mood' in .* is not the one that .* trained with"):
        open_run(world.target, library=str(experts))


def test_an_expert_that_is_gone_is_named(world, tmp_path):
    experts = shutil.copytree(world.library, tmp_path / "experts")
    shutil.rmtree(experts / "tiny_topic")
    with pytest.raises(UsageError, match="There is no expert 'tiny_topic' in .* holds tiny_mood"):
        open_run(world.target, library=str(experts))
    with pytest.raises(UsageError, match="which holds none"):
        open_run(world.target, library=str(tmp_path / "nowhere"))


def test_a_base_that_is_gone_is_named(world, tmp_path):
    with pytest.raises(PemtError, match="There is no model folder .*nowhere"):
        open_run(world.target, base=str(tmp_path / "nowhere"))


def test_a_damaged_artefact_is_refused(world, tmp_path):
    run = copy_of(world, tmp_path)
    weights = run / "artefact" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(PemtError, match="is damaged or exchanged"):
        open_run(run)
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PemtError, match="is damaged or exchanged"):
        open_run(run)
    weights.unlink()
    with pytest.raises(PemtError, match="has no weights.safetensors"):
        open_run(run)
    weights.write_bytes(whole)
    card = run / "artefact" / "card.json"
    card.write_text(card.read_text().replace("tiny_mood", "tiny_food"))
    with pytest.raises(PemtError, match="is damaged or edited by hand"):
        open_run(run)
    card.write_text("{")
    with pytest.raises(PemtError, match="is no JSON"):
        open_run(run)


def test_an_artefact_of_another_shape_is_refused(world, tmp_path):
    arrays, card = artefact.read_artefact(world.target / "artefact")
    arrays["prompt/embedding"] = arrays["prompt/embedding"][:, :8]
    artefact.write_artefact(tmp_path / "run" / "artefact", arrays, card)
    with pytest.raises(PemtError, match=r"prompt/embedding of shape \(9, 8\), expected \(9, 16\)"):
        open_run(tmp_path / "run")


def test_a_card_without_its_configuration_is_refused(world, tmp_path):
    arrays, card = artefact.read_artefact(world.target / "artefact")
    for config in ({}, card.config | {"pemt": {"no_such_field": 1}}, card.config | {"t5": None}):
        artefact.write_artefact(
            tmp_path / "run" / "artefact", arrays, dataclasses.replace(card, config=config)
        )
        with pytest.raises(PemtError, match="has no usable config"):
            open_run(tmp_path / "run")


def test_an_unfinished_or_missing_run_is_told_apart(tmp_path):
    with pytest.raises(UsageError, match="nowhere does not exist, expected the MODEL_DIR"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="has neither artefact nor base, expected the MODEL_DIR"):
        open_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="its run has not ended: run its command again"):
        open_run(tmp_path)
    (tmp_path / "file").write_text("text")
    with pytest.raises(UsageError, match="file has neither artefact nor base"):
        open_run(tmp_path / "file")


def test_a_base_is_published_whole_after_its_weights(world, tmp_path):
    """config.json is what says that a folder is a base, so it comes last."""
    base = shutil.copytree(
        world.base, tmp_path / "run" / "base", ignore=shutil.ignore_patterns("SHA256SUMS")
    )
    (base / "config.json").unlink()
    with pytest.raises(PemtError, match="There is no file .*config.json"):
        open_run(tmp_path / "run")
    values = load_weights(world.base / "model.safetensors")
    save_weights(base / "model.safetensors", values)
    shutil.copy(world.base / "config.json", base)
    assert open_run(tmp_path / "run")[0].params.keys() == load_hf(world.base)[1].keys()


# What is asked for, and the sentence.
UNPUBLISHABLE = {
    "a file": (dict(model_dir="file"), "file is a file"),
    "below a file": (dict(model_dir="file/run"), "file is a file"),
    "a name that is a path": (dict(expert_name="a/b"), "'a/b' is no name"),
    "a name for no expert": (dict(method="adapter", expert_name="x"), "trains no expert"),
    "no base": (
        dict(method="adapter", initial_checkpoint_path=None),
        "'adapter' has no base model",
    ),
    "a dtype": (dict(frozen_dtype="floaty"), "'floaty'.*nearest: 'float32'"),
    "a method": (dict(method="loar"), "nearest: 'lora'"),
}


def check(tmp_path, model_dir="run", **changes):
    defaults = dict(
        model_dir=str(tmp_path / model_dir),
        mixture_or_task_name="tiny_mood",
        task_feature_lengths=LENGTHS,
        batch_size=8,
        train_steps=20,
        method="lora",
        initial_checkpoint_path="base",
        library=str(tmp_path / "library"),
    )
    publish.check_publishable(TrainConfig.of(**defaults | changes))


@pytest.mark.parametrize("changes, sentence", UNPUBLISHABLE.values(), ids=UNPUBLISHABLE)
def test_what_could_not_be_published_is_refused_before(tmp_path, changes, sentence):
    (tmp_path / "file").write_text("text")
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=sentence):
        check(tmp_path, **changes)
    assert snapshot(tmp_path) == before


def test_new_folders_at_any_depth_can_be_published_to(tmp_path, monkeypatch):
    for folder in ("run", "a/b/c"):
        check(tmp_path, folder, expert_name="tiny", frozen_dtype="bfloat16")
    monkeypatch.chdir(tmp_path)
    check(Path(), method="full", initial_checkpoint_path=None, base_dtype="bfloat16")
    assert snapshot(tmp_path) == {}


def test_the_expert_of_another_run_is_not_replaced(world, tmp_path):
    """Targets stand on experts by name; one that changed would break them all."""
    experts = str(world.library)
    with pytest.raises(UsageError, match="an expert 'tiny_mood' made by .*stage1/tiny_mood"):
        check(tmp_path, library=experts, expert_name="tiny_mood")
    check(
        world.source.parent,
        "tiny_mood",
        method="pemt_source",
        library=experts,
        expert_name="tiny_mood",
    )
    (tmp_path / "library" / "notes").mkdir(parents=True)
    (tmp_path / "library" / "notes" / "diary.txt").write_text("precious")
    with pytest.raises(PemtError, match="notes exists and is no artefact"):
        check(tmp_path, expert_name="notes")
