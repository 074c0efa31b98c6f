"""A training run as far as its cost is concerned: shapes and choices, not one number of a model."""

import dataclasses
from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp

from pemt_jax import optimizers
from pemt_jax.common.flat_config import at_least, choose
from pemt_jax.config import DTYPES, PemtConfig, T5Config
from pemt_jax.model.methods import get_method, split
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.optimizers import Transformation
from pemt_jax.parallel.memory import check_lengths
from pemt_jax.run_config import PRNGS
from pemt_jax.training.step import TrainState

PROMPT = 30  # tokens of a task's description, where none is given
SOURCES = 6  # experts of a target, where none are named


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      t5, pemt: the model; `t5.dtype` and `t5.remat_policy` are choices of the run.
      method: a row of methods.METHODS.
      optimizer: of the trainable parameters.
      batch_size: rows of an update, over all chips.
      inputs, targets: the longest, in tokens; what the longest bucket takes.
      frozen_dtype: in which frozen parameters are kept.
      prng: of dropout.
      train_steps: updates of the run.
      eval_batch_size: rows of a batch of evaluation.
      decode_length: most tokens to generate.
      assumed: what was not given and had to be assumed, for people.
    """

    t5: T5Config
    pemt: PemtConfig
    method: str
    optimizer: Transformation
    batch_size: int = 32
    inputs: int = 256
    targets: int = 128
    frozen_dtype: str = "float32"
    prng: str = "threefry2x32"
    train_steps: int = 1000
    eval_batch_size: int = 128
    decode_length: int = 128
    assumed: tuple[str, ...] = ()

    def __post_init__(self):
        names = ("batch_size", "inputs", "targets", "eval_batch_size", "decode_length")
        at_least(1, **{name: getattr(self, name) for name in names})
        at_least(0, train_steps=self.train_steps)
        check_lengths(inputs=self.inputs, targets=self.targets, decode_length=self.decode_length)
        choose("frozen_dtype", self.frozen_dtype, sorted(DTYPES))
        choose("prng", self.prng, PRNGS)

    @property
    def model(self) -> PemtModel:
        return PemtModel(self.t5, self.pemt, max_decode_length=self.decode_length)

    def parameters(self) -> tuple[dict, dict, Mapping]:
        """Return shapes of (trainable, frozen), flat by path, and the logical axes."""
        tokens = {
            name: (1, 1)
            for name in ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
        }
        variables = jax.eval_shape(
            lambda: self.model.get_initial_variables(jax.random.key(0), tokens)
        )
        trainable, frozen = split(variables["params"], get_method(self.method))
        dtype = jnp.dtype(self.frozen_dtype)
        frozen = {path: jax.ShapeDtypeStruct(x.shape, dtype) for path, x in frozen.items()}
        return trainable, frozen, variables["params_axes"]

    def state(self, trainable: Mapping) -> TrainState:
        """Return the shapes of the train state."""
        return TrainState(
            cast(jax.Array, jax.ShapeDtypeStruct((), jnp.int32)),
            dict(trainable),
            jax.eval_shape(self.optimizer.init, dict(trainable)),
        )

    def batch(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a batch of `rows`."""
        features = {
            "encoder_input_tokens": self.inputs,
            "decoder_input_tokens": self.targets,
            "decoder_target_tokens": self.targets,
            "decoder_loss_weights": self.targets,
        }
        return {
            name: jax.ShapeDtypeStruct((rows, length), jnp.int32)
            for name, length in features.items()
        }


def pemt_of(
    method: str, t5: T5Config, options: PemtConfig, prompt: int, experts: Mapping[str, int]
) -> PemtConfig:
    """What a method adds to the backbone.

    Args:
      method: its name.
      t5, options: the shape; choices of PEMT.
      prompt: length of the task's prompt.
      experts: lengths of the prompts of the experts, by their names.
    """
    chosen = get_method(method)
    return dataclasses.replace(
        options,
        **chosen.modules(options, t5.emb_dim, prompt),
        expert_names=tuple(experts) if chosen.experts else (),
        source_prompt_lengths=tuple(experts.values()) if chosen.experts else (),
    )


def job_of_shape(t5: T5Config, method: str, **choices) -> Job:
    """A run on a shape by AdamW, with prompts and experts as many and as long as the paper's."""
    experts = {f"expert_{i}": PROMPT for i in range(SOURCES)}
    pemt = pemt_of(method, t5, PemtConfig(expert_rank=64), PROMPT, experts)
    assumed = ()
    if pemt.prompt_length:
        assumed = (f"prompts of {PROMPT} tokens",)
    if pemt.num_experts:
        assumed += (f"{SOURCES} experts of rank {pemt.expert_rank}",)
    return Job(t5, pemt, method, optimizers.make_optimizer(), assumed=assumed, **choices)
