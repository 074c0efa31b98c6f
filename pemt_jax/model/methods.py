"""Which modules a method adds to the backbone and which parameters it trains.

A method is a row of `METHODS`.  The parameters of a model are split once, by path, into a
trainable and a frozen flat dict; everything after that (gradient, optimizer, checkpoint) sees the
trainable one only.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import traverse_util

from pemt_jax.common.errors import UsageError, no_such
from pemt_jax.config import PemtConfig

DECODER = r"decoder/.*"
NORMS = r".*norm/scale"
PROMPT = r"prompt/\w+|source_prompts/attention/.*"
EXPERT = r".*/(\w+_)?expert/lora_[ab]"
ADAPTER = r".*/mlp/adapter/.*"
GATE = r".*/(\w+_)?gate/(kernel|logits)"
VECTORS = r".*/vector"
ADAPTER_REDUCTION = 16  # of the width, in the target adapter, unless options.adapter_dim is set


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
      trainable: regular expressions; a parameter whose whole path matches one is trained.
      prompt: whether a task prompt stands before the text.
      source_expert: whether there is a trainable expert.
      experts: whether frozen experts from the library are mixed in, or their prompts.
      adapter: whether feed-forward outputs have a target adapter.
      base: whether a run leaves a base model for others instead of an artefact.
      choices: fields of PemtConfig that make the method what it is, whatever the user says.
      summary: one line for people.
    """

    name: str
    trainable: tuple[str, ...]
    prompt: bool = True
    source_expert: bool = False
    experts: bool = False
    adapter: bool = False
    base: bool = False
    choices: Mapping[str, str] = dataclasses.field(default_factory=dict)
    summary: str = ""

    def modules(self, options: PemtConfig, width: int, prompt_length: int) -> dict[str, Any]:
        """Fields of PemtConfig that say which modules there are, but for experts.

        Args:
          options: choices of the user.
          width: D of the backbone.
          prompt_length: of the task's description.

        Raises:
          UsageError: the user chose what is another method's.
        """
        for name in {"vectors", *self.choices}:
            own, default = self.choices.get(name), getattr(PemtConfig, name)
            if (found := getattr(options, name)) not in (default, own):
                raise UsageError(
                    f"PemtConfig.{name} is {found!r}, expected {own or default!r}, which method "
                    f"{self.name!r} has."
                )
        adapter_dim = options.adapter_dim or max(1, width // ADAPTER_REDUCTION)
        return {
            "prompt_length": prompt_length if self.prompt else 0,
            "source_expert": self.source_expert,
            "adapter_dim": adapter_dim if self.adapter else 0,
            **self.choices,
        }


METHODS = {
    method.name: method
    for method in (
        Method("full", (".*",), prompt=False, base=True, summary="every parameter of the backbone"),
        Method(
            "decoder",
            (DECODER,),
            prompt=False,
            base=True,
            summary="the decoder alone: encoder and embedding stay as pretrained",
        ),
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
        Method(
            "mixture",
            (GATE, PROMPT, NORMS),
            experts=True,
            summary="stage 2 without the target adapter: gates, prompt, layer norms",
        ),
        Method("prompt_tuning", (PROMPT,), summary="the prompt alone, from an expert's (SPoT)"),
        Method(
            "attempt",
            (PROMPT,),
            experts=True,
            choices={"gate": "none", "prompt_mixing": "attention"},
            summary="a prompt, and attention to the experts' prompts by each input",
        ),
        Method(
            "mpt",
            (PROMPT,),
            choices={"prompt_mixing": "product"},
            summary="a prompt times a matrix of rank one",
        ),
        Method(
            "bitfit",
            (VECTORS,),
            prompt=False,
            choices={"vectors": "bias"},
            summary="a bias on every sublayer's output",
        ),
        Method(
            "ia3",
            (VECTORS,),
            prompt=False,
            choices={"vectors": "ia3"},
            summary="factors of keys, values and feed-forward activations",
        ),
        Method("norms", (NORMS,), prompt=False, summary="layer norms"),
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
