"""Experts as LoRA adapters of Hugging Face PEFT, in and out.

A source expert is a LoRA on `wo`, the output of every feed-forward. Its PEFT folder has

    adapter_config.json          rank, alpha = rank, the modules
    adapter_model.safetensors    base_model.model.{stack}.block.I.layer.J.DenseReluDense.wo
                                     .lora_A.weight [R, F], .lora_B.weight [D, R]
    pemt_prompt.safetensors      the task prompt, which PEFT does not know and does not load
    pemt_card.json               what the library's card says
    README.md                    the same for people
    SHA256SUMS                   of all of them

so the adapter under PEFT is the expert without its prompt; the two files that are ours bring all of
it back. Any other PEFT LoRA on `wo` is read too: its factor alpha / r (alpha / sqrt(r) for rslora)
is folded into B, since an expert here has none, and its dropout has no meaning after training.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pemt_jax.common.errors import PemtError, UsageError, nearest, warn
from pemt_jax.common.hashing import fingerprint, verify_checksums, write_checksums
from pemt_jax.common.storage import new_folder, replacing
from pemt_jax.common.weights import load_weights, save_weights
from pemt_jax.interop.torch_files import load_torch_file
from pemt_jax.library.artefact import Card, read_card_file, write_card
from pemt_jax.library.expert import PROMPT, Expert
from pemt_jax.library.linears import flat_lora

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
OLD_TENSORS = "adapter_model.bin"
OUR_PROMPT, OUR_CARD, README = "pemt_prompt.safetensors", "pemt_card.json", "README.md"
WITHOUT_PROMPT = (
    f"PEFT loads the expert without its task prompt, which is stored in {OUR_PROMPT} and "
    "comes back when the folder is imported."
)
TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
WO = re.compile(
    r"(?:encoder\.block\.(\d+)\.layer\.1|decoder\.block\.(\d+)\.layer\.2)"
    r"\.DenseReluDense\.wo"
)
# Settings of LoraConfig that do not change what a trained adapter computes. Whatever else is set,
# today's or a later version's, is a variant that this module does not know.
HARMLESS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
# These start training from a changed base, and the adapter is no good without it.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


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
      PemtError: a file is missing or damaged, or it is no plain LoRA on `wo`.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
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


def to_peft(expert: Expert, base_name: str = "") -> tuple[dict, dict[str, np.ndarray]]:
    """(adapter_config, PyTorch name -> array) of an expert, its numbers as they are."""
    tensors, ranks = {}, {}
    for linear, (a_FR, b_RD) in expert.lora.items():
        stack, number = linear.removesuffix("/mlp/wo").split("/layers_")
        module = f"{stack}.block.{number}.layer.{1 if stack == 'encoder' else 2}.DenseReluDense.wo"
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
    """The inverse of `to_peft`, for any plain LoRA on `wo`: flat float32 lora_a and lora_b.

    Args:
      config: the content of adapter_config.json.
      tensors: PyTorch name -> array.
      source: what to call the adapter in an error.

    Raises:
      PemtError: the sentence says what is not taken.
    """
    _check_plain(config, source)
    params = {}
    for name, tensor in tensors.items():
        match = TENSOR.fullmatch(name)
        module = match[1] if match else name
        if not match or not (wo := WO.fullmatch(module)):
            raise PemtError(
                f"{source} adapts {module!r}, expected a LoRA on the feed-forward "
                "outputs of a T5 only, DenseReluDense.wo."
            )
        layer = f"encoder/layers_{wo[1]}" if wo[1] else f"decoder/layers_{wo[2]}"
        array = np.asarray(tensor, np.float32)
        if array.ndim != 2 or not np.isfinite(array).all():
            raise PemtError(
                f"Tensor {name!r} in {source} has shape {list(array.shape)} or numbers "
                "that are not finite, expected a finite matrix."
            )
        if match[2] == "B":
            scale = _scale(config, module, array.shape[1], source)
            array = array if scale == 1 else array * np.float32(scale)
        params[f"{layer}/mlp/expert/lora_{match[2].lower()}"] = np.ascontiguousarray(array.T)
    if not params:
        raise PemtError(f"{source} holds no tensors, expected a LoRA on DenseReluDense.wo.")
    return params


def _check_plain(config: Mapping[str, object], source: str) -> None:
    if config.get("peft_type") != "LORA":
        raise PemtError(
            f"{source} is an adapter of type {config.get('peft_type')!r}, expected 'LORA'."
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
        raise PemtError(
            f"{source} was initialised with {init!r}, which changes the base's "
            "weights, expected a LoRA on the unchanged base."
        )
    if config.get("bias", "none") != "none":
        raise PemtError(f"{source} has bias = {config['bias']!r}, expected 'none'.")
    for name, value in sorted(config.items()):
        if value and name not in HARMLESS | {"init_lora_weights", "bias"}:
            raise PemtError(
                f"{source} has {name} = {str(value)[:60]}, expected a plain LoRA without it."
            )


def _scale(config: Mapping[str, object], module: str, rank: int, source: str) -> float:
    """The factor of a module's product, as PEFT has it."""
    r = _of_module(config, "rank_pattern", "r", module, source)
    alpha = _of_module(config, "alpha_pattern", "lora_alpha", module, source)
    if r != rank:
        raise PemtError(f"{source} has rank {rank} in {module}, expected {r} as its {CONFIG} says.")
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _of_module(
    config: Mapping[str, object], patterns: str, default: str, module: str, source: str
) -> float:
    value, table = config.get(default, 8), config.get(patterns) or {}  # 8 is PEFT's default
    for key, of_key in table.items() if isinstance(table, dict) else [("", None)]:
        if not re.fullmatch(r"\^?[\w.]+", key):  # a pattern of a stranger can run for years
            raise PemtError(f"{source} has the {patterns} {key!r}, expected names of modules.")
        if re.match(rf"(.*\.)?({key})$", module):
            value = of_key
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise PemtError(
            f"{source} has {value!r} for the {default} of {module}, expected a positive number."
        )
    return value


def _read_config(path: Path) -> dict:
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(
            f"There is no {CONFIG} in {path.parent}, expected a folder that PEFT has "
            f"saved{nearest(path.name, siblings)}."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PemtError(f"{path} is no readable JSON ({error}), expected PEFT's.") from error
    if not isinstance(config, dict):
        raise PemtError(f"{path} holds a {type(config).__name__}, expected an object.")
    return config


def _readme(expert: Expert, card: Card) -> str:
    """A model card; the front matter is what PEFT and the Hugging Face hub look for."""
    base = f"base_model: {json.dumps(card.base_name)}\n" if card.base_name else ""
    return (
        f"---\nlibrary_name: peft\n{base}---\n\n# {expert.name}\n\nA PEMT expert of task "
        f"{card.task}: rank {expert.rank}, on the feed-forward outputs of T5.\n"
        f"{WITHOUT_PROMPT}\n\nPrompt: {json.dumps(card.description, ensure_ascii=False)}\n"
    )
