"""What an adapter_config.json says: whether it is a plain LoRA, and the factor of each product.

Which layers are adapted follows from the tensors, so `target_modules` (names, a regular expression,
all-linear), `layers_to_transform`, `layers_pattern` and `exclude_modules` need not be read. Ranks
and alphas of single modules are read as PEFT reads them: the first key of `rank_pattern`, and of
`alpha_pattern`, that matches the end of the module's name.
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from pemt_jax.common.errors import PemtError, UsageError, nearest
from pemt_jax.common.user_input.files import read_object

CONFIG = "adapter_config.json"
# Settings of LoraConfig that do not change what a trained adapter computes. Whatever else is set,
# of today's or a later version, is a variant that this module does not know. `fan_in_fan_out` is
# for Conv1D, PEFT ignores it on the linear layers of a T5; `merge_weights` is of PEFT 0.2.
HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "merge_weights",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
READ = {
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "use_rslora",
}
# These start training from a changed base, and the adapter is no good without it.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
ALSO_CALLED = {"use_dora": "DoRA", "modules_to_save": "whole layers beside the LoRA"}

PLAIN = re.compile(r"\^?[\w.]+")
SECONDS = 10
# For each key the modules that it matches; the expression is PEFT's.
MATCH = r"""
import json, re, sys
keys, modules = json.load(sys.stdin)
json.dump([[m for m in modules if re.match(rf"(.*\.)?({k})$", m)] for k in keys], sys.stdout)
"""


def read_config(path: Path) -> dict:
    """The content of the adapter_config.json at `path`.

    Raises:
      UsageError: there is none. PemtError: it cannot be read.
    """
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(
            f"There is no {CONFIG} in {path.parent}, expected a folder that PEFT has "
            f"saved{nearest(path.name, siblings)}."
        )
    return read_object(path, f"PEFT's {CONFIG}")


def check_plain(config: Mapping[str, object], source: str) -> None:
    """Raise PemtError, with the name of what is not taken, unless `config` is a plain LoRA's."""
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
        if value and name not in HARMLESS | READ:
            called = f" ({ALSO_CALLED[name]})" if name in ALSO_CALLED else ""
            raise PemtError(
                f"{source} has {name} = {str(value)[:60]}{called}, expected a plain LoRA "
                "without it."
            )


def scales(config: Mapping[str, object], ranks: Mapping[str, int], source: str) -> dict[str, float]:
    """The factor of each module's product: alpha / r, or alpha / sqrt(r) for rslora.

    Args:
      config: of a plain LoRA.
      ranks: the rank of the tensors of each module that is adapted.
      source: what to call the adapter in an error.

    Raises:
      PemtError: a rank is not what the config says, or the config has no number there.
    """
    r = _of_modules(config, "rank_pattern", "r", ranks, source)
    alpha = _of_modules(config, "alpha_pattern", "lora_alpha", ranks, source)
    for module, rank in ranks.items():
        if r[module] != rank:
            raise PemtError(
                f"{source} has rank {rank} in {module}, expected {r[module]} as its {CONFIG} says."
            )
    root = math.sqrt if config.get("use_rslora") else float
    return {module: alpha[module] / root(r[module]) for module in ranks}


def _of_modules(
    config: Mapping[str, object], patterns: str, default: str, modules: Iterable[str], source: str
) -> dict[str, float]:
    """What `config` says for each module: the value of a pattern, or the default."""
    table = config.get(patterns) or {}
    if not isinstance(table, dict):
        raise PemtError(
            f"{source} has {patterns} = {str(table)[:60]}, expected values by names of modules."
        )
    modules, values = list(modules), {}
    matches = _matches(list(table), modules, f"{source} has the {patterns}")
    for module in modules:
        keys = (key for key, matched in zip(table, matches, strict=True) if module in matched)
        key = next(keys, None)
        value = config.get(default, 8) if key is None else table[key]  # 8 is PEFT's default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise PemtError(
                f"{source} has {value!r} for the {default} of {module}, expected a positive number."
            )
        values[module] = value
    return values


def _matches(keys: list[str], modules: list[str], has: str) -> list[list[str]]:
    """The modules that each key of a pattern matches.

    A stranger's regular expression can run for years, so all but names are matched in a process of
    their own, which is stopped.
    """
    if all(PLAIN.fullmatch(key) for key in keys):
        return [[m for m in modules if re.match(rf"(.*\.)?({key})$", m)] for key in keys]
    which = next(key for key in keys if not PLAIN.fullmatch(key))[:60]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", MATCH],
            input=json.dumps([keys, modules]),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise PemtError(
            f"{has} {which!r}, which took more than {SECONDS} seconds to match, expected names of "
            "modules."
        ) from None
    if done.returncode:
        raise PemtError(f"{has} {which!r}, expected a regular expression.")
    return json.loads(done.stdout)
