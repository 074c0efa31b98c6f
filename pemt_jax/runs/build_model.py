"""From the names in a configuration to a model with its parameters.

A run stands on a base (a folder with a pretrained T5), a method, experts of the library and the
text of the task's prompt.  `assemble` brings them together, checks that they fit, and returns the
identity by which a checkpoint or artefact later knows whether it is still the same run.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import pemt_jax
from pemt_jax.common.errors import PemtError, UsageError
from pemt_jax.common.hashing import fingerprint, sha256_file
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.interop.base import load_base
from pemt_jax.library import expert as expert_library
from pemt_jax.model.initialization import initial_parameters
from pemt_jax.model.methods import Method, get_method
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.parallel import partitioning

ADAPTER_REDUCTION = 16  # of the width, in the target adapter, unless options.adapter_dim is set
MINI_T5 = str(Path(pemt_jax.__file__).parent / "assets" / "mini_t5")


@dataclasses.dataclass(frozen=True)
class Assembly:
    """A model, its initial parameters and what they stand on.

    Attributes:
      model: the model.
      method: how it is trained.
      params: flat dict of host arrays by '/'-joined path.
      params_axes: logical axes of the parameters.
      identity: JSON-able facts that make a run this run: base, experts, method, prompt, shapes.
    """

    model: PemtModel
    method: Method
    params: dict[str, np.ndarray]
    params_axes: Mapping
    identity: dict

    def nested(self, params: Mapping | None = None) -> dict:
        """The parameters as the model takes them: this assembly's, or another flat dict."""
        return traverse_util.unflatten_dict(dict(params or self.params), sep="/")

    def placed(self, mesh: jax.sharding.Mesh, fully_sharded: bool = False) -> dict:
        """These parameters on the devices of a mesh, as the model takes them."""
        shardings = partitioning.parameter_shardings(
            self.params, self.params_axes, mesh, fully_sharded
        )
        return self.nested(partitioning.place(self.params, shardings))


def prompt_tokens(vocabulary, text: str) -> list[int]:
    """Tokens of a task's description, end token included; their number is the prompt's length."""
    return [*vocabulary.encode(text), vocabulary.eos_id]


def assemble(
    method: str,
    vocabulary,
    *,
    base: str | None = MINI_T5,
    t5: T5Config | None = None,
    options: PemtConfig | None = None,
    prompt_text: str | None = None,
    library: str | None = None,
    experts: Sequence[str] = (),
    initial_expert: str | None = None,
    dropout_rate: float | None = None,
    broadcast_dropout: bool | None = None,
    dtype: str | None = None,
    remat_policy: str | None = None,
    embedding_rows: int | None = None,
    max_decode_length: int | None = None,
    seed: int = 0,
) -> Assembly:
    """Put a model together.

    Args:
      method: name of a row of methods.METHODS.
      vocabulary: of the tasks; it must be the base's.
      base: a pretrained T5 (see interop.base); None to start from `t5`, randomly initialised.
      t5: the shape, where there is no base.
      options: the user's choices; modules, names and lengths in it are filled in here.
      prompt_text: the task's description.
      library: folder of the expert library.
      experts: names of frozen experts, in the order of the gate's columns.
      initial_expert: an expert to start training from instead of a fresh one.
      dropout_rate, broadcast_dropout, dtype, remat_policy: override the base's.
      embedding_rows: keep only so many rows of the base's embedding (the authors cut T5's 32,128
        to the 32,100 of its vocabulary, which changes every softmax a little).
      max_decode_length: most tokens to generate; None for what the task's targets need.
      seed: of the initial values.

    Raises:
      UsageError, PemtError: something named does not exist or does not fit.
    """
    chosen, options = get_method(method), options or PemtConfig()
    if (base is None) == (t5 is None):
        found = "neither" if base is None else "both"
        raise UsageError(f"Found {found} of a base and a T5 configuration, expected one of them.")
    base_params, base_print = {}, None
    if base is not None:
        t5, base_params = load_base(base)
        base_print = fingerprint(base_params)
    if embedding_rows is not None and base is not None and embedding_rows != t5.vocab_size:
        base_params |= cut_embedding(base_params, embedding_rows)
    overrides = {
        "dropout_rate": dropout_rate,
        "broadcast_dropout": broadcast_dropout,
        "dtype": dtype,
        "remat_policy": remat_policy,
        "vocab_size": embedding_rows,
    }
    t5 = dataclasses.replace(t5, **{k: v for k, v in overrides.items() if v is not None})
    check_vocabulary(vocabulary, t5, base)
    if chosen.experts and not experts:
        raise UsageError(
            f"Method {method!r} mixes experts but no expert is named, expected at "
            f"least one of the library {library}."
        )
    if experts and not chosen.experts:
        raise UsageError(
            f"Method {method!r} mixes no experts, found {', '.join(experts)}; "
            "expected method 'pemt_target' or no experts."
        )
    if initial_expert and not chosen.source_expert:
        raise UsageError(
            f"Method {method!r} trains no expert that could start as "
            f"{initial_expert!r}, expected method 'lora' or 'pemt_source'."
        )
    if chosen.prompt and not prompt_text:
        raise UsageError(f"Method {method!r} needs a prompt, expected PROMPT_TEXT.")
    tokens = prompt_tokens(vocabulary, prompt_text) if chosen.prompt else []
    adapter_dim = options.adapter_dim or max(1, t5.emb_dim // ADAPTER_REDUCTION)
    modules = {
        "prompt_length": len(tokens),
        "source_expert": chosen.source_expert,
        "adapter_dim": adapter_dim if chosen.adapter else 0,
    }
    bank, records = {}, []
    if experts:
        loaded = [expert_library.load_expert(library, name, base_print) for name in experts]
        for expert in loaded:
            check_widths(expert, t5)
        bank, lengths, names = expert_library.stack_experts(loaded)
        records = [{"name": e.name, "sha256": e.sha256} for e in loaded]
        modules |= {
            "expert_names": names,
            "source_prompt_lengths": lengths,
            "expert_rank": max(e.rank for e in loaded),
        }
    options = dataclasses.replace(options, **modules)
    model = PemtModel(t5, options, vocabulary, max_decode_length)
    given = base_params | bank
    if chosen.prompt and options.prompt_init == "vocab" and base is not None:
        given["prompt/embedding"] = base_params["token_embedder/embedding"][tokens]
    if initial_expert:
        start = expert_library.load_expert(library, initial_expert, base_print)
        check_widths(start, t5)
        if start.rank != options.expert_rank:
            raise UsageError(
                f"Expert {initial_expert!r} has rank {start.rank}, expected "
                f"{options.expert_rank} as PemtConfig.expert_rank says."
            )
        given |= starting_values(start, len(tokens))
        records.append({"name": initial_expert, "sha256": start.sha256})
    params, axes = initial_parameters(model, seed, given)
    identity = {
        "method": method,
        "base": base_print,
        "experts": records,
        "prompt_text": prompt_text if chosen.prompt else None,
        "vocabulary": vocabulary.sha256,
        # A run may go on with less memory: the same numbers are computed.
        "t5": {k: v for k, v in dataclasses.asdict(t5).items() if k != "remat_policy"},
        "pemt": dataclasses.asdict(options),
        "seed": seed,
    }
    return Assembly(model, chosen, params, axes, identity)


def starting_values(expert, prompt_length: int) -> dict[str, np.ndarray]:
    """Values of an expert to train on from; its prompt only where the lengths agree."""
    values = {
        f"{layer}/mlp/expert/lora_{ab}": array
        for layer, pair in expert.lora.items()
        for ab, array in zip("ab", pair, strict=True)
    }
    if len(expert.prompt) == prompt_length:
        values["prompt/embedding"] = expert.prompt
    return values


def check_widths(expert, t5: T5Config) -> None:
    """Raise PemtError when an expert was trained in a model of other widths."""
    if expert.widths != (t5.emb_dim, t5.mlp_dim):
        raise PemtError(
            "Expert {!r} has model and feed-forward widths {} and {}, expected {} and "
            "{} as the base has.".format(expert.name, *expert.widths, t5.emb_dim, t5.mlp_dim)
        )


def cut_embedding(base_params: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """The embedding, and the output projection if it is one of its own, of the first `rows`."""
    have = len(base_params["token_embedder/embedding"])
    if not 0 < rows <= have:
        raise UsageError(f"embedding_rows is {rows}, expected at most the checkpoint's {have}.")
    cut = {"token_embedder/embedding": base_params["token_embedder/embedding"][:rows]}
    if "decoder/logits_dense/kernel" in base_params:
        cut["decoder/logits_dense/kernel"] = base_params["decoder/logits_dense/kernel"][:, :rows]
    return cut


def check_vocabulary(vocabulary, t5: T5Config, base: str | None) -> None:
    """Raise UsageError when the vocabulary cannot be the one the base was trained with."""
    own = Path(base or "") / "spiece.model"
    if base and own.is_file() and sha256_file(own) != vocabulary.sha256:
        raise UsageError(
            f"The vocabulary {vocabulary} is not the one that lies beside the base, "
            f"expected {own}; set VOCABULARY to it."
        )
    # Embeddings are padded to a multiple of 128 rows at most.
    if not 0 <= t5.vocab_size - vocabulary.vocab_size < 128:
        raise UsageError(
            f"The vocabulary {vocabulary} has {vocabulary.vocab_size} entries but the checkpoint "
            f"has {t5.vocab_size} embedding rows, expected a vocabulary made for it."
        )


def cast(params: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Return the arrays in `dtype` ("bfloat16" halves the memory of frozen parameters)."""
    return {path: np.asarray(value).astype(jnp.dtype(dtype)) for path, value in params.items()}
