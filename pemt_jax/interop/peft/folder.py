"""The PEFT folder of an expert.

    adapter_config.json          rank, alpha = rank, the modules
    adapter_model.safetensors    base_model.model.{module}.lora_A.weight [R, in], .lora_B.weight
                                     [out, R] for each linear layer that the expert adapts
    pemt_prompt.safetensors      the task prompt, which PEFT does not know and does not load
    pemt_card.json               what the library's card says
    README.md                    the same for people
    SHA256SUMS                   of all of them

The adapter under PEFT is the expert without its prompt; the two files that are ours bring all of it
back. A folder that PEFT itself has written has the first two, or adapter_model.bin.
"""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np

from pemt_jax.common.errors import PemtError, warn
from pemt_jax.common.hashing import fingerprint, verify_checksums, write_checksums
from pemt_jax.common.storage import new_folder, replacing
from pemt_jax.common.weights import load_weights, save_weights
from pemt_jax.interop.peft.adapter import from_peft, to_peft
from pemt_jax.interop.peft.lora_config import CONFIG, read_config
from pemt_jax.interop.peft.modules import module_of
from pemt_jax.interop.torch_files import load_torch_file
from pemt_jax.library.artefact import Card, read_card_file, write_card
from pemt_jax.library.expert import PROMPT, Expert
from pemt_jax.library.linears import flat_lora

TENSORS, OLD_TENSORS = "adapter_model.safetensors", "adapter_model.bin"
OUR_PROMPT, OUR_CARD, README = "pemt_prompt.safetensors", "pemt_card.json", "README.md"
WITHOUT_PROMPT = (
    f"PEFT loads the expert without its task prompt, which is stored in {OUR_PROMPT} and "
    "comes back when the folder is imported."
)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a PEFT folder holds.

    Attributes:
      lora: our flat paths -> arrays, the scaling folded in.
      prompt: [P, D], where the folder was written by `export_peft`.
      card: the card of the expert that it was, metrics left out where the weights have changed.
    """

    lora: dict[str, np.ndarray]
    prompt: np.ndarray | None = None
    card: Card | None = None


def export_peft(folder: str | os.PathLike, expert: Expert, card: Card) -> None:
    """Write an expert of the library as the new PEFT adapter folder `folder`.

    Raises:
      UsageError: something stands at `folder`. PemtError: it cannot be written.
    """
    config, tensors = to_peft(expert, card.base_name)
    note = dataclasses.replace(
        card,
        config={
            **card.config,
            "fingerprint": fingerprint(flat_lora(expert.lora) | {PROMPT: expert.prompt}),
        },
    )
    with new_folder(folder) as partial:
        save_weights(partial / TENSORS, tensors, {"format": "pt"})
        save_weights(partial / OUR_PROMPT, {PROMPT: expert.prompt})
        write_card(partial / OUR_CARD, note)
        with replacing(partial / CONFIG) as path:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        with replacing(partial / README) as path:
            path.write_text(_readme(expert, card), encoding="utf-8")
        write_checksums(partial)


def import_adapter(folder: str | os.PathLike) -> Adapter:
    """Read a PEFT LoRA folder.

    Raises:
      PemtError: a file is missing or damaged, or it is no plain LoRA on a T5.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG)
    if (folder / TENSORS).is_file() or not (folder / OLD_TENSORS).is_file():
        tensors = load_weights(folder / TENSORS)
    else:
        tensors = load_torch_file(folder / OLD_TENSORS)
    lora = from_peft(config, tensors, str(folder))
    if not (folder / OUR_CARD).is_file():
        return Adapter(lora)
    verify_checksums(folder, (OUR_PROMPT, OUR_CARD))  # PEFT may have written the others again
    prompt = load_weights(folder / OUR_PROMPT)
    if prompt.keys() != {PROMPT}:
        raise PemtError(
            f"{folder / OUR_PROMPT} holds {', '.join(sorted(prompt)) or 'nothing'}, "
            f"expected {PROMPT}."
        )
    card = read_card_file(folder / OUR_CARD)
    if card.kind != "expert":
        raise PemtError(f"{folder / OUR_CARD} is the card of a {card.kind}, expected an expert's.")
    facts = dict(card.config)
    if facts.pop("fingerprint", None) != fingerprint(lora | prompt):  # trained on, under PEFT
        warn(
            f"The adapter in {folder} is not the one that was exported, as after training under "
            "PEFT; the metrics on its card are left out."
        )
        facts |= {"imported": "peft", "changed_since_export": True}
        card = dataclasses.replace(card, metrics={})
    return Adapter(lora, prompt[PROMPT], dataclasses.replace(card, config=facts))


def _readme(expert: Expert, card: Card) -> str:
    """A model card; the front matter is what PEFT and the Hugging Face hub look for."""
    adapted = sorted({module_of(linear).rpartition(".")[2] for linear in expert.lora})
    base = f"base_model: {json.dumps(card.base_name)}\n" if card.base_name else ""
    return (
        f"---\nlibrary_name: peft\n{base}---\n\n# {expert.name}\n\nA PEMT expert of task "
        f"{card.task}: rank {expert.rank}, on {', '.join(adapted)} of a T5.\n"
        f"{WITHOUT_PROMPT}\n\nPrompt: {json.dumps(card.description, ensure_ascii=False)}\n"
    )
