"""Parameters under the names and layouts of the authors' PyTorch code.

The authors (JachinLin2022/PEMT) put everything that PEMT adds inside the T5 module that uses it:

    encoder.block.I.layer.1.DenseReluDense.wo.lora_A [R, F], .lora_B [D, R]     stage 1
    ...wo.lora_A.E, ...wo.lora_B.E                                              stage 2, expert E
    ...wo.w_gate [F or D, E]                                                    gate
    encoder.block.I.layer.1.adapter_controller.adapters.TASK.down_sampler.weight [C, D]
    task_shared [P, D], task_list.E [P_E, D]                                    prompts

(the decoder's feed-forward is layer.2).  Here experts are one stacked bank and source prompts are
padded on the right to the longest.  Any part of a model can be translated: a whole state dict, the
`lora.pt` of a stage-1 run, the gradients of what is trained.

The files that their code leaves behind:

    stage 1    lora.pt (the expert), task_embedding.pt (its prompt)
    stage 2    adapter.pt (the target adapters), task_embedding.pt (the target prompt)
    either     pytorch_model.bin, the whole state dict, where its Trainer has kept one

The gates and layer norms that stage 2 trains are in the last one only. None is ever unpickled as
Python would: see torch_files.py.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.config import T5Config
from pemt_jax.interop.hf_names import parameter_table
from pemt_jax.interop.torch_files import load_torch_file

# A state dict lists shared tensors under every name; named_parameters() lists these copies never.
COPIES = re.compile(
    r"lm_head\.weight|(encoder|decoder)\.(embed_tokens\.weight|task_emb)"
    r"|(encoder|decoder)\.pretrain_task_emb_list\.\d+"
)
FEED_FORWARD = re.compile(r"(encoder|decoder)\.block\.(\d+)\.layer\.(?:1|2)\.(.*)")
EXPERT = re.compile(r"DenseReluDense\.wo\.lora_(A|B)(?:\.(\d+))?")
ADAPTER = re.compile(r"adapter_controller\.adapters\.(.+)\.(down|up)_sampler\.(weight|bias)")
SOURCE_PROMPT = re.compile(r"task_list\.(\d+)")
WHOLE = "pytorch_model.bin"
STAGES = {1: ("lora.pt", "task_embedding.pt"), 2: ("adapter.pt", "task_embedding.pt")}


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
    # The bank has lora_a as [F, E, R], lora_b as [E, R, D].
    return np.stack(arrays, axis=1 if path.endswith("experts/lora_a") else 0)


def _unknown(name: str, source: str) -> PemtError:
    return PemtError(
        f"Tensor {name!r} in {source} belongs to no part of PEMT or of a T5 of this configuration."
    )


def load_reference(path: str | os.PathLike, stage: int) -> dict[str, np.ndarray]:
    """Read the authors' tensors of a stage: a folder of theirs, or the file of a state dict.

    Of a folder of stage 2 the whole state dict is read if it is there, since the other files lack
    the gates; of one of stage 1 only if the two small files are not.

    Raises:
      UsageError: nothing of that stage is there. PemtError: see `load_torch_file`.
    """
    path, names = Path(path), STAGES[stage]
    if path.is_file():
        return load_torch_file(path)
    small = all((path / name).is_file() for name in names)
    if (path / WHOLE).is_file() and not (small and stage == 1):
        return load_torch_file(path / WHOLE)
    if not small:
        found = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
        raise UsageError(
            f"Expected {' and '.join(names)}, or {WHOLE}, in {path}, found "
            f"{', '.join(found[:9]) or 'none'}."
        )
    tensors = {}
    for name in names:
        tensors |= load_torch_file(path / name)
    return tensors


def check_backbone(
    params: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray], source: str
) -> None:
    """Raise PemtError where `params` differ from the frozen parameters `base` of the same names."""
    for path, array in params.items():
        if path in base and not np.array_equal(array, base[path]):
            raise PemtError(
                f"{source} differs from the base or the experts given in {path}, "
                "expected the very ones it was trained on."
            )
