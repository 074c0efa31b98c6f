"""Low-rank adapters of the tiny T5s in tests/data: random experts, and logits on both sides."""

import copy
import functools
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np

from pemt_jax.common.hashing import fingerprint
from pemt_jax.common.weights import load_weights
from pemt_jax.config import PemtConfig
from pemt_jax.interop import hf
from pemt_jax.library import expert as library
from pemt_jax.library.artefact import Card
from pemt_jax.library.linears import expert_module, flat_lora
from pemt_jax.model.network import Transformer

DATA = Path(__file__).parents[1] / "data"
VERSIONS = ["hf_t5_1_0", "hf_t5_1_1"]
R = 8  # the largest rank of these tests
load_hf = functools.cache(hf.load_hf)


def save_expert(folder, version, lora, name="movies", prompt_length=5):
    """Save an expert with these pairs and a random prompt in a library; return it loaded."""
    config, base = load_hf(DATA / version)
    prompt = np.random.default_rng(len(name)).normal(size=(prompt_length, config.emb_dim))
    library.save_expert(
        folder,
        name,
        flat_lora(lora) | {library.PROMPT: prompt.astype(np.float32)},
        Card(
            kind="expert",
            method="pemt_source",
            task="imdb",
            description="rate a movie: ü",
            base_fingerprint=fingerprint(base),
            base_name=version,
            metrics={"accuracy": 0.5},
            config={"seed": 3},
        ),
    )
    return library.load_expert(folder, name)


def random_lora(version, chosen, ranks=(3,), seed=0):
    """Random pairs beside the linear layers for which `chosen`; their ranks go round the layers."""
    rng = np.random.default_rng(seed)
    widths = {p: w for p, w in load_hf(DATA / version)[0].linears().items() if chosen(p)}
    return {
        path: (
            # As a checkpoint of PyTorch gives them: transposed views.
            rng.normal(size=(rank, width)).astype(np.float32).T * np.float32(0.3 / width**0.5),
            rng.normal(size=(out, rank)).astype(np.float32).T,
        )
        for i, (path, (width, out)) in enumerate(widths.items())
        for rank in [ranks[i % len(ranks)]]
    }


@functools.cache
def jitted(version, pemt):
    """Our model of a tiny T5 as a jitted function, and zeros for what is not the base's."""
    config, base = load_hf(DATA / version)
    model = Transformer(config, pemt)
    tokens = np.ones((1, 1), np.int32)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), tokens, tokens, tokens, np.ones(1))["params"]
    )
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    zeros = {path: np.zeros(x.shape, np.float32) for path, x in flat.items() if path not in base}
    return model, jax.jit(model.apply), zeros


def apply(version, pemt, more, inputs, targets):
    """Our logits; `more` are the parameters beside the base's, zero where they lack one."""
    _, function, zeros = jitted(version, pemt)
    assert more.keys() <= zeros.keys()
    params = load_hf(DATA / version)[1] | zeros | more
    tree = flax.traverse_util.unflatten_dict(params, sep="/")
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    return function({"params": tree}, inputs, shifted, targets, np.ones(len(inputs)))


def our_logits(version, lora, inputs, targets):
    """Logits of our own T5 with a low-rank pair beside the linear layers that have one."""
    more = {}
    for linear, (a, b) in lora.items():
        missing = R - a.shape[1]
        more[f"{expert_module(linear)}/lora_a"] = np.pad(a, ((0, 0), (0, missing)))
        more[f"{expert_module(linear)}/lora_b"] = np.pad(b, ((0, missing), (0, 0)))
    pemt = PemtConfig(source_expert=True, expert_linears=("all",), expert_rank=R)
    return apply(version, pemt, more, inputs, targets)


@functools.cache
def _their_base(version):
    import torch
    import transformers

    base = transformers.T5ForConditionalGeneration.from_pretrained(DATA / version)
    if version == "hf_t5_1_1":  # transformers 5 ties every T5, in 1.1 the two are different
        weight = load_weights(DATA / version / "model.safetensors")["lm_head.weight"]
        base.lm_head.weight = torch.nn.Parameter(torch.tensor(weight.astype(np.float32)))
    return base


def their_base(version):
    """The tiny T5 in transformers, a copy to change."""
    return copy.deepcopy(_their_base(version))


def their_logits(model, inputs, targets, prompt=None):
    """Logits of transformers or PEFT, in float64: half of a difference would be their rounding."""
    import torch

    model = model.eval().double()
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    mask, text = inputs > 0, {"input_ids": torch.tensor(inputs)}
    if prompt is not None:
        embedded = model.get_input_embeddings()(text["input_ids"])
        rows = torch.tensor(np.broadcast_to(prompt, (len(inputs), *prompt.shape)).copy())
        text = {"inputs_embeds": torch.cat([rows.double(), embedded], dim=1)}
        mask = np.pad(mask, ((0, 0), (len(prompt), 0)), constant_values=True)
    with torch.no_grad():
        return model(
            **text,
            attention_mask=torch.tensor(mask).long(),
            decoder_input_ids=torch.tensor(shifted),
        ).logits.numpy()
