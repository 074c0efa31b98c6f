"""Make tests/data/peft_t5_1_0: a LoRA that PEFT itself has written, and the logits it gives.

Run once, in an environment of its own: pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2.
The tests need none of these. The base is tests/data/hf_t5_1_0. The adapter covers only some layers,
has rank-stabilised scaling, a rank and an alpha of its own in one layer, and dropout in training.
"""

import json
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

HERE = Path(__file__).parent
SINGLE = "decoder.block.1.layer.2.DenseReluDense.wo"


def main() -> None:
    torch.manual_seed(0)
    base = transformers.T5ForConditionalGeneration.from_pretrained(HERE / "hf_t5_1_0")
    model = peft.get_peft_model(
        base,
        peft.LoraConfig(
            task_type="SEQ_2_SEQ_LM",
            target_modules=["wo"],
            r=3,
            lora_alpha=5,
            lora_dropout=0.1,
            use_rslora=True,
            layers_to_transform=[1, 2],
            layers_pattern="block",
            rank_pattern={SINGLE: 2},
            alpha_pattern={SINGLE: 7},
        ),
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=weight.shape[-1] ** -0.5)
    model.eval()
    folder = HERE / "peft_t5_1_0"
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "hf_t5_1_0"
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "adapter_model.safetensors").chmod(0o644)
    with np.load(HERE / "hf_t5_1_0" / "expected.npz") as file:
        inputs, targets = file["inputs"][:, :40], file["targets"][:, :20]
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
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
    np.savez_compressed(folder / "expected.npz", inputs=inputs, targets=targets, logits=logits)


if __name__ == "__main__":
    main()
