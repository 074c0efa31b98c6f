"""A random LoRA on q and v of a tiny T5, as the two files that PEFT saves."""

import json

import numpy as np
from safetensors.numpy import save

from pemt_jax.config import T5Config
from pemt_jax.interop.peft.modules import module_of

RANK = 4


def adapter_files(t5: T5Config, seed: int = 0) -> dict[str, bytes]:
    """{file name: content}."""
    rng, tensors = np.random.default_rng(seed), {}
    for linear, (width, out) in t5.linears().items():
        if linear.endswith(("/query", "/value")):
            name = f"base_model.model.{module_of(linear)}"
            a, b = rng.normal(size=(RANK, width)), rng.normal(size=(out, RANK))
            tensors[f"{name}.lora_A.weight"] = a.astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = 0.1 * b.astype(np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": "google/flan-t5-large",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["q", "v"],
        "bias": "none",
    }
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save(tensors),
    }
