"""The tensors of an expert under PEFT's names and under ours."""

import re
from collections.abc import Mapping

import numpy as np

from pemt_jax.common.errors import PemtError
from pemt_jax.interop.peft.lora_config import check_plain, scales
from pemt_jax.interop.peft.modules import NAMES, linear_of, module_of
from pemt_jax.library.expert import Expert
from pemt_jax.library.linears import expert_module

TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_(?:([AB])\.weight|embedding_[AB])")
OF_T5 = f"a LoRA on linear layers of a T5 only ({', '.join(NAMES)})"


def to_peft(expert: Expert, base_name: str = "") -> tuple[dict, dict[str, np.ndarray]]:
    """(adapter_config, PyTorch name -> array) of an expert, its numbers as they are."""
    tensors, ranks = {}, {}
    for linear, (a_FR, b_RD) in expert.lora.items():
        module = module_of(linear)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a_FR.T
        tensors[f"base_model.model.{module}.lora_B.weight"] = b_RD.T
        ranks[module] = a_FR.shape[1]
    uneven = {module: rank for module, rank in ranks.items() if rank != expert.rank}
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base_name or None,
        "r": expert.rank,
        "lora_alpha": expert.rank,  # a factor of one
        "rank_pattern": uneven,
        "alpha_pattern": uneven,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(ranks),
        "modules_to_save": None,
        "inference_mode": True,
    }, tensors


def from_peft(
    config: Mapping[str, object], tensors: Mapping[str, np.ndarray], source: str
) -> dict[str, np.ndarray]:
    """The inverse of `to_peft`, for any plain LoRA on a T5: flat float32 lora_a and lora_b.

    Args:
      config: the content of adapter_config.json.
      tensors: PyTorch name -> array.
      source: what to call the adapter in an error.

    Raises:
      PemtError: the sentence says what is not taken.
    """
    check_plain(config, source)
    found: dict[tuple[str, str], np.ndarray] = {}
    for name, tensor in tensors.items():
        match = TENSOR.fullmatch(name)
        if not match or not match[2] or not linear_of(match[1]):
            what = f"adapts {match[1]!r}" if match else f"holds {name!r}"
            raise PemtError(f"{source} {what}, expected {OF_T5}.")
        array = np.asarray(tensor, np.float32)
        if array.ndim != 2 or not np.isfinite(array).all():
            raise PemtError(
                f"Tensor {name!r} in {source} has shape {list(array.shape)} or numbers "
                "that are not finite, expected a finite matrix."
            )
        found[match[1], match[2]] = array
    if not found:
        raise PemtError(f"{source} holds no tensors, expected {OF_T5}.")
    ranks = {module: b.shape[1] for (module, letter), b in found.items() if letter == "B"}
    factors, params = scales(config, ranks, source), {}
    for (module, letter), array in found.items():
        if letter == "B" and factors[module] != 1:
            array = array * np.float32(factors[module])
        place = expert_module(str(linear_of(module)))
        params[f"{place}/lora_{letter.lower()}"] = np.ascontiguousarray(array.T)
    return params
