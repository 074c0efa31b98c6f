"""Experts as LoRA adapters of Hugging Face PEFT, in and out (README.md beside this file).

The rank-R pair beside a linear layer is PEFT's lora_A [R, in] and lora_B [out, R] on the module of
that layer, transposed. An expert has no factor alpha / r (alpha / sqrt(r) for rslora): that of an
adapter is folded into B. Dropout has no meaning after training.

modules.py says which module is which linear layer, lora_config.py what adapter_config.json means,
adapter.py converts the tensors, folder.py reads and writes the files.
"""

from pemt_jax.interop.peft.adapter import from_peft, to_peft
from pemt_jax.interop.peft.folder import (
    CONFIG,
    OLD_TENSORS,
    OUR_CARD,
    OUR_PROMPT,
    TENSORS,
    WITHOUT_PROMPT,
    Adapter,
    export_peft,
    import_adapter,
)

__all__ = [
    "CONFIG",
    "OLD_TENSORS",
    "OUR_CARD",
    "OUR_PROMPT",
    "TENSORS",
    "WITHOUT_PROMPT",
    "Adapter",
    "export_peft",
    "from_peft",
    "import_adapter",
    "to_peft",
]
