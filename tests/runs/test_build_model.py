"""From names to a model: what comes from where, and one sentence for what does not fit."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from built import assemble
from tiny_system import EXPERTS, OPTIONS, T5, random_base, world_fixture  # noqa: F401

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.hashing import fingerprint
from pemt_jax.common.weights import load_weights
from pemt_jax.config import PemtConfig
from pemt_jax.interop.hf import load_hf
from pemt_jax.library import expert as library
from pemt_jax.library.artefact import Card
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.model.prompts import prompt_tokens
from pemt_jax.runs.build_model import cut_embedding
from pemt_jax.runs.initialization import initial_parameters
from pemt_jax.tasks.vocabulary import DEFAULT_VOCABULARY, PACKAGED, beside, prefer

TEXT = "Say the mood of a text."


def target(world, **options):
    defaults = dict(
        base=str(world.base),
        prompt_text=TEXT,
        library=str(world.library),
        experts=EXPERTS,
        options=OPTIONS,
    )
    return assemble("pemt_target", DEFAULT_VOCABULARY, **(defaults | options))


def source(world, method="pemt_source", **options):
    defaults = dict(base=str(world.base), prompt_text=TEXT, options=OPTIONS)
    return assemble(method, DEFAULT_VOCABULARY, **(defaults | options))


def test_a_target_model_stands_on_the_base_and_the_experts_in_the_order_named(world):
    _, base = load_hf(world.base)
    for names in (EXPERTS, EXPERTS[::-1]):
        made = target(world, experts=names)
        for path, value in base.items():
            np.testing.assert_array_equal(made.params[path], value)
        assert made.model.pemt.expert_names == names
        for i, name in enumerate(names):
            expert = library.load_expert(world.library, name)
            for linear, (a_FR, b_RD) in expert.lora.items():
                np.testing.assert_array_equal(
                    made.params[f"{linear.removesuffix('wo')}experts/lora_a"][:, i], a_FR
                )
                np.testing.assert_array_equal(
                    made.params[f"{linear.removesuffix('wo')}experts/lora_b"][i], b_RD
                )
            prompt = made.params["source_prompts/embedding"][i, : len(expert.prompt)]
            np.testing.assert_array_equal(prompt, expert.prompt)
        assert [e["name"] for e in made.identity["experts"]] == list(names)


def test_a_prompt_starts_as_the_embeddings_of_its_text(world):
    made = source(world)
    tokens = prompt_tokens(DEFAULT_VOCABULARY, TEXT)
    assert tokens[-1] == DEFAULT_VOCABULARY.eos_id
    assert made.model.pemt.prompt_length == len(tokens)
    np.testing.assert_array_equal(
        made.params["prompt/embedding"], np.asarray(made.params["token_embedder/embedding"])[tokens]
    )
    random = source(world, options=dataclasses.replace(OPTIONS, prompt_init="normal"))
    assert random.params["prompt/embedding"].shape == made.params["prompt/embedding"].shape
    assert not np.array_equal(random.params["prompt/embedding"], made.params["prompt/embedding"])


def test_fresh_values_depend_on_the_seed_alone(world):
    """Which of the other values are given must not change a draw."""
    path = "encoder/layers_0/mlp/expert/lora_a"
    first, again, other = (source(world, seed=seed).params[path] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    from_nothing = source(world, base=None, t5=T5)
    np.testing.assert_array_equal(first, from_nothing.params[path])


def test_the_identity_is_json_and_tells_runs_apart(world):
    made = target(world)
    base = fingerprint(load_hf(world.base)[1])
    assert json.loads(json.dumps(made.identity))["base"] == made.identity["base"] == base
    cards = [json.loads((world.library / name / "card.json").read_text()) for name in EXPERTS]
    assert [e["sha256"] for e in made.identity["experts"]] == [card["sha256"] for card in cards]
    for other in (
        target(world, seed=1),
        target(world, experts=EXPERTS[::-1]),
        target(world, prompt_text="Say the topic of a text."),
        target(world, dropout_rate=0.5),
        source(world),
    ):
        assert other.identity != made.identity
    assert target(world).identity == made.identity


def test_an_adapter_is_a_sixteenth_of_the_width_unless_told(world):
    for options, width in ((PemtConfig(), 1), (OPTIONS, 4)):
        made = assemble(
            "adapter", DEFAULT_VOCABULARY, base=str(world.base), prompt_text=TEXT, options=options
        )
        assert made.params["encoder/layers_0/mlp/adapter/down/kernel"].shape == (16, width)
        assert not any("expert" in path for path in made.params)


def test_training_starts_from_an_expert_that_is_named(world):
    expert = library.load_expert(world.library, "tiny_topic")
    made = source(world, "lora", library=str(world.library), initial_expert="tiny_topic")
    for linear, (a_FR, b_RD) in expert.lora.items():
        np.testing.assert_array_equal(
            made.params[f"{linear.removesuffix('wo')}expert/lora_a"], a_FR
        )
        np.testing.assert_array_equal(
            made.params[f"{linear.removesuffix('wo')}expert/lora_b"], b_RD
        )
    np.testing.assert_array_equal(made.params["prompt/embedding"], expert.prompt)
    assert made.identity["experts"] == [{"name": "tiny_topic", "sha256": expert.sha256}]
    # A prompt of another length starts as its own text.
    longer = source(
        world,
        "lora",
        library=str(world.library),
        initial_expert="tiny_topic",
        prompt_text=f"{TEXT} Now.",
    )
    tokens = prompt_tokens(DEFAULT_VOCABULARY, f"{TEXT} Now.")
    np.testing.assert_array_equal(
        longer.params["prompt/embedding"],
        np.asarray(longer.params["token_embedder/embedding"])[tokens],
    )


def test_an_embedding_can_be_cut_to_the_vocabulary():
    rows, width = 12, 3
    embedding = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    params = {"token_embedder/embedding": embedding, "decoder/logits_dense/kernel": embedding.T}
    cut = cut_embedding(params, 10)
    np.testing.assert_array_equal(cut["token_embedder/embedding"], embedding[:10])
    np.testing.assert_array_equal(cut["decoder/logits_dense/kernel"], embedding.T[:, :10])
    for wrong in (0, 13):
        with pytest.raises(UsageError, match=f"embedding_rows is {wrong}, expected at most .* 12"):
            cut_embedding(params, wrong)


def test_a_padded_embedding_is_cut_where_asked_for(tmp_path, world):
    padded = random_base(tmp_path / "padded", dataclasses.replace(T5, vocab_size=8128))
    whole = source(world, base=str(padded))
    cut = source(world, base=str(padded), embedding_rows=8100)
    assert whole.params["token_embedder/embedding"].shape == (8128, 16)
    np.testing.assert_array_equal(
        cut.params["token_embedder/embedding"], whole.params["token_embedder/embedding"][:8100]
    )
    assert cut.model.t5.vocab_size == 8100
    assert cut.identity["base"] == whole.identity["base"] != cut.identity["t5"]


def test_overrides_reach_the_model(world):
    t5 = source(world, dropout_rate=0.0, dtype="bfloat16").model.t5
    assert (t5.dropout_rate, t5.dtype) == (0.0, "bfloat16")


FAULTS = {
    "a misspelled method": (dict(method="pemt_sorce"), r"nearest: 'pemt_source'"),
    "two backbones": (dict(t5=T5), r"Found both of a base and a T5 configuration"),
    "no backbone": (dict(base=None), r"Found neither of a base and a T5 configuration"),
    "no prompt": (dict(prompt_text=None), r"'pemt_source' needs a prompt, expected PROMPT_TEXT"),
    "experts that are not mixed": (
        dict(experts=EXPERTS),
        r"mixes no experts, found tiny_topic, tiny_mood",
    ),
    "nothing to mix": (dict(method="pemt_target"), r"expert is named, expected at least one"),
    "a start for no expert": (
        dict(method="adapter", initial_expert="tiny_mood"),
        r"'adapter' trains no expert that could start as 'tiny_mood'",
    ),
    "a start for a backbone": (
        dict(method="full", initial_expert="tiny_mood"),
        r"'full' trains no expert that could start as 'tiny_mood'",
    ),
    "an unknown start": (dict(method="lora", initial_expert="tiny_mod"), r"nearest: 'tiny_mood'"),
    "another rank": (
        dict(method="lora", initial_expert="tiny_mood", options=PemtConfig(expert_rank=5)),
        r"'tiny_mood' has rank 4 beside decoder/layers_0/mlp/wo, expected 5",
    ),
    "a misspelled dtype": (dict(dtype="bfloat61"), r"nearest: 'bfloat16'"),
}


@pytest.mark.parametrize("options, sentence", FAULTS.values(), ids=FAULTS)
def test_what_does_not_fit_is_one_sentence(world, options, sentence):
    with pytest.raises(UsageError, match=sentence) as error:
        source(world, **({"library": str(world.library)} | options))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_a_vocabulary_that_is_not_the_bases_is_found(world, tmp_path, request):
    few = random_base(tmp_path / "few", dataclasses.replace(T5, vocab_size=7000))
    with pytest.raises(UsageError, match=f"base {few} has no tokenizer, expected a spiece.model"):
        source(world, base=str(few))
    shutil.copy(PACKAGED, few)
    prefer(beside(few))
    request.addfinalizer(lambda: prefer(None))
    with pytest.raises(UsageError, match="8100 entries but the checkpoint has 7000 embedding rows"):
        source(world, base=str(few))
    # The right number of rows, but another file lies beside the weights.
    other = tmp_path / "other"
    shutil.copytree(world.base, other, ignore=shutil.ignore_patterns("SHA256SUMS"))
    with open(other / "spiece.model", "ab") as file:
        file.write(b"\x00")
    with pytest.raises(UsageError, match=f"expected {other}/spiece.model; set VOCABULARY"):
        source(world, base=str(other))


def test_an_expert_of_another_width_is_named(world, tmp_path, expert_arrays):
    print_ = source(world).identity["base"]
    library.save_expert(
        tmp_path,
        "wide",
        expert_arrays(D=24, F=48, R=4),
        Card(
            kind="expert",
            method="pemt_source",
            task="wide",
            description="wide",
            base_fingerprint=print_,
        ),
    )
    sentence = "'wide' has a prompt of width 24, expected 16"
    with pytest.raises(PemtError, match=sentence):
        target(world, library=str(tmp_path), experts=["wide"])
    with pytest.raises(PemtError, match=sentence):
        source(world, "lora", library=str(tmp_path), initial_expert="wide")


def test_a_layer_that_no_expert_covers_adds_nothing(world, tmp_path):
    """As after an import of a LoRA on the encoder alone: a decoder of zero experts."""
    arrays = {
        path: value
        for path, value in load_weights(world.library / "tiny_mood" / "weights.safetensors").items()
        if not path.startswith("decoder/")
    }
    base = fingerprint(load_hf(world.base)[1])
    library.save_expert(
        tmp_path,
        "half",
        arrays,
        Card(
            kind="expert",
            method="pemt_source",
            task="half",
            description=TEXT,
            base_fingerprint=base,
        ),
    )
    made = target(world, library=str(tmp_path), experts=("half",))
    assert made.params["encoder/layers_0/mlp/experts/lora_b"].any()
    assert made.params["decoder/layers_0/mlp/experts/lora_b"].shape == (1, 4, 16)
    assert not made.params["decoder/layers_0/mlp/experts/lora_b"].any()


@pytest.mark.parametrize("linears, said", [(("q", "v"), True), (("q", "o"), False)])
def test_a_bank_beside_no_output_says_that_the_sparsity_loss_has_no_effect(
    world, tmp_path, capsys, linears, said
):
    made = source(world, options=PemtConfig(expert_rank=2, expert_linears=linears))
    card = Card("expert", "pemt_source", "mood", made.identity["base"])
    library.save_expert(tmp_path, "mood", made.split()[0], card)
    target(world, library=str(tmp_path), experts=["mood"])
    assert ("PemtConfig.tsl_weight has no effect" in capsys.readouterr().err) == said


def test_layers_that_the_base_lacks_are_named(world):
    with pytest.raises(UsageError, match="has 'wi_0', expected some .* encoder/mlp/wi,"):
        source(world, options=PemtConfig(expert_linears=("wi_0",)))


def test_experts_that_no_memory_can_hold_are_refused_before_they_are_made():
    model = PemtModel(T5, PemtConfig(prompt_length=2, source_expert=True, expert_rank=10**9))
    with pytest.raises(UsageError, match=r"lora_\w has shape .*1000000000.* takes at least"):
        initial_parameters(model, 0)
