"""From the names in a configuration to a model with its parameters.

A model depends on a base (a pretrained T5), a method, experts of the library and the text of the
task's prompt. `build_model` brings them together, checks that they fit, and returns the identity by
which a checkpoint or artefact later knows whether it is still the same run.
"""

import dataclasses
import logging
from collections.abc import Mapping

import jax
import numpy as np
from flax import traverse_util

from pemt_jax.checkpoints.identity import BASE_REVISION
from pemt_jax.common.errors import UsageError, warn
from pemt_jax.common.lazy_array import LazyArray
from pemt_jax.common.user_input.linears import ExpertLinears, linear_kind
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.interop.base import Base, check_vocabulary, identify_base
from pemt_jax.library import expert as expert_library
from pemt_jax.library.expert import Expert
from pemt_jax.library.hub_names import find
from pemt_jax.library.linears import flat_lora
from pemt_jax.library.prototypes import prototypes
from pemt_jax.model.methods import Method, get_method, kept_dtype, split
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.model.prompts import prompt_tokens
from pemt_jax.parallel import partitioning
from pemt_jax.parallel.memory import check_lengths
from pemt_jax.parallel.stacked_layers import stack_on_devices
from pemt_jax.run_config import ExpertsConfig, ModelConfig
from pemt_jax.runs.initialization import initial_parameters

SAME_NUMBERS = {"remat_policy", "scan_layers"}  # of T5Config: choices that no result depends on
ADDED = {  # fields that runs of earlier versions lack, and what they did
    "relpos_per_layer": T5Config.relpos_per_layer,
    "scale_decoder_outputs": T5Config.scale_decoder_outputs,
    **{
        name: getattr(PemtConfig, name)
        for name in ("expert_linears", "gate", "gate_top_k", "prompt_mixing", "vectors")
    },
}

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BuiltModel:
    """A model, its initial parameters and what they depend on.

    Attributes:
      model: the model.
      method: how it is trained.
      params: flat, by '/'-joined path, each in the dtype in which it is kept; those of the base
        are lazy, the others are host arrays.
      params_axes: logical axes of the parameters.
      identity: JSON-able facts that make a run this run: base, experts, method, prompt, shapes.
    """

    model: PemtModel
    method: Method
    params: dict[str, np.ndarray | LazyArray]
    params_axes: Mapping
    identity: dict

    def nested(self) -> dict:
        """The parameters as the model takes them, read."""
        read = {path: np.asarray(value) for path, value in self.params.items()}
        return traverse_util.unflatten_dict(read, sep="/")

    def split(self) -> tuple[dict, dict]:
        """(trainable, frozen), flat, lazy where `params` are; the caller may clear those then."""
        return split(traverse_util.unflatten_dict(self.params, sep="/"), self.method)

    def placed(self, mesh: jax.sharding.Mesh, fully_sharded: bool = False) -> dict:
        """The parameters on the devices of a mesh, as the model takes them."""
        shardings = partitioning.parameter_shardings(
            self.params, self.params_axes, mesh, fully_sharded
        )
        placed = partitioning.place(self.params, shardings)
        if self.model.t5.scan_layers:
            placed = stack_on_devices(placed)
        return traverse_util.unflatten_dict(placed, sep="/")


def open_base(config: ModelConfig) -> Base | None:
    """Open the base of a configuration, each parameter in the dtype in which it is kept.

    Raises:
      UsageError: neither a base nor a shape is given, or both. PemtError: see interop.base.
    """
    path = config.initial_checkpoint_path
    if (path is None) == (config.t5 is None):
        found = "neither" if path is None else "both"
        raise UsageError(f"Found {found} of a base and a T5 configuration, expected one of them.")
    if path is None:
        return None
    method = get_method(config.method)
    base = identify_base(path, lambda name: kept_dtype(method, name, config.frozen_dtype))
    log.info("The base %s has fingerprint %s.", path, base.fingerprint[:12])
    return base


def build_model(
    config: ModelConfig,
    vocabulary,
    experts: ExpertsConfig = ExpertsConfig(),  # noqa: B008  (frozen)
    seed: int = 0,
    base: Base | None = None,
) -> BuiltModel:
    """Put a model together.

    Args:
      config: method, base and choices; its prompt_text is the task's description.
      vocabulary: of the tasks; it must be the base's.
      experts: what is taken from the library.
      seed: of the initial values.
      base: that of `open_base(config)`, where it has been read already.

    Raises:
      UsageError, PemtError: something named does not exist or does not fit.
    """
    method, options = get_method(config.method), config.options or PemtConfig()
    check_names(method, config, experts)
    base = base or open_base(config)
    given: dict[str, np.ndarray | LazyArray] = {} if base is None else dict(base.params)
    t5 = config.t5 if base is None else base.t5
    assert t5 is not None  # open_base wants a base or a shape
    rows = config.embedding_rows
    if rows is not None and base is not None and rows != t5.vocab_size:
        given |= cut_embedding(given, rows)
    t5 = config.shape(t5)
    check_vocabulary(vocabulary, t5, config.initial_checkpoint_path)
    text = config.prompt_text
    tokens = prompt_tokens(vocabulary, text) if method.prompt and isinstance(text, str) else []
    modules = method.modules(options, t5.emb_dim, len(tokens))
    base_print = base and base.fingerprint
    loaded = [load_expert(experts, name, base_print, t5) for name in experts.experts]
    if loaded:
        modules |= expert_library.bank_options(loaded)
    options = dataclasses.replace(options, **modules)
    if loaded:
        bank = expert_library.stack_experts(loaded, options)
        if options.gate == "arrow":
            bank |= prototypes(bank)
        given |= {
            path: value.astype(kept_dtype(method, path, config.frozen_dtype), copy=False)
            for path, value in bank.items()
        }
    check_linears(options, t5)
    if method.prompt and options.prompt_init == "vocab" and base is not None:
        given["prompt/embedding"] = base.embedding_rows(tokens)
    if experts.initial_expert:
        start = load_expert(experts, experts.initial_expert, base_print, t5)
        if method.source_expert:
            given |= starting_values(start, options, len(tokens))
        else:
            assert base is not None  # that the expert was trained on
            words = base.embedding_rows(tokens)
            given["prompt/embedding"] = starting_prompt(start.prompt, words)
        loaded.append(start)
    check_lengths(MAX_DECODE_LENGTH=config.max_decode_length)
    model = PemtModel(t5, options, vocabulary, config.max_decode_length)
    params, axes = initial_parameters(model, seed, given)
    identity = {
        "method": config.method,
        "base": base_print,
        "experts": [{"name": expert.name, "sha256": expert.sha256} for expert in loaded],
        "prompt_text": text if method.prompt else None,
        "vocabulary": vocabulary.sha256,
        # A run may go on with less memory or time to compile: the same numbers are computed.
        "t5": identity_of(t5),
        "pemt": identity_of(options),
        "seed": seed,
    }
    if found := find(config.initial_checkpoint_path or ""):
        identity[BASE_REVISION] = found.name
    return BuiltModel(model, method, params, axes, identity)


def identity_of(configuration: T5Config | PemtConfig) -> dict:
    """The fields, without `SAME_NUMBERS` and those that are as in runs of earlier versions."""
    fields = dataclasses.asdict(configuration)
    return {k: v for k, v in fields.items() if k not in SAME_NUMBERS and v != ADDED.get(k, ...)}


def check_names(method: Method, config: ModelConfig, experts: ExpertsConfig) -> None:
    """Raise UsageError for experts or a prompt that the method lacks, or has no use for."""
    names = experts.experts
    if method.experts and not names:
        raise UsageError(
            f"Method {method.name!r} mixes experts but no expert is named, expected at least one "
            f"of the library {experts.library}."
        )
    if names and not method.experts:
        raise UsageError(
            f"Method {method.name!r} mixes no experts, found {', '.join(names)}; expected method "
            "'pemt_target' or no experts."
        )
    if experts.initial_expert and (method.experts or method.adapter or not method.prompt):
        raise UsageError(
            f"Method {method.name!r} trains no expert that could start as "
            f"{experts.initial_expert!r}, expected method 'lora' or 'pemt_source', or "
            "'prompt_tuning' or 'mpt' to start from its prompt."
        )
    text = config.prompt_text
    if method.prompt and not (text and isinstance(text, str)):
        raise UsageError(f"Method {method.name!r} needs a prompt, expected PROMPT_TEXT.")


def load_expert(experts: ExpertsConfig, name: str, base_print: str | None, t5: T5Config) -> Expert:
    """Read an expert of the library; PemtError when it was trained in a model of other widths."""
    library = experts.library or expert_library.default_library()
    expert = expert_library.load_expert(library, name, base_print)
    expert_library.check_fits(name, expert.prompt, expert.lora, t5)
    return expert


def check_linears(options: PemtConfig, t5: T5Config) -> None:
    """Raise UsageError where `expert_linears` names a layer that the base lacks."""
    kinds = sorted({linear_kind(linear) for linear in t5.linears()})
    for word in options.expert_linears:
        if not any(ExpertLinears.read(word).include(kind) for kind in kinds):
            raise UsageError(
                f"PemtConfig.expert_linears has {word!r}, expected some of the base's layers, "
                f"{', '.join(kinds)}."
            )
    outputs = [kind for kind in kinds if kind.endswith(("/wo", "/out"))]
    if options.num_experts and options.tsl_weight and not any(map(options.rank_of, outputs)):
        warn(
            "No expert is beside an output projection (wo, o): PemtConfig.tsl_weight has no effect."
        )


def starting_values(
    expert: Expert, options: PemtConfig, prompt_length: int
) -> dict[str, np.ndarray]:
    """Values of an expert to start training from; its prompt only where the lengths agree.

    Raises:
      UsageError: it has another rank than the options say.
    """
    for linear, (a, _) in expert.lora.items():
        if a.shape[1] != (expected := options.rank_of(linear_kind(linear))):
            raise UsageError(
                f"Expert {expert.name!r} has rank {a.shape[1]} beside {linear}, expected "
                f"{expected} as PemtConfig.expert_rank and expert_linears say."
            )
    values = flat_lora(expert.lora)
    if len(expert.prompt) == prompt_length:
        values["prompt/embedding"] = expert.prompt
    return values


def starting_prompt(source_QD: np.ndarray, prompt_PD: np.ndarray) -> np.ndarray:
    """An expert's prompt to start from (SPoT); the rows that it lacks are those of `prompt_PD`."""
    start_PD = np.array(prompt_PD, np.float32)
    rows = min(len(source_QD), len(start_PD))
    start_PD[:rows] = source_QD[:rows]
    return start_PD


def cut_embedding(
    base_params: Mapping[str, np.ndarray | LazyArray], rows: int
) -> dict[str, np.ndarray | LazyArray]:
    """The embedding, and the output projection if it is one of its own, of the first `rows`."""
    have = base_params["token_embedder/embedding"].shape[0]
    if not 0 < rows <= have:
        raise UsageError(f"embedding_rows is {rows}, expected at most the checkpoint's {have}.")
    cut = {"token_embedder/embedding": base_params["token_embedder/embedding"][:rows]}
    if "decoder/logits_dense/kernel" in base_params:
        cut["decoder/logits_dense/kernel"] = base_params["decoder/logits_dense/kernel"][:, :rows]
    return cut
