"""A target of the authors' code as a run of ours: the whole of it, or what their small files hold.

The tensors are those of a run of ours under their names; torch is not needed, see
test_importing.py.
"""

import json

import numpy as np
import pytest
from authors_names import to_reference
from built import assemble, open_run
from tiny_system import EXPERTS, T5, world_fixture  # noqa: F401

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.config import PemtConfig
from pemt_jax.interop import reference
from pemt_jax.interop.hf import load_hf
from pemt_jax.interop.import_expert import Request, import_peft
from pemt_jax.interop.peft import export_peft
from pemt_jax.library import expert as library
from pemt_jax.library.artefact import Card, read_artefact, read_card
from pemt_jax.library.transfer import add_expert
from pemt_jax.runs.import_target import import_target
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY

TEXT = "Say the mood of a text."


@pytest.fixture
def theirs(world, monkeypatch):
    """All tensors of the tiny target under the authors' names, and what a file of them holds."""
    experts = [library.load_expert(world.library, name) for name in EXPERTS]
    arrays, card = read_artefact(world.target / "artefact")
    bank = library.stack_experts(experts, PemtConfig(**card.config["pemt"]))
    lengths = [len(expert.prompt) for expert in experts]
    assert card.description == TEXT
    tensors = to_reference(T5, load_hf(world.base)[1] | bank | arrays, "tiny_mood", lengths)
    held = dict(tensors)
    monkeypatch.setattr(reference, "load_torch_file", lambda path: dict(held))
    return held


@pytest.fixture
def request_(world, tmp_path):
    """What the user says; the file itself is `theirs`."""
    (tmp_path / "pytorch_model.bin").touch()
    return Request(
        world.library,
        "",
        tmp_path / "pytorch_model.bin",
        base=str(world.base),
        prompt=TEXT,
        task="tiny_mood",
    )


def test_a_whole_state_dict_is_the_same_target(world, theirs, request_, tmp_path):
    assert import_target(request_, tmp_path / "run", EXPERTS) == ()
    before, card = read_artefact(world.target / "artefact")
    after, imported = read_artefact(tmp_path / "run" / "artefact")
    assert after.keys() == before.keys()
    for path, array in before.items():
        np.testing.assert_array_equal(after[path], array, err_msg=path)
    assert imported.experts == card.experts and imported.config["missing"] == []
    assert imported.base_fingerprint == card.base_fingerprint
    assembly, _ = open_run(str(tmp_path / "run"), DEFAULT_VOCABULARY)
    assert assembly.model.pemt.decoder_attends_padding  # as the authors' does


def test_of_the_small_files_the_card_says_what_is_missing(world, theirs, request_, tmp_path):
    for name in list(theirs):
        if "adapter" not in name and name != "task_shared":
            del theirs[name]
    missing = import_target(request_, tmp_path / "run", EXPERTS)
    assert len([path for path in missing if path.endswith("gate/kernel")]) == 2
    assert len([path for path in missing if path.endswith("norm/scale")]) == 7
    assert json.loads((tmp_path / "run" / "artefact" / "card.json").read_text())["config"][
        "missing"
    ] == list(missing)
    assembly, _ = open_run(str(tmp_path / "run"), DEFAULT_VOCABULARY)
    base = load_hf(world.base)[1]
    for path in missing:
        start = base[path] if path in base else 0
        np.testing.assert_array_equal(assembly.params[path], start, err_msg=path)
    trained = read_artefact(world.target / "artefact")[0]
    np.testing.assert_array_equal(assembly.params["prompt/embedding"], trained["prompt/embedding"])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("task_shared"), "lacks task_shared"),
        (lambda t: [t.pop(n) for n in list(t) if "adapters" in n], "lacks .*adapters"),
        (lambda t: t.pop(next(n for n in t if "w_gate" in n)), "lacks decoder/layers_0/mlp/gate"),
        (lambda t: t.pop(next(n for n in t if "down_sampler.bias" in n)), "lacks .*down/bias"),
        (lambda t: t.update(task_shared=t["task_shared"][:-1]), "has 9 tokens, expected the 8"),
        (
            lambda t: t.update({n: t[n] * 2 for n in t if n.endswith("SelfAttention.q.weight")}),
            "differs from the base",
        ),
        (
            lambda t: t.update({n: t[n] * 2 for n in t if n.endswith("lora_B.1")}),
            "differs from .*exp",
        ),
        (
            lambda t: t.update({n: t[n][:, :1] for n in t if "w_gate" in n}),
            "gate.* shape .*not fit",
        ),
    ],
)
def test_what_is_not_this_target_is_refused(theirs, request_, tmp_path, change, message):
    change(theirs)
    with pytest.raises(PemtError, match=message):
        import_target(request_, tmp_path / "run", EXPERTS)
    assert not (tmp_path / "run").exists()


def test_the_order_of_the_experts_and_all_that_no_file_says_are_needed(theirs, request_, tmp_path):
    with pytest.raises(PemtError, match="differs from the base or the experts"):
        import_target(request_, tmp_path / "run", EXPERTS[::-1])
    with pytest.raises(UsageError, match="needs --experts"):
        import_target(request_, tmp_path / "run", ())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").touch()
    with pytest.raises(UsageError, match="exists already"):
        import_target(request_, tmp_path / "run", EXPERTS)


def test_the_artefact_of_a_stage_1_run_is_an_expert_to_add(world, tmp_path):
    expert = add_expert(tmp_path / "library", world.source / "artefact", "mood")
    assert expert.sha256 == library.load_expert(world.library, "tiny_mood").sha256
    with pytest.raises(PemtError, match="target artefact, expected an expert"):
        add_expert(tmp_path / "library", world.target / "artefact", "target")


@pytest.mark.slow
def test_stage_2_trains_on_an_expert_that_has_been_to_peft(world, tmp_path):
    for name in EXPERTS:
        folder = tmp_path / f"{name}_peft"
        export_peft(
            folder, library.load_expert(world.library, name), read_card(world.library / name)
        )
        import_peft(Request(tmp_path / "library", name, folder, base=str(world.base)))
    world.train(
        tmp_path / "run", method="pemt_target", library=str(tmp_path / "library"), experts=EXPERTS
    )
    trained, card = read_artefact(tmp_path / "run" / "artefact")
    expected, before = read_artefact(world.target / "artefact")
    assert card.experts == before.experts  # names and hashes
    for path, array in expected.items():
        np.testing.assert_array_equal(trained[path], array, err_msg=path)


def test_an_expert_that_covers_no_decoder_layer_can_be_mixed(world, tmp_path):
    expert = library.load_expert(world.library, EXPERTS[0])
    a, b = expert.lora["encoder/layers_0/mlp/wo"]
    library.save_expert(
        tmp_path,
        "half",
        {
            library.PROMPT: expert.prompt,
            "encoder/layers_0/mlp/expert/lora_a": a,
            "encoder/layers_0/mlp/expert/lora_b": b,
        },
        Card(
            kind="expert",
            method="pemt_source",
            task="t",
            description="",
            base_fingerprint=expert.base_fingerprint,
        ),
    )
    made = assemble(
        "pemt_target",
        DEFAULT_VOCABULARY,
        base=str(world.base),
        prompt_text=TEXT,
        library=str(tmp_path),
        experts=("half",),
    )
    assert not made.params["decoder/layers_0/mlp/experts/lora_b"].any()
    assert made.params["encoder/layers_0/mlp/experts/lora_b"].any()
