"""Models of T5's published shapes with random weights, and their training steps, for benchmarks.

Each step is the one that users run: the compiled update with dropout, clipping, AdamW and donated
state. Only the weights are random, which does not affect its time.
"""

import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.common.layer_stacks import stack_layers
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.model.methods import get_method, split
from pemt_jax.model.pemt_model import PemtModel
from pemt_jax.optimizers import make_optimizer
from pemt_jax.training.step import TrainState, make_train_step

# Dropout draws one mask per example, the default, on every side of every comparison; tricks.py
# measures the cost of one mask per position.
SIZES = {
    "mini": T5Config(
        vocab_size=8100,
        emb_dim=192,
        num_heads=6,
        head_dim=32,
        mlp_dim=768,
        num_encoder_layers=4,
        num_decoder_layers=4,
    ),
    "small": T5Config(
        emb_dim=512, num_heads=8, mlp_dim=2048, num_encoder_layers=6, num_decoder_layers=6
    ),
    "base": T5Config(),
}
PROMPT, TARGET, EXPERTS, RANK = 31, 8, 6, 64


def pemt_config(
    method: str, t5: T5Config, experts: int = EXPERTS, rank: int = RANK, prompt: int = PROMPT
) -> PemtConfig:
    """Return the modules of a method, as runs/build_model.py does."""
    chosen = get_method(method)
    experts = experts if chosen.experts else 0
    return PemtConfig(
        prompt_length=prompt if chosen.prompt else 0,
        source_expert=chosen.source_expert,
        expert_names=tuple(f"expert_{i}" for i in range(experts)),
        source_prompt_lengths=(PROMPT,) * experts,
        expert_rank=rank,
        adapter_dim=t5.emb_dim // 16 if chosen.adapter else 0,
    )


def random_batch(rows: int, source: int, target: int = TARGET, vocabulary: int = 8100) -> dict:
    """Return a batch without padding."""
    random = np.random.default_rng(0)
    targets = random.integers(2, vocabulary, (rows, target)).astype(np.int32)
    shifted = np.concatenate([np.zeros_like(targets[:, :1]), targets[:, :-1]], axis=1)
    return {
        "encoder_input_tokens": random.integers(2, vocabulary, (rows, source)).astype(np.int32),
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones_like(targets),
    }


class Step:
    """A compiled training step with its own state; a call makes one update and waits for it.

    Args:
      method: a key of methods.METHODS.
      t5: shape of the backbone.
      batch: arrays of the batch.
      pemt: modules; None for those of the method in the benchmarks' sizes.
      frozen_dtype: dtype of the frozen parameters.
      prng: random number generator of the dropout.
      loaded: False to compile only, without any parameter in memory.
    """

    def __init__(
        self,
        method: str,
        t5: T5Config,
        batch: Mapping[str, np.ndarray],
        pemt: PemtConfig | None = None,
        frozen_dtype: str = "float32",
        prng: str = "threefry2x32",
        loaded: bool = True,
    ):
        model = PemtModel(t5, pemt or pemt_config(method, t5))
        trainable, frozen = split(parameter_shapes(model), get_method(method))
        frozen = {
            path: jax.ShapeDtypeStruct(x.shape, jnp.dtype(frozen_dtype))
            for path, x in frozen.items()
        }
        if t5.scan_layers:
            frozen = stack_layers(
                frozen, lambda x: jax.ShapeDtypeStruct((len(x), *x[0].shape), x[0].dtype)
            )
        optimizer = make_optimizer(schedule=3e-4)

        def initial(trainable):
            return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))

        self.batch = jax.device_put(dict(batch))
        self.key = jax.random.key(0, impl=prng)
        step = jax.jit(make_train_step(model.loss_fn, optimizer), donate_argnums=0)
        shapes = jax.eval_shape(initial, trainable)
        start = time.process_time()
        self.compiled = step.lower(shapes, frozen, self.batch, self.key).compile()
        self.seconds_to_compile = time.process_time() - start  # of all cores
        if loaded:
            self.state, self.frozen = initial(random_values(trainable)), random_values(frozen)

    def __call__(self) -> None:
        self.state, metrics = self.compiled(self.state, self.frozen, self.batch, self.key)
        jax.block_until_ready((self.state, metrics))

    @property
    def flops(self) -> float:
        """The FLOPs of the compiled step, as counted by XLA."""
        return float(self.compiled.cost_analysis()["flops"])

    @property
    def memory(self) -> dict[str, int]:
        """Peak bytes: parameters and state, results not stored in them, temporary buffers."""
        found = self.compiled.memory_analysis()
        parts = {
            "arguments": found.argument_size_in_bytes,
            "results": found.output_size_in_bytes - found.alias_size_in_bytes,
            "temporary": found.temp_size_in_bytes,
        }
        return parts | {"total": sum(parts.values())}


def parameter_shapes(model: PemtModel) -> dict:
    """Return the nested shapes of a model's parameters."""
    tokens = {
        name: (1, 1)
        for name in ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    }
    return jax.eval_shape(lambda: model.get_initial_variables(jax.random.key(0), tokens))["params"]


def random_values(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Return arrays of small random numbers; zeros could hide costs."""
    random = np.random.default_rng(0)

    def values(x: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(0.03 * random.standard_normal(x.shape, np.float32), x.dtype)

    return {path: values(x) for path, x in shapes.items()}


def matmul(size: int = 2048, dtype: str = "float32") -> tuple[Callable[[], None], float]:
    """Return a function that multiplies two square matrices, and its FLOPs."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.dot)

    def run() -> None:
        product(a, a).block_until_ready()

    return run, 2.0 * size**3
