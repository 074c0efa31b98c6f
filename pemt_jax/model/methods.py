"""Which modules a method adds to the backbone and which parameters it trains.

A method is a row of `METHODS`.  The parameters of a model are split once, by path, into a
trainable and a frozen flat dict; everything after that (gradient, optimizer, checkpoint) sees the
trainable one only.
"""

import dataclasses
import re
from collections.abc import Mapping

import jax.numpy as jnp
from flax import traverse_util

from pemt_jax.common.errors import no_such

NORMS = r".*norm/scale"
PROMPT = r"prompt/embedding"
EXPERT = r".*/(\w+_)?expert/lora_[ab]"
ADAPTER = r".*/mlp/adapter/.*"
GATE = r".*/gate/kernel"


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
      trainable: regular expressions; a parameter whose whole path matches one is trained.
      prompt: whether a task prompt stands before the text.
      source_expert: whether there is a trainable expert.
      experts: whether frozen experts from the library are mixed in.
      adapter: whether feed-forward outputs have a target adapter.
      summary: one line for people.
    """

    name: str
    trainable: tuple[str, ...]
    prompt: bool = True
    source_expert: bool = False
    experts: bool = False
    adapter: bool = False
    summary: str = ""


METHODS = {
    method.name: method
    for method in (
        Method("full", (".*",), prompt=False, summary="every parameter of the backbone"),
        Method(
            "pemt_source",
            (EXPERT, PROMPT),
            source_expert=True,
            summary="stage 1: an expert and a task prompt",
        ),
        Method(
            "pemt_target",
            (GATE, ADAPTER, PROMPT, NORMS),
            experts=True,
            adapter=True,
            summary="stage 2: gates over frozen experts, target adapter, prompt, layer norms",
        ),
        Method(
            "adapter",
            (ADAPTER, PROMPT, NORMS),
            adapter=True,
            summary="stage 2 without experts: target adapter, prompt, layer norms",
        ),
        Method(
            "lora",
            (EXPERT, PROMPT),
            source_expert=True,
            summary="a low-rank pair per layer and a prompt, from an earlier one",
        ),
    )
}


def get_method(name: str) -> Method:
    """Return the method called `name`; UsageError with the nearest name when there is none."""
    if name not in METHODS:
        raise no_such("method", name, METHODS)
    return METHODS[name]


def trains(method: Method, path: str) -> bool:
    """Whether the method trains the parameter with this path."""
    return re.fullmatch("|".join(f"(?:{regex})" for regex in method.trainable), path) is not None


def kept_dtype(method: Method, path: str, frozen_dtype: str) -> jnp.dtype:
    """The dtype in which a parameter is kept: float32 where it is trained."""
    return jnp.dtype("float32" if trains(method, path) else frozen_dtype)


def split(params: Mapping, method: Method) -> tuple[dict, dict]:
    """Split nested parameters into (trainable, frozen), flat dicts keyed by '/'-joined path."""
    flat = traverse_util.flatten_dict(params, sep="/")
    trainable = {path: value for path, value in flat.items() if trains(method, path)}
    return trainable, {path: value for path, value in flat.items() if path not in trainable}


def merge(trainable: Mapping, frozen: Mapping) -> dict:
    """Return the nested parameters of which `split` made two flat dicts."""
    return traverse_util.unflatten_dict({**frozen, **trainable}, sep="/")
