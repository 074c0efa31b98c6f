"""Parameters under the names and layouts of the authors' PyTorch code, in and out.

The authors (JachinLin2022/PEMT) put everything that PEMT adds inside the T5 module that uses it:

    encoder.block.I.layer.1.DenseReluDense.wo.lora_A [R, F], .lora_B [D, R]     stage 1
    ...wo.lora_A.E, ...wo.lora_B.E                                              stage 2, expert E
    ...wo.w_gate [F or D, E]                                                    gate
    encoder.block.I.layer.1.adapter_controller.adapters.TASK.down_sampler.weight [C, D]
    task_shared [P, D], task_list.E [P_E, D]                                    prompts

(the decoder's feed-forward is layer.2).  Here experts are one stacked bank and source prompts are
padded on the right to the longest.  Any part of a model can be translated: a whole state dict, the
`lora.pt` of a stage-1 run, the gradients of what is trained.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from pemt_jax.common.errors import PemtError
from pemt_jax.config import T5Config
from pemt_jax.interop.hf_names import parameter_table

# A state dict lists shared tensors under every name; named_parameters() lists these copies never.
COPIES = re.compile(
    r"lm_head\.weight|(encoder|decoder)\.(embed_tokens\.weight|task_emb)"
    r"|(encoder|decoder)\.pretrain_task_emb_list\.\d+"
)
FEED_FORWARD = re.compile(r"(encoder|decoder)\.block\.(\d+)\.layer\.(?:1|2)\.(.*)")
EXPERT = re.compile(r"DenseReluDense\.wo\.lora_(A|B)(?:\.(\d+))?")
ADAPTER = re.compile(r"adapter_controller\.adapters\.(.+)\.(down|up)_sampler\.(weight|bias)")
SOURCE_PROMPT = re.compile(r"task_list\.(\d+)")


def source_prompt_lengths(tensors: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Rows of each source prompt among the authors' tensors, in expert order."""
    lengths = {
        int(match[1]): len(tensor)
        for name, tensor in tensors.items()
        if (match := SOURCE_PROMPT.fullmatch(name))
    }
    return tuple(lengths[i] for i in sorted(lengths))


def from_reference(
    config: T5Config, tensors: Mapping[str, np.ndarray], source: str = "the checkpoint"
) -> dict[str, np.ndarray]:
    """The authors' names and layouts to ours, as flat float32 parameters.

    Args:
      config: shape of the backbone.
      tensors: PyTorch name -> array, any part of a model; copies of shared tensors are left out.
      source: what to call the tensors in an error.

    Raises:
      PemtError: a tensor of unknown name or wrong shape, a gap in a list of experts, or adapters
        of more than one task.
    """
    backbone = {entry.hf_name: entry for entry in parameter_table(config)}
    params: dict[str, np.ndarray] = {}
    lists: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    tasks = set()
    for name, tensor in tensors.items():
        array = np.asarray(tensor, np.float32)
        if name in backbone:
            entry = backbone[name]
            array = array.T if entry.transposed else array
            if array.shape != entry.shape:
                raise PemtError(
                    f"Tensor {name!r} in {source} has shape {list(tensor.shape)}, "
                    "which does not fit the backbone's configuration."
                )
            params[entry.path] = array
        elif COPIES.fullmatch(name):
            continue
        elif name == "task_shared":
            params["prompt/embedding"] = array
        elif match := SOURCE_PROMPT.fullmatch(name):
            lists["source_prompts/embedding"][int(match[1])] = array
        elif match := FEED_FORWARD.fullmatch(name):
            stack, layer, rest = match.groups()
            path = f"{stack}/layers_{layer}/mlp"
            if rest == "DenseReluDense.wo.w_gate":
                params[f"{path}/gate/kernel"] = array
            elif match := EXPERT.fullmatch(rest):
                letter, index = match[1].lower(), match[2]
                if index is None:
                    params[f"{path}/expert/lora_{letter}"] = array.T
                else:
                    lists[f"{path}/experts/lora_{letter}"][int(index)] = array.T
            elif match := ADAPTER.fullmatch(rest):
                tasks.add(match[1])
                leaf = "kernel" if match[3] == "weight" else "bias"
                params[f"{path}/adapter/{match[2]}/{leaf}"] = array.T
            else:
                raise _unknown(name, source)
        else:
            raise _unknown(name, source)
    if len(tasks) > 1:
        raise PemtError(f"{source} has adapters of {sorted(tasks)}, expected those of one task.")
    for path, parts in lists.items():
        params[path] = _stack(path, parts, source)
    return {path: np.ascontiguousarray(array) for path, array in params.items()}


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

    Raises:
      PemtError: a path that the authors' code has no place for.
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
                for i, part in enumerate(np.moveaxis(array, _expert_axis(path), 0)):
                    tensors[f"{output}.lora_{leaf[-1].upper()}.{i}"] = part.T
            elif module == "adapter":
                side, leaf = leaf.split("/")
                leaf = "weight" if leaf == "kernel" else "bias"
                adapter = f"{block}.adapter_controller.adapters.{task}"
                tensors[f"{adapter}.{side}_sampler.{leaf}"] = array.T
            else:
                raise PemtError(f"Parameter {path!r} has no name in the authors' code.")
        else:
            raise PemtError(f"Parameter {path!r} has no name in the authors' code.")
    return tensors


def _stack(path: str, parts: Mapping[int, np.ndarray], source: str) -> np.ndarray:
    """Arrays 0..E-1 as one; prompts are padded with zero rows to the longest."""
    if sorted(parts) != list(range(len(parts))):
        raise PemtError(f"{source} has numbers {sorted(parts)} for {path!r}, expected all from 0.")
    arrays = [parts[i] for i in range(len(parts))]
    if path == "source_prompts/embedding":
        longest = max(len(array) for array in arrays)
        arrays = [np.pad(array, ((0, longest - len(array)), (0, 0))) for array in arrays]
    if len({array.shape for array in arrays}) > 1:
        raise PemtError(f"The experts of {source} differ in shape at {path!r}, expected one rank.")
    return np.stack(arrays, axis=_expert_axis(path))


def _expert_axis(path: str) -> int:
    """Where E stands in the bank: lora_a is [F, E, R], lora_b [E, R, D]."""
    return 1 if path.endswith("experts/lora_a") else 0


def _unknown(name: str, source: str) -> PemtError:
    return PemtError(
        f"Tensor {name!r} in {source} belongs to no part of PEMT or of a T5 of this configuration."
    )
