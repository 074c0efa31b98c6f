"""The linear layers of a T5: PyTorch's module names, and T5X's paths by which an expert has them.

encoder.block.3.layer.0.SelfAttention.q       encoder/layers_3/attention/query
decoder.block.3.layer.1.EncDecAttention.o     decoder/layers_3/encoder_decoder_attention/out
decoder.block.3.layer.2.DenseReluDense.wi_0   decoder/layers_3/mlp/wi_0
"""

import functools
import re

from pemt_jax.config import T5Config
from pemt_jax.interop.hf_names import parameter_table

BLOCK, LAYER = re.compile(r"\.block\.(0|[1-9]\d*)\.", re.A), re.compile(r"/layers_(\d+)/")
NAMES = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")


@functools.cache
def _first_layers() -> dict[str, str]:
    """Module -> path of the linear layers in the first layer of each stack, of T5 1.0 and 1.1."""
    table = {}
    for activations in (("relu",), ("gelu", "linear")):
        t5 = T5Config(num_encoder_layers=1, num_decoder_layers=1, mlp_activations=activations)
        linears = t5.linears()
        for entry in parameter_table(t5):
            if (path := entry.path.removesuffix("/kernel")) in linears:
                table[entry.hf_name.removesuffix(".weight")] = path
    return table


def linear_of(module: str) -> str | None:
    """The path of the linear layer that is `module` in a T5; None if none is."""
    number = BLOCK.search(module)
    path = _first_layers().get(BLOCK.sub(".block.0.", module, count=1))
    return path and number and path.replace("/layers_0/", f"/layers_{number[1]}/")


def module_of(linear: str) -> str:
    """The inverse of `linear_of`."""
    modules = {path: module for module, path in _first_layers().items()}
    number = LAYER.search(linear)
    assert number  # of an expert, which has such paths only
    module = modules[LAYER.sub("/layers_0/", linear)]
    return module.replace(".block.0.", f".block.{number[1]}.")
