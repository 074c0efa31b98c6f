"""The real PEFT: adapters on every set of linear layers, there and back, and their mixture."""

import jax
import numpy as np
import pytest
from adapters import (
    DATA,
    VERSIONS,
    apply,
    jitted,
    our_logits,
    random_lora,
    save_expert,
    their_base,
    their_logits,
)

from pemt_jax.config import PemtConfig
from pemt_jax.interop import peft
from pemt_jax.library.expert import bank_options, check_fits, stack_experts, take_apart
from pemt_jax.library.transfer import check_expert_folder

pytestmark = pytest.mark.parity
NAMES = {"hf_t5_1_0": "q k v o wi wo".split(), "hf_t5_1_1": "q k v o wi_0 wi_1 wo".split()}
CROSS = "decoder.block.0.layer.1.EncDecAttention"
SETS = {  # settings of LoraConfig
    "the default": {},
    "q v": {"target_modules": ["q", "v"], "lora_alpha": 16},
    "attention": {"target_modules": ["q", "k", "v", "o"], "use_rslora": True},
    "suffixes": {"target_modules": ["SelfAttention.q", "layer.1.DenseReluDense.wo"]},
    "a regex": {"target_modules": r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$"},
    "all-linear": {"target_modules": "all-linear", "lora_dropout": 0.1},
    "ranks": {
        "target_modules": "all-linear",
        "rank_pattern": {"q": 1, "DenseReluDense.wo": 5, f"^{CROSS}.k": 8},
        "alpha_pattern": {"v": 3, "encoder.block.1.layer.0.SelfAttention.o": 11},
    },
    "regexes": {
        "target_modules": ["q", "k", "wo"],
        "rank_pattern": {r"encoder\.block\.[12]\..*\.(q|k)": 2, r"block\.\d+.*wo": 7},
        "alpha_pattern": {r"(encoder|decoder)\.block\.0\..*": 1},
        "use_rslora": True,
    },
    "some layers": {"target_modules": ["o", "wo"], "layers_to_transform": [1]},
    "a layer": {
        "target_modules": ["k", "v"],
        "layers_to_transform": 0,
        "layers_pattern": "block",
        "exclude_modules": [f"{CROSS}.v"],
    },
    "for Conv1D": {"target_modules": ["q"], "fan_in_fan_out": True},
}
CASES = [
    *((version, {"target_modules": [name]}) for version in VERSIONS for name in NAMES[version]),
    ("hf_t5_1_0", {"target_modules": ["wi", "wo"]}),
    ("hf_t5_1_1", {"target_modules": ["wi_0", "wi_1", "wo"]}),
    *((version, settings) for version in VERSIONS for settings in SETS.values()),
]


@pytest.fixture
def theirs():
    pytest.importorskip("torch", reason='needs pip install "pemt_jax[parity]"')
    pytest.importorskip("transformers", reason='needs pip install "pemt_jax[parity]"')
    return pytest.importorskip("peft", reason='needs pip install "pemt_jax[parity]"')


def randomise(model, seed=0):
    """Random A and B, of a size at which float32 says something of attention without a scale."""
    import torch

    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3 * weight.shape[-1] ** -0.5, generator=random)


def examples(version, rows=slice(None)):
    with np.load(DATA / version / "expected.npz") as file:
        inputs, targets = file["inputs"][rows, :40], file["targets"][rows, :20]
        return inputs, targets, file["logits"][rows, :20]


def lora_of(folder, version):
    """The pairs of a PEFT folder, which fit the base."""
    config = jitted(version, PemtConfig())[0].t5
    prompt = np.zeros((1, config.emb_dim), np.float32)
    _, lora = take_apart("it", peft.import_adapter(folder).lora | {"prompt/embedding": prompt})
    check_fits("it", prompt, lora, config)
    return lora


def loaded(theirs, version, folder):
    """PEFT's model with the adapter in `folder`, which has every tensor that it wants, no more."""
    model = theirs.PeftModel.from_pretrained(their_base(version), folder)
    report = model.load_adapter(folder, "again")
    assert not report.unexpected_keys
    assert not [key for key in report.missing_keys if "lora_" in key]
    return model


@pytest.mark.parametrize("version, settings", CASES, ids=str)
def test_an_adapter_of_peft_gives_the_same_logits_here_and_there_again(
    tmp_path, theirs, version, settings
):
    inputs, targets, plain = examples(version)
    config = theirs.LoraConfig(task_type="SEQ_2_SEQ_LM", **{"r": 4, "lora_alpha": 6} | settings)
    model = theirs.get_peft_model(their_base(version), config)
    randomise(model)
    model.save_pretrained(tmp_path / "theirs")
    expected = their_logits(model, inputs, targets)
    real = targets > 0
    assert np.abs(expected - plain)[real].max() > 0.01  # the adapter does something

    lora = lora_of(tmp_path / "theirs", version)
    adapted = {n for n, _ in model.named_modules() if n.endswith("lora_A.default")}
    assert len(lora) == len(adapted)
    np.testing.assert_allclose(
        our_logits(version, lora, inputs, targets)[real], expected[real], rtol=0, atol=1e-5
    )

    expert = save_expert(tmp_path / "library", version, lora)
    card = check_expert_folder(tmp_path / "library" / "movies")
    peft.export_peft(tmp_path / "ours", expert, card)
    again = loaded(theirs, version, tmp_path / "ours")
    np.testing.assert_allclose(
        their_logits(again, inputs, targets)[real], expected[real], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "chosen, ranks",
    [
        (lambda path: path.endswith("/mlp/wo"), (3,)),
        (lambda path: path.endswith("/mlp/wo") and path < "encoder/layers_1", (4, 2)),
        (lambda path: "encoder_decoder" in path or path.endswith("0/attention/value"), (1, 6, 2)),
        (lambda path: True, (5, 3, 8, 1)),
    ],
)
def test_an_expert_of_ours_gives_the_same_logits_in_peft(tmp_path, theirs, version, chosen, ranks):
    inputs, targets, plain = examples(version)
    expert = save_expert(tmp_path / "library", version, random_lora(version, chosen, ranks))
    card = check_expert_folder(tmp_path / "library" / "movies")
    peft.export_peft(tmp_path / "ours", expert, card)
    expected = their_logits(loaded(theirs, version, tmp_path / "ours"), inputs, targets)
    real = targets > 0
    assert np.abs(expected - plain)[real].max() > 0.01
    logits = our_logits(version, expert.lora, inputs, targets)
    np.testing.assert_allclose(logits[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_mixture_with_a_constant_gate_is_pefts_weighted_concatenation(tmp_path, theirs, version):
    """A gate whose kernel is zero gives each of E experts 1/E, whatever the prompt's states are."""
    inputs, targets, _ = examples(version)
    settings = {  # PEFT takes an adapter that bears a module's name for the module
        "attentive": {"target_modules": ["q", "v"], "r": 4, "lora_alpha": 16},
        "outputs": {"target_modules": ["wo"], "r": 3, "lora_alpha": 5, "use_rslora": True},
        "every": {"target_modules": NAMES[version], "r": 2, "lora_alpha": 1},
    }
    model = None
    for name, more in settings.items():
        config = theirs.LoraConfig(task_type="SEQ_2_SEQ_LM", **more)
        if model is None:
            model = theirs.get_peft_model(their_base(version), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    assert model is not None
    randomise(model)
    model.save_pretrained(tmp_path / "theirs")
    names = [*settings]
    model.add_weighted_adapter(names, [1 / 3] * 3, "mixture", combination_type="cat")
    model.set_adapter("mixture")

    experts = [
        save_expert(
            tmp_path / "library", version, lora_of(tmp_path / "theirs" / name, version), name, 3 + i
        )
        for i, name in enumerate(names)
    ]
    pemt = PemtConfig(prompt_length=4, **bank_options(experts))
    ours, _, zeros = jitted(version, pemt)
    prompt = np.random.default_rng(0).normal(size=(4, ours.t5.emb_dim)).astype(np.float32)
    bank = stack_experts(experts, pemt) | {"prompt/embedding": prompt}
    assert {path.rpartition("/")[2] for path in zeros.keys() - bank.keys()} == {"kernel"}  # gates
    logits = apply(version, pemt, bank, inputs, targets)
    mixed = jax.jit(lambda p: ours.apply({"params": p}, method="task_prompt"))(
        {
            "prompt": {"embedding": prompt},
            "source_prompts": {"embedding": bank["source_prompts/embedding"]},
        }
    )
    expected = their_logits(model, inputs, targets, np.asarray(mixed))
    real = targets > 0
    np.testing.assert_allclose(logits[real], expected[real], rtol=0, atol=1e-5)
    model.set_adapter("attentive")
    other = their_logits(model, inputs, targets, np.asarray(mixed))
    assert np.abs(expected - other)[real].max() > 0.01
