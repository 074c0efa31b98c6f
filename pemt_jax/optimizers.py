"""Optimizers and learning-rate schedules: descriptions that are optax transformations.

`Optimizer` and `Schedule` are frozen dataclasses, so that a run knows its own optimizer and two
runs can be compared; gin calls them by the names `make_optimizer` and `make_schedule`. An
`Optimizer` has optax's `init` and `update`, a `Schedule` is called with a step.

The optimizer is given the trainable parameters only (methods.split), so a frozen parameter has no
slot and no update. Every chain is: clip by global norm, scale the gradient, decay the weights,
multiply by the learning rate.

`adamw` is optax's: p -= lr * m_hat / (sqrt(v_hat) + eps). `adamw_hf` is the optimizer of the
published runs (transformers 4.6.0), which adds eps before the bias correction of v:

    p -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)

The two differ where a gradient is as small as eps. `adamw_rms` multiplies Adam's update by the
root mean square of each parameter (as Adafactor does; nanoT5 found it best for pretraining T5).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from pemt_jax.common.errors import UsageError, no_such
from pemt_jax.common.flat_config import at_least, number

KINDS = ("linear", "constant", "wsd")


@runtime_checkable
class Transformation(Protocol):
    """An optimizer, such as @optimizers.make_optimizer(): what has optax's `init` and `update`."""

    @property
    def init(self) -> Callable: ...
    @property
    def update(self) -> Callable: ...


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the number of updates already made.

    All kinds start with lr * step / warmup_steps: the first of `warmup_steps` steps has rate 0.

    Attributes:
        kind: "linear" falls to 0 at `train_steps`; "constant" stays; "wsd" (warm-up, stable,
            decay) stays and falls to 0 over the last `decay_steps` before `train_steps`, so a
            run can be given more steps when it resumes, up to the start of the decay.
        train_steps: of several tasks one number each; `of_task` gives a task's own schedule.

    Raises:
        UsageError: unknown kind, or step counts that do not fit together.
    """

    kind: str = "linear"
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    train_steps: int | Sequence[int] | None = None
    decay_steps: int | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise no_such("schedule", self.kind, KINDS)
        if isinstance(self.train_steps, Sequence):
            object.__setattr__(self, "train_steps", tuple(self.train_steps))
        number("LEARNING_RATE", self.learning_rate)
        at_least(0, warmup_steps=self.warmup_steps)
        for task in range(len(self.train_steps) if isinstance(self.train_steps, tuple) else 1):
            self.of_task(task).rate  # noqa: B018  (built to be checked)

    def __call__(self, step: jax.Array | int) -> jax.typing.ArrayLike:
        """The rate of the update that follows `step` updates."""
        return self.rate(step)

    def of_task(self, task: int) -> "Schedule":
        """The schedule of the task with this number."""
        if not isinstance(self.train_steps, tuple):
            return self
        return dataclasses.replace(self, train_steps=self.train_steps[task])

    @functools.cached_property
    def rate(self) -> optax.Schedule:
        """The optax schedule."""
        warmup = optax.linear_schedule(0.0, self.learning_rate, max(self.warmup_steps, 1))
        after = self._after_warmup()
        if self.warmup_steps == 0:
            return after
        return optax.join_schedules([warmup, after], [self.warmup_steps])

    def _after_warmup(self) -> Callable:
        if self.kind == "constant":
            return optax.constant_schedule(self.learning_rate)
        if not isinstance(self.train_steps, int):
            raise UsageError(
                f"Schedule {self.kind!r} has no train_steps, expected the run's length."
            )
        decay_steps = self.decay_steps
        if self.kind == "linear":
            decay_steps = self.train_steps - self.warmup_steps
        elif decay_steps is None:
            raise UsageError("Schedule 'wsd' has no decay_steps, expected the length of its decay.")
        stable_steps = self.train_steps - self.warmup_steps - decay_steps
        if stable_steps < 0 or decay_steps < 1:
            raise UsageError(
                f"Schedule {self.kind!r} has {self.warmup_steps} warm-up and {decay_steps} decay "
                f"steps, expected at least 1 of decay and at most train_steps = "
                f"{self.train_steps} together (WARMUP_STEPS, TRAIN_STEPS)."
            )
        return optax.linear_schedule(self.learning_rate, 0.0, decay_steps, stable_steps)


def scale_by_adam_hf(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam whose eps is not divided by the bias correction (transformers 4.6.0 AdamW)."""
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def update(updates, state, params=None):
        _, state = adam.update(updates, state, params)
        state = cast(optax.ScaleByAdamState, state)
        steps = jnp.asarray(state.count, jnp.float32)
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
    init = optax.scale_by_learning_rate(schedules[0].rate).init

    def update(updates, state, params=None, *, task, **_):
        rates = [lambda count, own=own: -jnp.asarray(own(count), jnp.float32) for own in schedules]
        rate = jax.lax.switch(task, rates, state.count)
        updates = jax.tree.map(lambda u: jnp.asarray(rate, u.dtype) * u, updates)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, cast(Callable, update))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimizer `name`, with gradients clipped to the global norm `clip_norm`.

    `adafactor` has its own second moments and takes neither b1, b2 nor eps. Where the schedule is
    one per task, `update` is also given `task`, its number.

    Raises:
        UsageError: unknown name.
    """

    name: str = "adamw"
    schedule: Schedule | optax.Schedule | float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self):
        if self.name not in CHAINS:
            raise no_such("optimizer", self.name, CHAINS)
        if not callable(self.schedule):
            number("LEARNING_RATE", self.schedule)
        for name in ("b1", "b2"):
            number(f"make_optimizer.{name}", getattr(self, name), below=1)
        for name in ("eps", "weight_decay"):
            number(f"make_optimizer.{name}", getattr(self, name))
        if self.clip_norm is not None:
            number("make_optimizer.clip_norm", self.clip_norm, positive=True)

    @property
    def init(self) -> Callable:
        """optax's `init`: trainable parameters -> optimizer state."""
        return self.chain.init

    @property
    def update(self) -> Callable:
        """optax's `update`: gradients, state, parameters -> updates, state."""
        return self.chain.update

    def learning_rate(self, step: int) -> float:
        """The rate of the update that follows `step` updates."""
        rate = self.schedule(step) if callable(self.schedule) else self.schedule
        return float(jnp.asarray(rate))

    def of_task(self, task: int) -> "Optimizer":
        """The optimizer as the task with this number has it in a run of its own."""
        if not isinstance(self.schedule, Schedule):
            return self
        return dataclasses.replace(self, schedule=self.schedule.of_task(task))

    def bindings(self) -> dict[str, object]:
        """{gin name: value} of this optimizer and its schedule."""
        values = {f"make_optimizer.{name}": value for name, value in vars_of(self).items()}
        if callable(self.schedule):
            name = getattr(self.schedule, "__qualname__", type(self.schedule).__qualname__)
            values["make_optimizer.schedule"] = f"{self.schedule.__module__}.{name}"
        if isinstance(self.schedule, Schedule):
            values["make_optimizer.schedule"] = "@optimizers.make_schedule()"
            values |= {f"make_schedule.{k}": v for k, v in vars_of(self.schedule).items()}
        return values

    def identity(self) -> dict[str, str]:
        """What must be equal for a run to be the same run.

        The length of a constant schedule, or of one that decays at its end, may change at a
        resume: the steps that were made would have been the same.
        """
        free = set()
        if isinstance(self.schedule, Schedule) and self.schedule.kind != "linear":
            free = {"make_schedule.train_steps", "make_schedule.decay_steps"}
        return {name: str(value) for name, value in self.bindings().items() if name not in free}

    @functools.cached_property
    def chain(self) -> optax.GradientTransformationExtraArgs:
        """The optax chain."""
        if isinstance(self.schedule, Schedule) and isinstance(self.schedule.train_steps, tuple):
            tasks = range(len(self.schedule.train_steps))
            scale = scale_by_task_schedule([self.schedule.of_task(task) for task in tasks])
        elif isinstance(self.schedule, Schedule):
            scale = optax.scale_by_learning_rate(self.schedule.rate)
        elif callable(self.schedule):  # a user's own
            scale = optax.scale_by_learning_rate(self.schedule)
        else:
            scale = optax.scale_by_learning_rate(optax.constant_schedule(self.schedule))
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        # Decoupled weight decay comes after the gradient scaling, and for adamw_rms after the
        # scaling by the parameter's size too: the decay is already proportional to the parameter.
        decay = [optax.add_decayed_weights(self.weight_decay)] if self.weight_decay else []
        return optax.chain(*clip, *CHAINS[self.name](self), *decay, scale)


def with_task(optimizer: Transformation) -> optax.GradientTransformationExtraArgs:
    """The transformation whose `update` may be given `task`."""
    chain = optimizer.chain if isinstance(optimizer, Optimizer) else optimizer
    return optax.with_extra_args_support(cast(optax.GradientTransformation, chain))


def vars_of(value) -> dict[str, object]:
    """{field: value} of a dataclass, not recursive."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


CHAINS: dict[str, Callable[[Optimizer], list[optax.GradientTransformation]]] = {
    "adamw": lambda o: [optax.scale_by_adam(o.b1, o.b2, o.eps)],
    "adamw_hf": lambda o: [scale_by_adam_hf(o.b1, o.b2, o.eps)],
    "adamw_rms": lambda o: [
        optax.scale_by_adam(o.b1, o.b2, o.eps),
        optax.scale_by_param_block_rms(min_scale=1e-3),
    ],
    "adafactor": lambda _: [
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(min_scale=1e-3),
    ],
}

# The names by which gin files call them.
make_optimizer, make_schedule = Optimizer, Schedule
