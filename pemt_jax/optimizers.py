"""Optimizers and learning-rate schedules by name, as optax chains.

The optimizer is given the trainable parameters only (methods.split), so a frozen parameter has
no slot and no update. Every chain is: clip by global norm, scale the gradient, decay the weights,
multiply by the learning rate.

`adamw` is optax's: p -= lr * m_hat / (sqrt(v_hat) + eps). `adamw_hf` is the optimizer of the
published runs (transformers 4.6.0), which adds eps before the bias correction of v:

    p -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)

The two differ where a gradient is as small as eps. `adamw_rms` multiplies Adam's update by the
root mean square of each parameter (as Adafactor does; nanoT5 found it best for pretraining T5).
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from pemt_jax.common.errors import UsageError, nearest

Schedule = Callable[[jax.Array], jax.Array]


def make_schedule(
    kind: str = "linear",
    learning_rate: float = 1e-3,
    warmup_steps: int = 0,
    train_steps: int | Sequence[int] | None = None,
    decay_steps: int | None = None,
) -> Schedule | tuple[Schedule, ...]:
    """Return the learning rate as a function of the number of updates already made.

    All kinds start with lr * step / warmup_steps: the first of `warmup_steps` steps has rate 0.

    Args:
        kind: "linear" falls to 0 at `train_steps`; "constant" stays; "wsd" (warm-up, stable,
            decay) stays and falls to 0 over the last `decay_steps` before `train_steps`, so a
            run can be given more steps when it resumes, up to the start of the decay.
        train_steps: several, one a task, give a tuple of schedules.

    Raises:
        UsageError: unknown kind, or step counts that do not fit together.
    """
    kinds = ("linear", "constant", "wsd")
    if kind not in kinds:
        raise UsageError(
            f"There is no schedule {kind!r}, expected one of {', '.join(kinds)}"
            f"{nearest(kind, kinds)}."
        )
    if isinstance(train_steps, Sequence):
        return tuple(
            make_schedule(kind, learning_rate, warmup_steps, steps, decay_steps)
            for steps in train_steps
        )
    if warmup_steps < 0:
        raise UsageError(f"Found warmup_steps {warmup_steps}, expected 0 or more.")
    warmup = optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1))
    if kind == "constant":
        after = optax.constant_schedule(learning_rate)
    else:
        if train_steps is None:
            raise UsageError(f"Schedule {kind!r} has no train_steps, expected the run's length.")
        if kind == "linear":
            decay_steps = train_steps - warmup_steps
        elif decay_steps is None:
            raise UsageError("Schedule 'wsd' has no decay_steps, expected the length of its decay.")
        stable_steps = train_steps - warmup_steps - decay_steps
        if stable_steps < 0 or decay_steps < 1:
            raise UsageError(
                f"Schedule {kind!r} has {warmup_steps} warm-up and {decay_steps} decay steps, "
                f"expected at least 1 of decay and at most train_steps = {train_steps} together."
            )
        after = optax.linear_schedule(learning_rate, 0.0, decay_steps, stable_steps)
    if warmup_steps == 0:
        return after
    return optax.join_schedules([warmup, after], [warmup_steps])


def same_run(bindings: Mapping[str, str]) -> dict[str, str]:
    """The settings by which a run is the same run, of those of this module's functions.

    The length of a constant schedule, or of one that decays at its end, may change at a resume:
    the steps that were made would have been the same.
    """
    free = set()
    if "linear" not in bindings.get("make_schedule.kind", "linear"):
        free = {"make_schedule.train_steps", "make_schedule.decay_steps"}
    return {name: value for name, value in bindings.items() if name not in free}


def scale_by_adam_hf(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam whose eps is not divided by the bias correction (transformers 4.6.0 AdamW)."""
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def update(updates, state, params=None):
        _, state = adam.update(updates, state, params)
        steps = state.count.astype(jnp.float32)
        # 1 - b^t through expm1: in float32 the difference would lose the digits torch keeps.
        step_size = jnp.sqrt(-jnp.expm1(steps * math.log(b2))) / -jnp.expm1(steps * math.log(b1))
        updates = jax.tree.map(
            lambda mu, nu: step_size * mu / (jnp.sqrt(nu) + eps), state.mu, state.nu
        )
        return updates, state

    return optax.GradientTransformation(adam.init, update)


def scale_by_task_schedule(schedules: Sequence[Schedule]) -> optax.GradientTransformation:
    """Multiply by the negative learning rate of the task whose number `update` is given.

    The state is that of optax.scale_by_learning_rate with the task's own schedule.
    """
    init = optax.scale_by_learning_rate(schedules[0]).init

    def update(updates, state, params=None, *, task, **_):
        rate = jax.lax.switch(
            task,
            [lambda count, own=own: jnp.asarray(-own(count), jnp.float32) for own in schedules],
            state.count,
        )
        updates = jax.tree.map(lambda u: jnp.asarray(rate, u.dtype) * u, updates)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def make_optimizer(
    name: str = "adamw",
    schedule: Schedule | float | Sequence[Schedule] = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """Return the optimizer `name` with gradients clipped to the global norm `clip_norm`.

    `adafactor` has its own second moments and takes neither b1, b2 nor eps. Several schedules are
    one a task: `update` is then also given `task`, its number.

    Raises:
        UsageError: unknown name.
    """
    if isinstance(schedule, Sequence):
        scale = scale_by_task_schedule(schedule)
    else:
        scale = optax.scale_by_learning_rate(
            schedule if callable(schedule) else optax.constant_schedule(schedule)
        )
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    # Decoupled weight decay comes after the gradient scaling, and for adamw_rms after the scaling
    # by the parameter's size too: the decay is already proportional to the parameter.
    chains: dict[str, Callable[[], list[optax.GradientTransformation]]] = {
        "adamw": lambda: [optax.scale_by_adam(b1, b2, eps), *decay],
        "adamw_hf": lambda: [scale_by_adam_hf(b1, b2, eps), *decay],
        "adamw_rms": lambda: [
            optax.scale_by_adam(b1, b2, eps),
            optax.scale_by_param_block_rms(min_scale=1e-3),
            *decay,
        ],
        "adafactor": lambda: [
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(min_scale=1e-3),
            *decay,
        ],
    }
    if name not in chains:
        raise UsageError(
            f"There is no optimizer {name!r}, expected one of {', '.join(chains)}"
            f"{nearest(name, chains)}."
        )
    clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    return optax.chain(*clip, *chains[name](), scale)
