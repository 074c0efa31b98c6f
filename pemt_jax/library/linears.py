"""The names of an expert's parameters, by the linear layer that they are beside.

    encoder/layers_0/mlp/wo                     encoder/layers_0/mlp/expert/lora_a, lora_b
    decoder/layers_3/self_attention/query       decoder/layers_3/self_attention/query_expert/lora_a

A stage-2 bank has `experts` in place of `expert`. Those of W_o do not bear its name: they are as
old as the format, in which W_o alone had experts.
"""

import re
from collections.abc import Mapping

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]  # lora_a [in, R] and lora_b [R, out]; their product is added

LORA = re.compile(
    r"(?P<sublayer>(?:encoder|decoder)/layers_\d+/\w+)/(?:(?P<name>\w+)_)?expert/lora_(?P<ab>[ab])"
)


def linear_of(path: str) -> tuple[str, str] | None:
    """The linear layer and the letter of the parameter at `path`; None if it is no expert's."""
    match = LORA.fullmatch(path)
    return match and (f"{match['sublayer']}/{match['name'] or 'wo'}", match["ab"])


def expert_module(linear: str, bank: bool = False) -> str:
    """Where the parameters beside a linear layer lie, of one expert or of a bank."""
    sublayer, _, name = linear.rpartition("/")
    module = "experts" if bank else "expert"
    return f"{sublayer}/{module if name == 'wo' else f'{name}_{module}'}"


def flat_lora(lora: Mapping[str, Pair]) -> dict[str, np.ndarray]:
    """The flat parameters of an expert, by path."""
    return {
        f"{expert_module(linear)}/lora_{letter}": array
        for linear, pair in lora.items()
        for letter, array in zip("ab", pair, strict=True)
    }
