"""(IA)3 and biases: trained vectors in the backbone, against the weights that they amount to."""

import jax
import numpy as np
import pytest
from tiny_model import T5, T5_1_1, compiled, jit, make_batch, random_params

from pemt_jax.config import PemtConfig
from pemt_jax.model.feed_forward import FeedForward

PLAIN, IA3, BIAS = (PemtConfig(vectors=vectors) for vectors in ("none", "ia3", "bias"))
BATCH = make_batch([3, 6], [4, 5], 6, 5)


@pytest.mark.parametrize("t5", [T5, T5_1_1], ids=["1.0", "1.1"])
def test_ia3_is_the_backbone_with_scaled_columns_and_rows(t5):
    """Closed form: k * s is x (W_k diag(s)), and (h * s) W_o is h (diag(s) W_o)."""
    params = random_params(t5, IA3)
    folded = jax.tree.map(np.copy, params)
    for stack in ("encoder", "decoder"):
        for layer in (v for k, v in folded[stack].items() if k.startswith("layers")):
            for sublayer in layer.values():
                if "key_scale" in sublayer:
                    for name in ("key", "value"):
                        sublayer[name]["kernel"] *= sublayer.pop(f"{name}_scale")["vector"]
                if "wo" in sublayer:
                    sublayer["wo"]["kernel"] *= sublayer.pop("scale")["vector"][:, None]
    found, _ = compiled(t5, IA3, "apply")(params, BATCH, None)
    expected, _ = compiled(t5, PLAIN, "apply")(folded, BATCH, None)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_bias_is_added_to_a_sublayers_output():
    params = random_params(T5, BIAS)["encoder"]["layers_0"]["mlp"]
    x_BLD = np.random.default_rng(0).normal(size=(2, 3, T5.emb_dim)).astype(np.float32)

    def output(pemt):
        module = FeedForward(T5, pemt, in_encoder=True)
        return jit(lambda x: module.apply({"params": params}, x, None, None, deterministic=True))(
            x_BLD
        )

    expected = np.asarray(output(PLAIN)) + params["bias"]["vector"]
    np.testing.assert_allclose(output(BIAS), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pemt", [IA3, BIAS], ids=["ia3", "bias"])
def test_new_vectors_change_nothing(pemt):
    params = random_params(T5, pemt)
    start = 1.0 if pemt is IA3 else 0.0
    new = jax.tree_util.tree_map_with_path(
        lambda path, x: np.full_like(x, start) if path[-1].key == "vector" else x, params
    )
    found, _ = compiled(T5, pemt, "apply")(new, BATCH, None)
    plain = jax.tree_util.tree_map_with_path(
        lambda path, x: None if path[-1].key == "vector" else x, params
    )
    expected, _ = compiled(T5, PLAIN, "apply")(plain, BATCH, None)
    np.testing.assert_array_equal(found, expected)
