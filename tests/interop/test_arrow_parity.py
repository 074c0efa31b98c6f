"""Arrow routing gives the numbers of PEFT's layer."""

import flax.linen as nn
import numpy as np
import pytest

from pemt_jax.config import PemtConfig
from pemt_jax.library.prototypes import prototypes
from pemt_jax.model.experts import ExpertMixture
from pemt_jax.model.gate import token_gate

pytestmark = pytest.mark.parity
E, R, F, D, TOP_K, TEMPERATURE = 4, 3, 10, 6, 2, 0.8


class Routed(nn.Module):
    """The experts beside one linear layer."""

    @nn.compact
    def __call__(self, x_BLF):
        pemt = PemtConfig(
            prompt_length=1,
            expert_names=tuple("abcd"),
            source_prompt_lengths=(1,) * E,
            gate="arrow",
            gate_top_k=TOP_K,
            gate_temperature=TEMPERATURE,
        )
        gate_BLE = token_gate(pemt, x_BLF, "mlp", "gate")
        return ExpertMixture(E, R, D, name="experts")(x_BLF, gate_BLE)[0]


def test_prototypes_and_outputs_are_pefts():
    torch = pytest.importorskip("torch", reason='needs pip install "pemt_jax[parity]"')
    arrow = pytest.importorskip(
        "peft.tuners.lora.arrow", reason='needs pip install "pemt_jax[parity]"'
    )
    random = np.random.default_rng(0)
    a_FER = random.normal(size=(F, E, R)).astype(np.float32)
    b_ERD = random.normal(size=(E, R, D)).astype(np.float32)
    b_ERD[:, 0] *= 5  # their 15 steps of power iteration need a gap between singular values
    x_BLF = random.normal(size=(2, 7, F)).astype(np.float32)

    def linear(weight):
        layer = torch.nn.Linear(*weight.T.shape, bias=False)
        layer.weight.data = torch.from_numpy(np.ascontiguousarray(weight))
        return layer

    names = list("abcd")
    lora_a = {name: linear(a_FER[:, i].T) for i, name in enumerate(names)}
    lora_b = {name: linear(b_ERD[i].T) for i, name in enumerate(names)}
    config = arrow.ArrowConfig(top_k=TOP_K, router_temperature=TEMPERATURE, rng_seed=0)
    config.task_adapter_names = names
    theirs = arrow.ArrowLoraLinearLayer(F, config)
    theirs.build_prototypes(lora_a, lora_b)
    scaling = dict.fromkeys(names, 1.0)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x_BLF), lora_a, lora_b, torch.nn.Identity(), scaling)

    found = prototypes({"x/experts/lora_a": a_FER, "x/experts/lora_b": b_ERD})["x/gate/prototypes"]
    cosines = np.abs(np.einsum("ef,fe->e", theirs.prototypes.numpy(), found))
    np.testing.assert_allclose(cosines, 1, rtol=1e-5)
    params = {"gate": {"prototypes": found}, "experts": {"lora_a": a_FER, "lora_b": b_ERD}}
    ours = Routed().apply({"params": params}, x_BLF)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-3, atol=1e-4)
