"""Every kind of adapter configuration that was tried: taken, or the sentence that refuses it.

    python tests/interop/peft_table.py      # prints the table of pemt_jax/interop/peft/README.md

data/peft_configs.json holds the adapter_config.json of public adapters of T5s, as facts: names and
numbers, no weights. Where only the settings are public, PEFT has written the file for the tiny T5
in tests/data. The tensors of a LoRA are made here, zeros of the shapes that its configuration says.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pemt_jax.common.errors import PemtError
from pemt_jax.config import T5Config
from pemt_jax.interop import hf
from pemt_jax.interop.hf_names import parameter_table
from pemt_jax.interop.peft import from_peft
from pemt_jax.interop.peft.modules import linear_of
from pemt_jax.library.linears import linear_of as linear_of_parameter

DATA = Path(__file__).parents[1] / "data"


def rows() -> list[dict]:
    return json.loads((DATA / "peft_configs.json").read_text(encoding="utf-8"))


def targets(config: Mapping, module: str) -> bool:
    """Whether PEFT adapts `module`."""
    names, layers = config["target_modules"], config.get("layers_to_transform")
    if isinstance(names, str):
        return bool(re.fullmatch(names, module))
    number = re.search(r"\.block\.(\d+)\.", module)
    return any(f".{module}".endswith(f".{name}") for name in names) and (
        not layers or (number is not None and int(number[1]) in layers)
    )


def tensors(config: Mapping, t5: T5Config) -> Iterator[tuple[str, np.ndarray]]:
    """Zeros under the names and of the shapes that PEFT saves for a LoRA."""
    for entry in parameter_table(t5):
        module = entry.hf_name.removesuffix(".weight")
        if len(entry.shape) != 2 or not targets(config, module):
            continue
        keys = [k for k in config.get("rank_pattern", {}) if re.match(rf"(.*\.)?({k})$", module)]
        rank = config["rank_pattern"][keys[0]] if keys else config["r"]
        names = ("lora_A.weight", "lora_B.weight")
        if module == "shared":
            names = ("lora_embedding_A", "lora_embedding_B")
        width, out = entry.shape
        yield f"base_model.model.{module}.{names[0]}", np.zeros((rank, width))
        yield f"base_model.model.{module}.{names[1]}", np.zeros((out, rank))


def result(row: Mapping) -> str:
    """What the import says of the adapter: the modules that it adapts, or a sentence."""
    config, (t5, _) = row["config"], hf.load_hf(DATA / row["base"])
    lora = config["peft_type"] == "LORA"
    try:
        params = from_peft(config, dict(tensors(config, t5)) if lora else {}, "It")
    except PemtError as error:
        return str(error)
    wanted = {linear_of(e.hf_name.removesuffix(".weight")) for e in parameter_table(t5)} - {None}
    found = {linear for linear, _ in filter(None, map(linear_of_parameter, params))}
    assert found == {
        linear
        for entry in parameter_table(t5)
        if (linear := linear_of(module := entry.hf_name.removesuffix(".weight")))
        and targets(config, module)
    }
    return f"accepted: {len(found)} of the {len(wanted)} linear layers"


def table() -> str:
    """The table in Markdown."""
    lines = ["| adapter | PEFT | type | r, alpha | modules | result |", "|" + "---|" * 6]
    for row in rows():
        config = row["config"]
        modules = config.get("target_modules") or "-"
        modules = modules if isinstance(modules, str) else " ".join(sorted(modules))
        numbers = f"{config['r']}, {config['lora_alpha']}" if "lora_alpha" in config else "-"
        cells = [row["from"], row["peft"], config["peft_type"], numbers, f"`{modules}`"]
        cells = [cell.replace("|", "\\|") for cell in (*cells, result(row))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
