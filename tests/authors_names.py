"""Our parameters under the names and layouts of the authors' code, as their files have them."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from pemt_jax.config import T5Config
from pemt_jax.interop.hf_names import parameter_table


def to_reference(
    config: T5Config,
    params: Mapping[str, np.ndarray],
    task: str,
    prompt_lengths: Sequence[int] = (),
) -> dict[str, np.ndarray]:
    """The inverse of `from_reference`.

    Args:
      config: shape of the backbone.
      params: our flat paths -> arrays, any part of a model.
      task: the target task's name, which the authors put into the adapters' names.
      prompt_lengths: rows of each source prompt, needed where `params` holds source prompts.
    """
    backbone = {entry.path: entry for entry in parameter_table(config)}
    tensors: dict[str, np.ndarray] = {}
    for path, array in params.items():
        array = np.asarray(array)
        if path in backbone:
            tensors[backbone[path].hf_name] = array.T if backbone[path].transposed else array
        elif path == "prompt/embedding":
            tensors["task_shared"] = array
        elif path == "source_prompts/embedding":
            for i, (prompt, length) in enumerate(zip(array, prompt_lengths, strict=True)):
                tensors[f"task_list.{i}"] = prompt[:length]
        elif match := re.fullmatch(r"(encoder|decoder)/layers_(\d+)/mlp/(\w+)/(.+)", path):
            stack, layer, module, leaf = match.groups()
            block = f"{stack}.block.{layer}.layer.{1 if stack == 'encoder' else 2}"
            output = f"{block}.DenseReluDense.wo"
            if module == "gate":
                tensors[f"{output}.w_gate"] = array
            elif module == "expert":
                tensors[f"{output}.lora_{leaf[-1].upper()}"] = array.T
            elif module == "experts":
                for i, part in enumerate(np.moveaxis(array, 1 if leaf == "lora_a" else 0, 0)):
                    tensors[f"{output}.lora_{leaf[-1].upper()}.{i}"] = part.T
            elif module == "adapter":
                side, leaf = leaf.split("/")
                leaf = "weight" if leaf == "kernel" else "bias"
                adapter = f"{block}.adapter_controller.adapters.{task}"
                tensors[f"{adapter}.{side}_sampler.{leaf}"] = array.T
    return tensors
