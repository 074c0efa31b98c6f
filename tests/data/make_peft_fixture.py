"""Make the tests/data/peft_* folders: LoRAs that PEFT itself has written, and the logits they give.

    python tests/data/make_peft_fixture.py NAME...

Each was written once, in an environment of its own; the tests need none of these packages.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2        peft_t5_1_0, peft_all_linear
    pip install torch==2.13.0 transformers==4.33.3 peft==0.5.0 accelerate==0.23.0
        "numpy<2" "huggingface_hub<0.20"                               peft_0_5

The first covers only some layers, has rank-stabilised scaling, a rank and an alpha of its own in
one layer, and dropout in training. The second is on every linear layer of a T5 1.1, with ranks and
alphas by regular expressions. The third is PEFT 0.5's default for T5: q and v.
"""

import json
import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file

HERE = Path(__file__).parent
SINGLE = "decoder.block.1.layer.2.DenseReluDense.wo"
ADAPTERS = {  # name: base, size of the numbers, settings
    "peft_t5_1_0": (
        "hf_t5_1_0",
        1.0,
        {
            "target_modules": ["wo"],
            "r": 3,
            "lora_alpha": 5,
            "lora_dropout": 0.1,
            "use_rslora": True,
            "layers_to_transform": [1, 2],
            "layers_pattern": "block",
            "rank_pattern": {SINGLE: 2},
            "alpha_pattern": {SINGLE: 7},
        },
    ),
    "peft_all_linear": (
        "hf_t5_1_1",
        0.3,  # or attention without a scale is so peaked that float32 says little
        {
            "target_modules": "all-linear",
            "r": 2,
            "lora_alpha": 3,
            "rank_pattern": {r"decoder\..*\.(q|v)": 3, r"DenseReluDense\.w.*": 1, "q": 4},
            "alpha_pattern": {"^encoder.block.0.layer.0.SelfAttention.k": 8, r"wi_\d": 5},
        },
    ),
    "peft_0_5": ("hf_t5_1_0", 0.3, {"r": 3, "lora_alpha": 6, "lora_dropout": 0.1}),
}


def load_base(name: str) -> transformers.PreTrainedModel:
    base = transformers.T5ForConditionalGeneration.from_pretrained(HERE / name)
    if name == "hf_t5_1_1":  # transformers 5 ties every T5, in 1.1 the two are different
        weight = load_file(HERE / name / "model.safetensors")["lm_head.weight"]
        base.lm_head.weight = torch.nn.Parameter(torch.tensor(weight.astype(np.float32)))
    return base


def make(name: str) -> None:
    torch.manual_seed(0)
    base, size, settings = ADAPTERS[name]
    model = peft.get_peft_model(
        load_base(base), peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **settings)
    )
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "lora_" in path:
                weight.normal_(std=size * weight.shape[-1] ** -0.5)
    model.eval()
    folder = HERE / name
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "adapter_model.safetensors").chmod(0o644)
    with np.load(HERE / base / "expected.npz") as file:
        inputs, targets = file["inputs"][:, :40], file["targets"][:, :20]
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    model = model.double()  # or PyTorch's own rounding is most of a test's tolerance
    with torch.no_grad():
        batch = {
            "input_ids": torch.tensor(inputs),
            "decoder_input_ids": torch.tensor(shifted),
            "attention_mask": torch.tensor(inputs > 0).long(),
        }
        logits = model(**batch).logits.numpy()
        with model.disable_adapter():
            other = model(**batch).logits.numpy()
    assert np.abs(other - logits).max() > 0.1
    np.savez_compressed(
        folder / "expected.npz", inputs=inputs, targets=targets, logits=logits.astype(np.float32)
    )


if __name__ == "__main__":
    for adapter in sys.argv[1:]:
        make(adapter)
